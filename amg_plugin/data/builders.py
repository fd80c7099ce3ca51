"""Data sets made of images that the user has: development splits, and Occluded-DukeMTMC (Miao et al., ICCV 2019).

A split is a list of names, so that others can repeat a measurement without images being passed around. All images come
from the training part of Market-1501, whose identities are divided again; the result has its layout and is not its test
protocol. Occluded-DukeMTMC comes from DukeMTMC-reID and the published name lists. Nothing is downloaded, and a data set
appears under its name only when it is complete.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amg_plugin.config import configs_root
from amg_plugin.data.layout import (
    GALLERY_DIR,
    MARKET_DIR,
    MARKET_FOLDERS,
    MARKET_IMAGES_DIR,
    PARTS,
    TRAIN_DIR,
    FolderLayout,
    count_differences,
    first_of,
    new_dataset,
    refuse_existing,
    write_parts,
)
from amg_plugin.errors import DataError, RunError
from amg_plugin.utils.files import expanded, kind_of, read_json, read_text

logger = logging.getLogger(__name__)

_LISTED = 10  # names in a message

# Development splits ---------------------------------------------------------------------------------------------------

FORMAT, VERSION = "amg_plugin.split", 1
DEFAULT_SPLIT = "market1501_dev_250_100"
"""The shipped split: 250 training and 100 test identities of Market-1501's training set."""


@dataclass(frozen=True)
class Split:
    """File names of each part."""

    name: str
    description: str
    train: tuple[str, ...]
    query: tuple[str, ...]
    gallery: tuple[str, ...]

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part -> names."""
        return {part: getattr(self, part) for part in PARTS}

    @property
    def names(self) -> list[str]:
        """Names of all parts."""
        return [name for names in self.parts.values() for name in names]


def _find_split(path_or_name: str | Path) -> Path:
    path = expanded(path_or_name)
    if kind_of(path) == "file":
        return path
    folder = configs_root() / "splits"
    shipped = folder / f"{path_or_name}.json"
    if kind_of(shipped) == "file":
        return shipped
    names = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
    raise DataError(f"There is no split '{path_or_name}': give a JSON file or the name of a shipped one ({names}).")


def read_split(path_or_name: str | Path = DEFAULT_SPLIT) -> Split:
    """Read a split.

    Raises:
        DataError: The file is missing or not a split, or lists a name twice.
    """
    path = _find_split(path_or_name)
    content = read_json(path, "split", DataError)
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise DataError(f"{path} is not a split: it needs 'format' {FORMAT!r} and 'version' {VERSION}.")
    split = Split(
        name=str(content.get("name", path.stem)),
        description=str(content.get("description", "")),
        **{part: _checked_names(content.get(part), part, path) for part in PARTS},
    )
    if twice := len(split.names) - len(set(split.names)):
        raise DataError(f"The split {path} lists {twice} names more than once.")
    return split


def _checked_names(names: Any, part: str, path: Path) -> tuple[str, ...]:
    # A name with a folder in it could reach outside the source and the target.
    plain = isinstance(names, list) and all(
        isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0:") for name in names
    )
    if not plain or not names:
        raise DataError(f"'{part}' of the split {path} must be a list of one or more file names without folders.")
    return tuple(names)


def find_source(folder: str | Path) -> Path:
    """Find Market-1501's training images.

    Raises:
        DataError: There is no such folder; the message says where it was looked for.
    """
    folder = expanded(folder)
    if folder.name == TRAIN_DIR and folder.is_dir():
        return folder
    usual = Path(MARKET_DIR, MARKET_IMAGES_DIR)
    for below in (usual, MARKET_DIR, MARKET_IMAGES_DIR, "."):
        if (folder / below / TRAIN_DIR).is_dir():
            return folder / below / TRAIN_DIR
    raise DataError(
        f"Market-1501 is not in {folder}: expected {folder / usual / TRAIN_DIR}, or give the folder that holds "
        f"{TRAIN_DIR}."
    )


def write_split(market: str | Path, root: str | Path, split: Split, *, link: bool = False) -> Path:
    """Make the data set of a split below ``root``, where torchreid looks for Market-1501; it is complete or absent.

    ``market`` is the user's Market-1501, see :func:`find_source`; hard links need both on one file system.

    Returns:
        The folder of the data set, ``root/market1501``.

    Raises:
        DataError: The target exists, or images are missing.
        InputError: The data root cannot be written.
        RunError: The images cannot be written.
    """
    target = expanded(root) / MARKET_DIR
    refuse_existing(target)
    source = find_source(market)
    present = {entry.name for entry in os.scandir(source)}
    if missing := [name for name in split.names if name not in present]:
        raise DataError(
            f"{len(missing)} of the {len(split.names)} images of the split {split.name} are missing in {source}: "
            f"{first_of(missing, _LISTED)}."
        )
    with new_dataset(target, link) as work:
        images = {part: [source / name for name in names] for part, names in split.parts.items()}
        write_parts(work / MARKET_IMAGES_DIR, images, link)
    logger.info("%s: %d images", target, len(split.names))
    return target


# Occluded-DukeMTMC ---------------------------------------------------------------------------------------------------

DATASET_DIR = "occluded_duke"
OFFICIAL = {"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)}
"""Part -> published numbers of images and identities."""

_SOURCE = FolderLayout(
    "DukeMTMC-reID", (".", "dukemtmc-reid", "DukeMTMC-reID"), advice="give the folder that its archive is unpacked into"
)
_FALLBACK = GALLERY_DIR  # Occluded-DukeMTMC moves images from Duke's gallery to query and training
_NAME = re.compile(r"(\d{4})_c\d_f\d{7}\.jpg")
_MAX_LIST_BYTES = 64 * 2**20

Sizes = dict[str, dict[str, int]]
"""Folder of DukeMTMC-reID -> name -> bytes."""


@dataclass(frozen=True)
class Built:
    """What was built."""

    folder: Path
    counts: dict[str, tuple[int, int]]  # part -> images and identities
    moved: dict[str, int]  # part -> images that are in another split of DukeMTMC-reID

    @property
    def is_official(self) -> bool:
        """Whether the counts are the published ones."""
        return self.counts == OFFICIAL


def read_lists(folder: str | Path) -> dict[str, list[str]]:
    """Reads ``train.list``, ``query.list`` and ``gallery.list``, in ``folder`` or its ``Occluded_Duke``."""
    folder = expanded(folder)
    if not folder.is_dir():
        raise DataError(f"The folder of lists {folder} does not exist.")
    files = [f"{part}.list" for part in PARTS]
    inner = folder / "Occluded_Duke"
    if not any((folder / name).is_file() for name in files) and inner.is_dir():
        folder = inner
    if missing := [name for name in files if not (folder / name).is_file()]:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:_LISTED]) or "nothing"
        raise DataError(f"{folder} lacks {', '.join(missing)} (expected are {', '.join(files)}); found there: {found}.")
    return {part: _read_list(folder / f"{part}.list") for part in PARTS}


def _read_list(path: Path) -> list[str]:
    lines = read_text(path, "list", DataError, _MAX_LIST_BYTES).splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"The list {path} holds no names.")
    # Full match: a name with a folder in it, such as ../x.jpg, could reach outside the source and the target.
    if bad := [name for name in names if not _NAME.fullmatch(name)]:
        raise DataError(
            f"{len(bad)} of {len(names)} lines of the list {path} are not file names of DukeMTMC-reID "
            f"(PPPP_cC_fFFFFFFF.jpg, without a folder): {first_of([repr(name[:80]) for name in bad])}."
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"The list {path} repeats {len(twice)} names: {first_of(twice)}.")
    return names


def build_occluded_duke(source: str | Path, lists: str | Path, root: str | Path, link: bool = False) -> Built:
    """Builds ``root/occluded_duke`` from DukeMTMC-reID, in the folder ``source`` or below, and the folder of lists.

    Raises:
        DataError: The target exists, or source or lists cannot be used; listed images that are missing are named.
        InputError: The data root cannot be written.
        RunError: The data set cannot be written.
    """
    target = expanded(root).resolve() / DATASET_DIR
    refuse_existing(target)
    names = read_lists(lists)
    source = expanded(source)
    if source.is_file():
        raise DataError(f"The source {source} is a file, not a folder; unpack the archive and give the folder.")
    duke = _SOURCE.locate(source)
    sizes = {folder: _sizes(duke / folder) for folder in MARKET_FOLDERS.values()}
    plan = _plan(duke, sizes, names)
    with new_dataset(target, link) as work:
        write_parts(work, plan, link)
        for part, own in MARKET_FOLDERS.items():
            written, wanted = _sizes(work / own), {path.name: sizes[path.parent.name][path.name] for path in plan[part]}
            if wrong := sorted(name for name in wanted if wanted[name] != written.get(name)):
                raise RunError(f"{len(wrong)} images of {part} were not written as they are: {first_of(wrong)}.")
    built = Built(
        target,
        {part: (len(names[part]), len({name.partition("_")[0] for name in names[part]})) for part in PARTS},
        {part: sum(path.parent.name != own for path in plan[part]) for part, own in MARKET_FOLDERS.items()},
    )
    if differences := count_differences(built.counts, OFFICIAL):
        logger.warning(
            "The lists are not the official ones of Occluded-DukeMTMC: %s. Figures from this data set cannot be "
            "compared with published ones.",
            differences,
        )
    return built


def _sizes(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}.") from error


def _plan(duke: Path, sizes: Sizes, names: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """Where every image is; complains of all that cannot be copied before anything is written."""
    plan = {
        part: [duke / (own if name in sizes[own] else _FALLBACK) / name for name in names[part]]
        for part, own in MARKET_FOLDERS.items()
    }
    every = [(part, path, sizes[path.parent.name].get(path.name)) for part in PARTS for path in plan[part]]
    if missing := [f"{part}: {path.name}" for part, path, size in every if size is None]:
        raise DataError(
            f"{len(missing):,} of {sum(map(len, names.values())):,} listed images are missing in {duke} (looked for in "
            f"their own split and in {_FALLBACK}): {first_of(missing, _LISTED)}."
        )
    if empty := [path.name for _, path, size in every if not size]:
        raise DataError(f"{len(empty)} images in {duke} are empty: {first_of(empty, _LISTED)}.")
    return plan
