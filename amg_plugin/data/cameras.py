"""Which camera of which data set a camera label means.

torchreid's labels count from 0 in every data set. Adding training sets up, it shifts those of each further one by the
number of cameras so far; query and gallery keep their own. A network that learns something per camera needs one meaning
for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CameraTable = Mapping[str, Sequence[int]]
"""Camera numbers by training data set; row 0 of what a network learns is for the first camera of the first one."""

UNSEEN = -1
"""Row of a camera that training has not seen."""


@dataclass(frozen=True)
class TrainingCameras:
    """Cameras of a training set.

    Attributes:
        sources: Training data sets, in the order that they were added up in.
        offsets: What torchreid has added to the camera labels of each.
        table: Their own camera numbers.
    """

    sources: tuple[str, ...]
    offsets: tuple[int, ...]
    table: dict[str, list[int]]

    @classmethod
    def of(cls, datamanager: Any) -> TrainingCameras:
        """Read off torchreid's image data manager or the plugin's."""
        sources = tuple(datamanager.sources)
        labels: list[set[int]] = [set() for _ in sources]
        for _, _, camid, place, *_ in datamanager.train_loader.dataset.train:
            labels[_place(place, sources)].add(camid)
        offsets = getattr(datamanager, "camera_offsets", None) or _torchreids_offsets(labels)
        table: dict[str, set[int]] = {}
        for name, own, offset in zip(sources, labels, offsets, strict=True):
            table.setdefault(name, set()).update(label - offset for label in own)
        return cls(sources, tuple(offsets), {name: sorted(numbers) for name, numbers in table.items()})

    @property
    def count(self) -> int:
        """Number of cameras."""
        return sum(map(len, self.table.values()))

    def rows(self, camids: Tensor, places: Tensor, table: CameraTable) -> Tensor:
        """Rows ``[B]`` of training images in ``table``, :data:`UNSEEN` for cameras that it lacks.

        Args:
            camids: torchreid's camera labels, ``[B]``.
            places: torchreid's numbers of the source, ``[B]``.
            table: Cameras that the network knows.
        """
        known = rows_of(table)
        found = []
        for camid, place in zip(camids.tolist(), places.tolist(), strict=True):
            place = _place(place, self.sources)
            found.append(known.get((self.sources[place], camid - self.offsets[place]), UNSEEN))
        return torch.tensor(found)


def rows_of(table: CameraTable) -> dict[tuple[str, int], int]:
    """Row of each (data set, camera)."""
    pairs = [(name, number) for name, numbers in table.items() for number in numbers]
    return {pair: row for row, pair in enumerate(pairs)}


def target_rows(target: str, camids: Sequence[int], table: CameraTable) -> Tensor:
    """Rows of query or gallery images of a data set; :data:`UNSEEN` for cameras that ``table`` lacks.

    Cameras of a data set that was not trained on are unseen, also where their numbers equal those of training.
    """
    known = rows_of(table)
    return torch.tensor([known.get((target, int(camid)), UNSEEN) for camid in camids])


def _place(place: int, sources: Sequence[str]) -> int:
    # A single data set may number parts of its own.
    return place if len(sources) > 1 else 0


def _torchreids_offsets(labels: Sequence[set[int]]) -> list[int]:
    return [len(set().union(*labels[:place])) for place in range(len(labels))]
