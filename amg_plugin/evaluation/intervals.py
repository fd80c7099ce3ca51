"""How sure a figure is that was made of these queries and not of others."""

from __future__ import annotations

import numpy as np

RESAMPLES = 10_000
#: Queries that are drawn in one go.
_AT_ONCE = 1 << 20


def bootstrap_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """95 % percentile bootstrap interval of the mean over queries (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: One value per query ``[n]``; for two models the differences, so that queries are compared in pairs.
        resamples: How often queries are drawn.
        seed: Of the draws.

    Returns:
        Lower and upper end.
    """
    rng, count = np.random.default_rng(seed), len(values)
    step = max(1, _AT_ONCE // count)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    means = np.concatenate([values[rng.integers(0, count, (size, count))].mean(1) for size in sizes])
    return np.percentile(means, [2.5, 97.5]).tolist()
