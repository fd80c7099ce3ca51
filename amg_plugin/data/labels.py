"""Which camera of which data set a camera label means, and labels on their way from batches to networks that use them.

torchreid's labels count from 0 in every data set. Adding training sets up, it shifts those of each further one by the
number of cameras so far; query and gallery keep their own. A network that learns something per camera needs one meaning
for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from amg_plugin.errors import ConfigError
from amg_plugin.models.spec import SideInformationSpec
from amg_plugin.models.vit import unwrap

CameraTable = Mapping[str, Sequence[int]]
"""Camera numbers by training data set; row 0 of what a network learns is for the first camera of the first one."""

UNSEEN = -1
"""Row of a camera that training has not seen."""


@dataclass(frozen=True)
class TrainingCameras:
    """Cameras of a training set."""

    sources: tuple[str, ...]  # in the order that they were added up in
    offsets: tuple[int, ...]  # what torchreid has added to the camera labels of each
    table: dict[str, list[int]]  # their own camera numbers

    @classmethod
    def of(cls, datamanager: Any) -> TrainingCameras:
        """Read off torchreid's image data manager or the plugin's."""
        sources = tuple(datamanager.sources)
        labels: list[set[int]] = [set() for _ in sources]
        for _, _, camid, place, *_ in datamanager.train_loader.dataset.train:
            labels[_place(place, sources)].add(camid)
        joined = [len(set().union(*labels[:place])) for place in range(len(labels))]  # as torchreid counts
        offsets = getattr(datamanager, "camera_offsets", None) or joined
        table: dict[str, set[int]] = {}
        for name, own, offset in zip(sources, labels, offsets, strict=True):
            table.setdefault(name, set()).update(label - offset for label in own)
        return cls(sources, tuple(offsets), {name: sorted(numbers) for name, numbers in table.items()})

    @property
    def count(self) -> int:
        """Number of cameras."""
        return sum(map(len, self.table.values()))

    def rows(self, camids: Tensor, places: Tensor, table: CameraTable) -> Tensor:
        """Rows ``[B]`` in ``table`` of torchreid's camera labels and numbers of the source, both ``[B]``.

        Cameras that the table lacks have the row :data:`UNSEEN`.
        """
        known = rows_of(table)
        places = [_place(place, self.sources) for place in places.tolist()]
        pairs = zip(camids.tolist(), places, strict=True)
        return torch.tensor([known.get((self.sources[at], camid - self.offsets[at]), UNSEEN) for camid, at in pairs])


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


#: Key of view labels in a batch; torchreid's own data sets have none.
VIEWS = "viewid"

Labels = tuple[Tensor | None, ...]
Loaders = Mapping[str, Mapping[str, DataLoader]]
"""Target -> part -> loader, as in ``test_loader`` of torchreid's data manager."""


@dataclass
class TrainingLabels:
    """Turns the camera labels of training batches into the rows that a network has learned."""

    datamanager: Any
    sources: Sequence[str]  # what a network is taken for that does not say its own, if it is one

    @cached_property
    def cameras(self) -> TrainingCameras:
        """Cameras of the training data."""
        return TrainingCameras.of(self.datamanager)

    def check(self, model: nn.Module) -> None:
        """Check that the network has a row for every training camera, and name the rows if they have no name yet."""
        model = unwrap(model)
        side = _side(model)
        if side is None:
            return
        if side.views and VIEWS not in self.datamanager.train_loader.dataset[0]:
            raise ConfigError(
                f"amg.sie.views is {side.views}, but images of {', '.join(self.datamanager.sources)} have no label of "
                f"their view ('{VIEWS}' in what the data set gives); set amg.sie.views to 0."
            )
        if not side.cameras or side.camera_table:
            return
        if self.cameras.count > side.cameras:
            raise ConfigError(
                f"The network has side information for {side.cameras} cameras, the training data has "
                f"{self.cameras.count}; set amg.sie.cameras to {self.cameras.count} before the network is built."
            )
        if self.cameras.count == side.cameras:
            model.name_cameras(self.cameras.table)

    def of(self, model: nn.Module, batch: Mapping[str, Any], device: torch.device) -> Labels:
        """What ``model`` wants after the images of a training batch: rows of cameras and views ``[B]``, or nothing."""

        def rows(side: SideInformationSpec) -> Tensor:
            camids = torch.as_tensor(batch["camid"])
            places = torch.as_tensor(batch.get("dsetid", torch.zeros_like(camids)))
            return self.cameras.rows(camids, places, _table(side, self.sources))

        return _labels(_side(model), rows, batch, device)


@dataclass
class TargetLabels:
    """Turns the camera labels of query and gallery batches of one target into the rows that a network has learned."""

    target: str
    loaders: Mapping[str, Any]
    sources: Sequence[str]

    def of(self, model: nn.Module, camids: Tensor, batch: Mapping[str, Any], device: torch.device) -> Labels:
        """What ``model`` wants after the images of a batch: rows of cameras and views ``[B]``, or nothing."""
        return _labels(_side(model), lambda side: self._rows(side, camids.tolist()), batch, device)

    def announce_unseen(self, model: nn.Module) -> None:
        """Warn of cameras that training has not seen, unless a warning was given already."""
        side = _side(model)
        if side is None or not side.cameras:
            return
        numbers = sorted({item[2] for loader in self.loaders.values() for item in loader.dataset.data})
        rows = self._rows(side, numbers).tolist()
        unseen = [str(number) for number, row in zip(numbers, rows, strict=True) if row == UNSEEN]
        if unseen:
            which = "all cameras" if len(unseen) == len(numbers) else f"cameras {', '.join(unseen)} (counted from 0)"
            unwrap(model).side_information.warn(f"{which} of {self.target} are unseen in training")

    def _rows(self, side: SideInformationSpec, numbers: Sequence[int]) -> Tensor:
        table, target = _table(side, self.sources), self.target
        if target not in table:
            # A copy of a training set holds the same photographs, so it says whose cameras it has.
            target = getattr(self.loaders["query"].dataset, "cameras_of", target)
        return target_rows(target, numbers, table)


def _table(side: SideInformationSpec, sources: Sequence[str]) -> CameraTable:
    if side.camera_table or len(sources) != 1:
        return side.camera_table
    return {sources[0]: range(side.cameras)}


def _side(model: nn.Module) -> SideInformationSpec | None:
    model = unwrap(model)
    return model.spec.side_information if getattr(model, "uses_cameras", False) else None


def _labels(
    side: SideInformationSpec | None,
    rows: Callable[[SideInformationSpec], Tensor],
    batch: Mapping[str, Any],
    device: torch.device,
) -> Labels:
    if side is None:
        return ()
    cameras = rows(side).to(device) if side.cameras else None
    views = batch.get(VIEWS) if side.views else None
    return cameras, None if views is None else torch.as_tensor(views).to(device)
