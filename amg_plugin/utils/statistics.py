"""Percentile bootstrap over queries: how far a figure could have come out by the choice of queries."""

from __future__ import annotations

import numpy as np


def interval(values: np.ndarray, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Paired differences of two models over the same queries give the interval of their difference.

    Args:
        values: One value per query, ``[n]``.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.
        level: Coverage.

    Returns:
        Lower and upper bound.
    """
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
