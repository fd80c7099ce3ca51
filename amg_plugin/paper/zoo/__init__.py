"""The authors' published checkpoints: where they are, how they are fetched, verified and imported."""
