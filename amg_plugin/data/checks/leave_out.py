"""Leaving files out of a data manager that torchreid has built."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

Item = tuple[Any, ...]


def usable_items(items: Sequence[Item], unusable: Collection[str]) -> list[Item]:
    """Items (path, ...) whose file is not among the ``unusable`` ones."""
    return [item for item in items if item[0] not in unusable]


def relabelled(train: Sequence[Item]) -> list[Item]:
    """Training items with labels from 0 to n - 1 in the order of the old ones.

    An identity may have lost all of its images, and torchreid's classifier has one output per label. Cameras keep
    their numbers, which query and gallery share.
    """
    labels = {pid: label for label, pid in enumerate(sorted({item[1] for item in train}))}
    return [(item[0], labels[item[1]], *item[2:]) for item in train]


def remake_train_loader(loader: DataLoader, unusable: Collection[str], make_sampler: Any) -> DataLoader:
    """The training loader without the ``unusable`` files; its data set is changed in place.

    Args:
        loader: torchreid's training loader.
        unusable: Paths to leave out.
        make_sampler: Makes the sampler out of the training items that are left.
    """
    dataset = loader.dataset
    before = len({item[1] for item in dataset.train})
    dataset.train = dataset.data = relabelled(usable_items(dataset.train, unusable))
    dataset.num_train_pids = dataset.get_num_pids(dataset.train)
    if dataset.num_train_pids < before:
        logger.warning(
            "%d of %d training identities have no readable image and are left out",
            before - dataset.num_train_pids,
            before,
        )
    return DataLoader(
        dataset,
        sampler=make_sampler(dataset.train),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
    )


def leave_out_of_tests(loader: DataLoader, part: str, unusable: Collection[str]) -> None:
    """Takes the ``unusable`` files out of a query or gallery loader, in place.

    Args:
        loader: torchreid's loader, which goes through its data set in order.
        part: ``"query"`` or ``"gallery"``.
        unusable: Paths to leave out.
    """
    dataset = loader.dataset
    items = usable_items(dataset.data, unusable)
    dataset.data = items
    setattr(dataset, part, items)
