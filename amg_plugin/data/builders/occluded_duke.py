"""Builds Occluded-DukeMTMC (Miao et al., ICCV 2019) from a user's own DukeMTMC-reID and the published name lists.

Nothing is downloaded. The data set appears under its name only when it is complete.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from amg_plugin.data.layout import GALLERY_DIR, MARKET_FOLDERS, PARTS, FolderLayout, count_differences, first_of
from amg_plugin.data.writing import copy_image, new_dataset, refuse_existing
from amg_plugin.errors import DataError, RunError

logger = logging.getLogger(__name__)

DATASET_DIR = "occluded_duke"
OFFICIAL = {"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)}
"""Part -> published numbers of images and identities."""

_SOURCE = FolderLayout(
    "DukeMTMC-reID", (".", "dukemtmc-reid", "DukeMTMC-reID"), advice="give the folder that its archive is unpacked into"
)
_FALLBACK = GALLERY_DIR  # Occluded-DukeMTMC moves images from Duke's gallery to query and training
_NAME = re.compile(r"(\d{4})_c\d_f\d{7}\.jpg")
_MAX_LIST_BYTES = 64 * 2**20
_LISTED = 10  # names in a message

Lists = Mapping[str, Sequence[str]]
"""Part -> file names."""
Sizes = dict[str, dict[str, int]]
"""Folder of DukeMTMC-reID -> name -> bytes."""
Plan = dict[str, list[tuple[str, str]]]
"""Part -> folder of DukeMTMC-reID and name of every image."""


@dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        folder: The data set.
        counts: Part -> numbers of images and identities.
        moved: Part -> number of images that are in another split of DukeMTMC-reID.
    """

    folder: Path
    counts: dict[str, tuple[int, int]]
    moved: dict[str, int]

    @property
    def is_official(self) -> bool:
        """Whether the counts are the published ones."""
        return self.counts == OFFICIAL


def read_lists(folder: str | Path) -> dict[str, list[str]]:
    """Reads ``train.list``, ``query.list`` and ``gallery.list``, one file name a line.

    Args:
        folder: The folder of the lists, or the one above it as the authors publish them (``Occluded_Duke``).

    Returns:
        Part -> names.

    Raises:
        DataError: A list is missing, empty or not text, repeats a name, or has lines that do not name a file of
            DukeMTMC-reID.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"The folder of lists {folder} does not exist.")
    files = [f"{part}.list" for part in PARTS]
    inner = folder / "Occluded_Duke"
    if not any((folder / name).is_file() for name in files) and inner.is_dir():
        folder = inner
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:_LISTED]) or "nothing"
        raise DataError(f"{folder} lacks {', '.join(missing)} (expected are {', '.join(files)}); found there: {found}.")
    return {part: _read_list(folder / f"{part}.list") for part in PARTS}


def _read_list(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise DataError(
                f"The list {path} is larger than {_MAX_LIST_BYTES >> 20} MiB; it cannot be a list of names."
            )
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {path} cannot be read: {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"The list {path} holds no names.")
    # Full match: a name with a folder in it, such as ../x.jpg, could reach outside the source and the target.
    bad = [name for name in names if not _NAME.fullmatch(name)]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(names)} lines of the list {path} are not file names of DukeMTMC-reID "
            f"(PPPP_cC_fFFFFFFF.jpg, without a folder): {first_of([repr(name[:80]) for name in bad])}."
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"The list {path} repeats {len(twice)} names: {first_of(twice)}.")
    return names


def build_occluded_duke(source: str | Path, lists: str | Path, root: str | Path, link: bool = False) -> Built:
    """Builds ``root/occluded_duke``.

    Args:
        source: DukeMTMC-reID's folder, or one above it.
        lists: Folder with the name lists.
        root: Data root; made if it does not exist.
        link: Make hard links instead of copies; the source must be on the same file system.

    Returns:
        The folder and its counts.

    Raises:
        DataError: The target exists, or source or lists cannot be used; listed images that are missing are named.
        InputError: The data root cannot be written.
        RunError: The data set cannot be written.
    """
    target = Path(root).expanduser().resolve() / DATASET_DIR
    refuse_existing(target)
    names = read_lists(lists)
    duke = _find_source(Path(source).expanduser())
    sizes = {folder: _sizes(duke / folder) for folder in MARKET_FOLDERS.values()}
    plan = _plan(duke, sizes, names)
    with new_dataset(target, link) as work:
        _write(duke, plan, work, link)
        _verify(work, sizes, plan)
    built = Built(
        target,
        {part: _count(names[part]) for part in PARTS},
        {part: sum(folder != own for folder, _ in plan[part]) for part, own in MARKET_FOLDERS.items()},
    )
    if differences := count_differences(built.counts, OFFICIAL):
        logger.warning(
            "The lists are not the official ones of Occluded-DukeMTMC: %s. Figures from this data set cannot be "
            "compared with published ones.",
            differences,
        )
    return built


def _find_source(source: Path) -> Path:
    if source.is_file():
        raise DataError(f"The source {source} is a file, not a folder; unpack the archive and give the folder.")
    return _SOURCE.locate(source)


def _sizes(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}.") from error


def _plan(duke: Path, sizes: Sizes, names: Lists) -> Plan:
    """Where every image is; complains of all that cannot be copied before anything is written."""
    plan: Plan = {part: [] for part in PARTS}
    missing: list[str] = []
    for part, own in MARKET_FOLDERS.items():
        for name in names[part]:
            folder = own if name in sizes[own] else _FALLBACK
            if name in sizes[folder]:
                plan[part].append((folder, name))
            else:
                missing.append(f"{part}: {name}")
    if missing:
        raise DataError(
            f"{len(missing):,} of {sum(map(len, names.values())):,} listed images are missing in {duke} (looked for in "
            f"their own split and in {_FALLBACK}): {first_of(missing, _LISTED)}."
        )
    if empty := [name for part in PARTS for folder, name in plan[part] if not sizes[folder][name]]:
        raise DataError(f"{len(empty)} images in {duke} are empty: {first_of(empty, _LISTED)}.")
    return plan


def _write(duke: Path, plan: Plan, work: Path, link: bool) -> None:
    with tqdm(total=sum(map(len, plan.values())), desc=f"building {DATASET_DIR}", unit="image", disable=None) as bar:
        for part, own in MARKET_FOLDERS.items():
            (work / own).mkdir()
            for folder, name in plan[part]:
                copy_image(duke / folder / name, work / own / name, link)
                bar.update()


def _verify(work: Path, sizes: Sizes, plan: Plan) -> None:
    """Compares what was written with the lists: names and sizes."""
    for part, own in MARKET_FOLDERS.items():
        written, wanted = _sizes(work / own), {name: sizes[folder][name] for folder, name in plan[part]}
        if wrong := sorted(name for name in wanted if wanted[name] != written.get(name)):
            raise RunError(f"{len(wrong)} images of {part} were not written as they are: {first_of(wrong)}.")


def _count(names: Sequence[str]) -> tuple[int, int]:
    return len(names), len({name.partition("_")[0] for name in names})
