"""Development splits: smaller data sets made of file names of a data set that the user has.

A split is a list of names, so that others can repeat a measurement without images being passed around. All images come
from the training part of the source, whose identities are divided again; the result has the layout of Market-1501 and
is not its test protocol.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amg_plugin.config import configs_root
from amg_plugin.data.layout import MARKET_DIR, MARKET_FOLDERS, MARKET_IMAGES_DIR, PARTS, TRAIN_DIR, first_of
from amg_plugin.data.writing import copy_image, new_dataset, refuse_existing
from amg_plugin.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = "amg_plugin.split"
VERSION = 1
DEFAULT_SPLIT = "market1501_dev_250_100"
"""The shipped split: 250 training and 100 test identities of Market-1501's training set."""

_LISTED = 10  # missing files named in the message


@dataclass(frozen=True)
class Split:
    """File names of each part.

    Attributes:
        name: What the split is called.
        description: One sentence about it.
        train: Names of the training images.
        query: Names of the query images.
        gallery: Names of the gallery images.
    """

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


def find_split(path_or_name: str | Path) -> Path:
    """Return the file meant by a path, or by the name of a shipped split.

    Raises:
        DataError: There is no such file; the message lists the shipped splits.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    folder = configs_root() / "splits"
    shipped = folder / f"{path_or_name}.json"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
    raise DataError(f"There is no split '{path_or_name}': give a JSON file or the name of a shipped one ({names}).")


def read_split(path_or_name: str | Path = DEFAULT_SPLIT) -> Split:
    """Read a split.

    Args:
        path_or_name: A JSON file, or the name of a shipped split.

    Raises:
        DataError: The file is missing or not a split, or lists a name twice.
    """
    path = find_split(path_or_name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The split {path} cannot be read: {error}.") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise DataError(f"{path} is not a split: it needs 'format' {FORMAT!r} and 'version' {VERSION}.")
    split = Split(
        name=str(content.get("name", path.stem)),
        description=str(content.get("description", "")),
        **{part: _checked_names(content.get(part), part, path) for part in PARTS},
    )
    twice = len(split.names) - len(set(split.names))
    if twice:
        raise DataError(f"The split {path} lists {twice} names more than once.")
    return split


def _checked_names(names: Any, part: str, path: Path) -> tuple[str, ...]:
    # A name with a folder in it could reach outside the source and the target.
    if not isinstance(names, list) or not names or not all(_is_plain_name(name) for name in names):
        raise DataError(f"'{part}' of the split {path} must be a list of one or more file names without folders.")
    return tuple(names)


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0:")


def find_source(folder: str | Path) -> Path:
    """Find Market-1501's training images.

    Args:
        folder: The data root (``--root`` of the other commands), Market-1501's own folder, or ``bounding_box_train``.

    Returns:
        The folder ``bounding_box_train``.

    Raises:
        DataError: There is no such folder; the message says where it was looked for.
    """
    folder = Path(folder).expanduser()
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


def check_complete(source: Path, split: Split) -> None:
    """Check that every image of a split is there.

    Raises:
        DataError: Some are missing; the message says how many and names the first ten.
    """
    present = {entry.name for entry in os.scandir(source)}
    missing = [name for name in split.names if name not in present]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(split.names)} images of the split {split.name} are missing in {source}: "
            f"{first_of(missing, _LISTED)}."
        )


def write_split(market: str | Path, root: str | Path, split: Split, *, link: bool = False) -> Path:
    """Make the data set of a split below ``root``, where torchreid looks for Market-1501; it is complete or absent.

    Args:
        market: The user's Market-1501, see :func:`find_source`.
        root: Data root of the new data set; made if missing. It must not be the root of the user's Market-1501.
        split: What goes where.
        link: Make hard links instead of copies; both folders have to be on the same file system.

    Returns:
        The folder of the data set, ``root/market1501``.

    Raises:
        DataError: The target exists, or images are missing.
        InputError: The data root cannot be written.
        RunError: The images cannot be written.
    """
    target = Path(root).expanduser() / MARKET_DIR
    refuse_existing(target)
    source = find_source(market)
    check_complete(source, split)
    with new_dataset(target, link) as work:
        for part, names in split.parts.items():
            folder = work / MARKET_IMAGES_DIR / MARKET_FOLDERS[part]
            folder.mkdir(parents=True)
            for name in tqdm(names, desc=part, unit="image", leave=False, disable=None):
                copy_image(source / name, folder / name, link)
    logger.info("%s: %d images", target, len(split.names))
    return target
