"""Features, distances and scores of query and gallery. Needs torchreid."""
