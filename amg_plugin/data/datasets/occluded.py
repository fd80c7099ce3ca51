"""The plugin's data sets: the drawn one, occluded and partial ones; ``docs/datasets.md`` says where each comes from.

The classes are module-level, so that data loader workers started by ``spawn`` (Windows, macOS) can unpickle them.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import ClassVar

from amg_plugin.data.builders import OFFICIAL
from amg_plugin.data.datasets.local import Item, LocalDataset, Named, TwoCameraDataset
from amg_plugin.data.layout import FolderLayout, first_of, identity_and_camera, name_of
from amg_plugin.data.occlusion.masks import MANIFEST
from amg_plugin.errors import DataError


class SyntheticReID(LocalDataset):
    """People drawn as coloured figures, see :mod:`amg_plugin.data.synthetic.reid`."""

    layout = FolderLayout("synthetic_reid", ("synthetic_reid",), advice="`amg-reid demo` draws it")


class OccludedDuke(LocalDataset):
    """Occluded-DukeMTMC (Miao et al., ICCV 2019): every query is occluded, and a tenth of the gallery.

    ``amg-reid build-occluded-duke`` makes it from a user's own DukeMTMC-reID.
    """

    layout = FolderLayout(
        "occluded_duke",
        ("occluded_duke", "Occluded_Duke", "Occluded-DukeMTMC"),
        advice="`amg-reid build-occluded-duke` builds it from DukeMTMC-reID, see docs/datasets.md",
    )
    official: ClassVar = OFFICIAL


class OccludedMarket1501(LocalDataset):
    """An occluded copy of a data set with Market-1501's folders and names.

    Junk images (identity -1) are left out and distractors (0000) stay in the gallery, as with torchreid's Market-1501.
    """

    _junk_pids: ClassVar = [0, -1]
    layout = FolderLayout(
        "occluded_market1501",
        ("occluded_market1501",),
        advice="`amg-reid occlude` makes it from Market-1501, see docs/datasets.md",
    )
    naming = "PPPP_cCsS_FFFFFF_NN.jpg (identity, camera, sequence, frame, number)"

    @functools.cached_property
    def cameras_of(self) -> str:
        """Name of the data set that this is a copy of, whose cameras it has; its own if none is recorded."""
        manifest = Path(self.query[0][0]).parent.parent / MANIFEST
        try:
            return str(json.loads(manifest.read_text(encoding="utf-8"))["source"]["name"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.layout.name


class OccludedREID(TwoCameraDataset):
    """Occluded-REID (Zhuo et al., ICME 2018): 200 identities with 5 occluded and 5 whole-body images each."""

    layout = FolderLayout(
        "occluded_reid",
        ("occluded_reid", "Occluded_REID", "OccludedREID", "Occluded-REID"),
        {"query": ("occluded_body_images", "query"), "gallery": ("whole_body_images", "gallery")},
    )
    official: ClassVar = {"query": (1_000, 200), "gallery": (1_000, 200)}
    nested = True


class PartialREID(TwoCameraDataset):
    """Partial-REID (Zheng et al., ICCV 2015): 60 identities, 5 partial queries and 5 whole-body gallery images each.

    The uncropped originals of the queries (``occluded_body_images``), which some copies hold as well, are not read.
    """

    layout = FolderLayout(
        "partial_reid",
        ("partial_reid", "Partial_REID", "PartialREID", "Partial-REID"),
        {"query": ("partial_body_images", "query"), "gallery": ("whole_body_images", "gallery")},
    )
    official: ClassVar = {"query": (300, 60), "gallery": (300, 60)}
    nested = True


class PDukeMTMC(TwoCameraDataset):
    """P-DukeMTMC-reID (Zhuo et al., ICME 2018): occluded queries, whole-body gallery.

    Copies with different counts are around, so counts are shown, not checked. Cameras are those that the names tell
    (``PPPP_cC_*.jpg``); where none tells one, query and gallery count as two cameras.
    """

    layout = FolderLayout(
        "p_dukemtmc",
        ("p_dukemtmc", "P-DukeMTMC-reid", "P-DukeMTMC-reID", "P_DukeMTMC-reID"),
        {
            "train": ("train",),
            "query": ("query", "test/occluded_body_images", "test/query"),
            "gallery": ("gallery", "test/whole_body_images", "test/gallery"),
        },
    )
    nested = True
    naming = "PPPP_cC_*.jpg or PPPP_*.jpg (identity, camera)"

    @staticmethod
    def _parse(name: str) -> tuple[int, int | None] | None:
        if identity_and_camera(name):
            return LocalDataset._parse(name)
        return TwoCameraDataset._parse(name)

    def _with_cameras(self, folder: Path, found: dict[str, list[Named]]) -> dict[str, list[Item]]:
        unknown = [path for named in found.values() for path, _, camera in named if camera is None]
        if not unknown:
            return LocalDataset._with_cameras(self, folder, found)
        total = sum(map(len, found.values()))
        if len(unknown) < total:
            raise DataError(
                f"{len(unknown)} of {total} images in {folder} have no camera in their names (PPPP_cC_*.jpg), the "
                f"others do: {first_of(list(map(name_of, unknown)))}."
            )
        return super()._with_cameras(folder, found)
