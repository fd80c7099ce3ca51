"""The plugin's data sets: read from a local folder, evaluated by torchreid as any other, never downloaded.

``docs/datasets.md`` says where each comes from. The classes are module-level, so that data loader workers started by
``spawn`` (Windows, macOS) can unpickle them.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from amg_plugin import compat
from amg_plugin.data.builders import OFFICIAL
from amg_plugin.data.layout import (
    FilesError,
    FolderLayout,
    count_differences,
    first_of,
    identity_and_camera,
    list_part,
    name_of,
)
from amg_plugin.data.occlusion.masks import MANIFEST
from amg_plugin.errors import DataError, InputError
from amg_plugin.utils.files import read_json

logger = logging.getLogger(__name__)

Item = tuple[str, int, int, int]
"""Path of the image, identity, camera (both from 0), data set."""
Named = tuple[str, int, int | None]
"""Path of the image, identity, and the camera that its name tells."""

_IDENTITY = re.compile(r"(\d+)[_.]")
_JUNK = -1  # Market-1501's detections that show nobody


class LocalDataset(compat.torchreid().data.ImageDataset):
    """A data set in a local folder; a subclass says how its folders and files are named.

    Args:
        root: Data root.
        mode: ``train``, ``query`` or ``gallery``; None takes ``train``, or ``query`` where there is no training part.
        combineall: Train on query and gallery images as well.
        verbose: Print torchreid's summary.
        **kwargs: What torchreid gives every image data set (``transform``, ``k_tfm``, ...).

    Raises:
        DataError: The data set is missing, laid out otherwise or misnamed, or has no training part and ``mode`` is
            ``train``. Nothing is ever downloaded.
    """

    layout: ClassVar[FolderLayout]
    official: ClassVar[Mapping[str, tuple[int, int]]] = {}
    """Part -> published numbers of images and identities; a warning says where they differ."""
    nested: ClassVar[bool] = False
    """Whether each part has a folder per identity."""
    naming: ClassVar[str] = "PPPP_cC_*.jpg (identity, camera)"
    """How images are named, for messages."""

    def __init__(
        self,
        root: str | Path = "",
        mode: str | None = None,
        combineall: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ):
        folder = self.layout.locate(root)
        parts = self.read(folder)
        #: Path -> the identity that a name says.
        self.identities = {item[0]: item[1] for items in parts.values() for item in items}
        train, query, gallery = relabelled(parts.get("train", [])), parts["query"], parts["gallery"]
        if mode is None:
            mode = "train" if train else "query"
        if mode == "train" and not (train or combineall):
            raise DataError(
                f"The data set {self.layout.name} has no training part, so it cannot be a source (data.sources, -s); "
                "make it a target (data.targets, -t) and train on another data set."
            )
        # torchreid's constructor looks at the first image of each part, so a missing one is emptied after it.
        super().__init__(train or query[:1], query, gallery, mode=mode, verbose=False, **kwargs)
        if not train:
            self.train = []
            self.num_train_pids = self.num_train_cams = self.num_datasets = 0
        self.verbose = verbose
        self.combineall = combineall
        if combineall and mode == "train":
            self._check_combination(folder)
            self.combine_all()
        self.data = getattr(self, mode)
        self._warn(folder, parts)
        if verbose:
            self.show_summary()

    def read(self, folder: Path) -> dict[str, list[Item]]:
        """Lists the images of every part, with the identities that they say."""
        found = {part: self._read_part(path) for part, path in self.layout.part_folders(folder).items()}
        return self._with_cameras(folder, found)

    def _read_part(self, folder: Path) -> list[Named]:
        named, bad = [], []
        images = list_part(folder, self.nested)
        for path in images:
            parsed = self._parse(name_of(path))
            if parsed is None:
                bad.append(path)
            elif parsed[0] != _JUNK:
                named.append((path, *parsed))
        if bad:
            raise FilesError(f"{len(bad)} of {len(images)} images in {folder} are not named {self.naming}", bad)
        if not named:
            raise DataError(f"{folder} holds nothing but junk images (identity {_JUNK}).")
        return named

    @staticmethod
    def _parse(name: str) -> tuple[int, int | None] | None:
        """Identity and camera (from 0) that a name tells; None for a name of another kind."""
        said = identity_and_camera(name)
        if said is None or said[0] < _JUNK or said[1] < 1:
            return None
        return said[0], said[1] - 1

    def _with_cameras(self, folder: Path, found: dict[str, list[Named]]) -> dict[str, list[Item]]:
        return {part: [(path, pid, camera or 0, 0) for path, pid, camera in named] for part, named in found.items()}

    def _check_combination(self, folder: Path) -> None:
        missing = {item[1] for item in self.query} - {item[1] for item in self.gallery} - set(self._junk_pids)
        if missing:
            raise DataError(
                f"combineall needs every query identity in the gallery, but {len(missing)} of {folder} are not "
                f"({first_of(sorted(map(str, missing)))})."
            )

    def _warn(self, folder: Path, parts: Mapping[str, list[Item]]) -> None:
        """Says where the counts are not the published ones, and which queries torchreid will leave out."""
        counts = {part: (len(items), len({item[1] for item in items})) for part, items in parts.items()}
        if differences := count_differences(counts, self.official):
            _warn_once(
                f"{folder} is not the published {self.layout.name}: {differences}. "
                "Figures from it cannot be compared with published ones."
            )
        if alone := queries_without_match(parts["query"], parts["gallery"]):
            _warn_once(
                f"{len(alone)} of {len(parts['query'])} queries in {folder} have no image of their identity from "
                f"another camera in the gallery and do not count: {first_of([name_of(item[0]) for item in alone])}"
            )


class TwoCameraDataset(LocalDataset):
    """A data set without camera labels: query and gallery count as two cameras, so that no match is filtered out."""

    naming = "PPP_*.tif or .jpg (identity)"

    @staticmethod
    def _parse(name: str) -> tuple[int, int | None] | None:
        match = _IDENTITY.match(name)
        return None if match is None else (int(match[1]), None)

    def _with_cameras(self, folder: Path, found: dict[str, list[Named]]) -> dict[str, list[Item]]:
        return {
            part: [(path, pid, int(part == "gallery"), 0) for path, pid, _ in named] for part, named in found.items()
        }


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
            return str(read_json(manifest)["source"]["name"])
        except (InputError, KeyError, TypeError):
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


def usable_items(items: Sequence[Item], unusable: Collection[str]) -> list[Item]:
    """Items whose file is not among the ``unusable`` ones."""
    return [item for item in items if item[0] not in unusable]


def relabelled(train: Sequence[Item]) -> list[Item]:
    """Training items with labels from 0 to n - 1 in the order of the old ones.

    torchreid's classifier has one output per label. Cameras keep their numbers, which query and gallery share.
    """
    labels = {pid: label for label, pid in enumerate(sorted({item[1] for item in train}))}
    return [(item[0], labels[item[1]], *item[2:]) for item in train]


def queries_without_match(query: Iterable[Item], gallery: Iterable[Item]) -> list[Item]:
    """Queries whose identity no other camera has in the gallery; torchreid's evaluator leaves them out silently."""
    cameras: defaultdict[int, set[int]] = defaultdict(set)
    for item in gallery:
        cameras[item[1]].add(item[2])
    return [item for item in query if not cameras[item[1]] - {item[2]}]


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    """Logs a warning; torchreid opens each data set several times."""
    logger.warning("%s", message)
