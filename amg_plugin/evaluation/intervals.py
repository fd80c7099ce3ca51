"""How sure a figure is that was made of these queries and not of others."""

from __future__ import annotations

import numpy as np

RESAMPLES = 10_000


def bootstrap_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of the mean over queries (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: One value per query ``[n]``; for two models the differences, so that queries are compared in pairs.
        resamples: How often queries are drawn.
        seed: Of the draws.

    Returns:
        Lower and upper end.
    """
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    return np.percentile(means, [2.5, 97.5]).tolist()
