"""Other images of an identity in the place of those that can no longer be read."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np


class Replacements:
    """Chooses images in the place of unreadable ones, and counts them in all loader processes together.

    Args:
        seed: With epoch and place of the image, it decides which one is taken.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # Shared, since loaders keep their processes, with copies of the data set, from epoch to epoch.
        self._epoch = multiprocessing.Value("q", 0)
        self._count = multiprocessing.Value("q", 0)

    def begin(self, epoch: int) -> None:
        """Start an epoch, counted from 0."""
        self._epoch.value = epoch

    def order(self, data: Sequence[Any], index: int) -> list[int]:
        """Places of the other images of the identity at ``index``, in the order in which they are tried."""
        others = [place for place, item in enumerate(data) if item[1] == data[index][1] and place != index]
        return np.random.default_rng([self.seed, self._epoch.value, index]).permutation(others).astype(int).tolist()

    def note(self) -> None:
        """Count an image that was replaced."""
        with self._count.get_lock():
            self._count.value += 1

    def take_count(self) -> int:
        """How many were replaced since the last time."""
        with self._count.get_lock():
            count, self._count.value = self._count.value, 0
        return count
