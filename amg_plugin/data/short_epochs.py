"""Epochs that end early, for trials on slow machines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import DataLoader, Sampler


class FirstItems(Sampler):
    """The first ``count`` items of another sampler, which shuffles in each epoch as before.

    Args:
        sampler: What gives the order.
        count: How many items to let through.
    """

    def __init__(self, sampler: Sampler, count: int) -> None:
        self.sampler, self.count = sampler, count

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.sampler), self.count)

    def __len__(self) -> int:
        return min(self.count, len(self.sampler))


def shortened(loader: DataLoader, batches: int) -> DataLoader:
    """The same training loader with epochs of at most ``batches`` batches."""
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=FirstItems(loader.sampler, batches * loader.batch_size),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
    )
