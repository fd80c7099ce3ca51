"""The only place that registers anything in torchreid."""
