"""Loaders that torchreid has built, with fewer files or shorter epochs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler

logger = logging.getLogger(__name__)

Item = tuple[Any, ...]
"""Path of the image, identity, camera, and what else the data set says."""
Loaders = Mapping[str, Mapping[str, DataLoader]]
"""Target -> part -> loader, as in ``test_loader`` of torchreid's data manager."""


def usable_items(items: Sequence[Item], unusable: Collection[str]) -> list[Item]:
    """Items whose file is not among the ``unusable`` ones."""
    return [item for item in items if item[0] not in unusable]


def relabelled(train: Sequence[Item]) -> list[Item]:
    """Training items with labels from 0 to n - 1 in the order of the old ones.

    torchreid's classifier has one output per label. Cameras keep their numbers, which query and gallery share.
    """
    labels = {pid: label for label, pid in enumerate(sorted({item[1] for item in train}))}
    return [(item[0], labels[item[1]], *item[2:]) for item in train]


def leave_out_of_training(
    loader: DataLoader, unusable: Collection[str], make_sampler: Callable[[list[Item]], Any]
) -> DataLoader:
    """The training loader without the ``unusable`` files; its data set is changed in place."""
    dataset = loader.dataset
    before = len({item[1] for item in dataset.train})
    dataset.train = dataset.data = relabelled(usable_items(dataset.train, unusable))
    dataset.num_train_pids = dataset.get_num_pids(dataset.train)
    if lost := before - dataset.num_train_pids:
        logger.warning("%d of %d training identities have no readable image and are left out", lost, before)
    return _with_sampler(loader, make_sampler(dataset.train))


def leave_out_of_tests(loaders: Loaders, unusable: Collection[str], unmatched: Mapping[str, Collection[str]]) -> None:
    """Take files out of query and gallery loaders, in place."""
    for target, parts in loaders.items():
        for part, loader in parts.items():
            alone = unmatched.get(target, ()) if part == "query" else ()
            items = usable_items(loader.dataset.data, {*unusable, *alone})
            loader.dataset.data = items
            setattr(loader.dataset, part, items)


class FirstItems(Sampler):
    """The first ``count`` items of another sampler, which shuffles again each epoch as before."""

    def __init__(self, sampler: Sampler, count: int) -> None:
        self.sampler, self.count = sampler, count

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.sampler), self.count)

    def __len__(self) -> int:
        return min(self.count, len(self.sampler))


def shortened(loader: DataLoader, batches: int) -> DataLoader:
    """The same training loader with epochs of at most ``batches`` batches, for trials on slow machines."""
    return _with_sampler(loader, FirstItems(loader.sampler, batches * loader.batch_size))


def _with_sampler(loader: DataLoader, sampler: Sampler) -> DataLoader:
    return DataLoader(
        loader.dataset,
        sampler=sampler,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
    )
