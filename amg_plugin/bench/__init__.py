"""Measure what pruning saves in time: networks against each other, in every runtime, in runs that alternate."""
