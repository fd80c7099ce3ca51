"""Where a data set's images are: folder and file names, images listed, and new data sets written.

Messages show what is expected and found. A folder that is written is complete or absent.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amg_plugin.errors import DataError, RunError
from amg_plugin.utils.files import check_writable, expanded, new_folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""What counts as an image, in upper or lower case; other files are left alone."""
ANY_SUFFIX = (*IMAGE_SUFFIXES, ".jfif", ".jpe", ".gif", ".ppm", ".pgm", ".heic", ".heif", ".avif", ".jp2", ".jxl")
"""With kinds that no data set here reads; they are named where they would be missed."""

PARTS = ("train", "query", "gallery")
"""Parts of a data set."""
TEST_PARTS = ("query", "gallery")
"""Those that a test reads."""

# Market-1501 (Zheng et al., ICCV 2015), whose folders and names many data sets have.
TRAIN_DIR, QUERY_DIR, GALLERY_DIR = "bounding_box_train", "query", "bounding_box_test"
MARKET_FOLDERS = {"train": TRAIN_DIR, "query": QUERY_DIR, "gallery": GALLERY_DIR}
"""Part -> its folder."""
MARKET_PARTS = {part: (folder,) for part, folder in MARKET_FOLDERS.items()}
"""The same as a :class:`FolderLayout` has it."""
MARKET_DIR = "market1501"
"""Folder below the data root in which torchreid looks for it."""
MARKET_IMAGES_DIR = "Market-1501-v15.09.15"
"""The folder of the published archive, inside :data:`MARKET_DIR`."""
MARKET_EXAMPLE = "0002_c1s1_000451_03.jpg"
"""How its images are named: identity, camera and sequence, frame, number."""

RENAME = "Rename them, or read the data as folder:NAME, which takes any numbers and formats (docs/datasets.md)"
"""What can be done about files that a data set's rules do not let through."""

_IDENTITY_AND_CAMERA = re.compile(r"(-?\d+)_c(\d+)")
_SHOWN = 8  # entries of a folder named in a message


def market_name(pid: int, camera: int, frame: int, number: int) -> str:
    """Name of an image as Market-1501 has them, sequence 1; cameras count from 1."""
    return f"{pid:04d}_c{camera}s1_{frame:06d}_{number:02d}.jpg"


def identity_and_camera(name: str) -> tuple[int, int] | None:
    """Identity and camera (from 1) that a name of the kind ``PPPP_cC...`` says; None for one of another kind."""
    match = _IDENTITY_AND_CAMERA.match(name)
    return None if match is None else (int(match[1]), int(match[2]))


@dataclass(frozen=True)
class FolderLayout:
    """Folders of a data set: those below the data root that may hold it, the usual one first, and those of its parts.

    Each of the former may hold the parts directly or in one folder of its own, as unpacked archives do.
    """

    name: str
    folders: tuple[str, ...]
    # Part -> the names its folder may have, the usual one first.
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MARKET_PARTS)
    # What a user without the data set can do; ends the message about a missing one.
    advice: str = "docs/datasets.md says where it comes from"

    def locate(self, root: str | Path) -> Path:
        """Finds the folder that holds every part.

        Raises:
            DataError: There is none; the message shows what was expected and what was found.
        """
        root = expanded(root).resolve()
        there = [folder for folder in dict.fromkeys(root / name for name in self.folders) if folder.is_dir()]
        for folder in there:
            if self._is_complete(folder):
                return folder
            inner = [entry for entry in _subfolders(folder) if self._is_complete(entry)]
            if len(inner) == 1:
                return inner[0]
            if inner:
                names = ", ".join(path.name for path in inner)
                raise DataError(
                    f"The data set {self.name} is in {folder} more than once ({names}); leave one of them there."
                )
        usual = root / self.folders[0]
        expected = f"{usual} with the folders {', '.join(map(_either, self.parts.values()))}"
        if there:
            found = "; ".join(f"{folder} holds {_listing(folder)}" for folder in there)
        else:
            found = f"{usual} does not exist"
            if usual != root:
                found += f"; {root} {f'holds {_listing(root)}' if root.is_dir() else 'does not exist'}"
        raise DataError(f"The data set {self.name} is expected in {expected}; found: {found} ({self.advice}).")

    def part_folders(self, folder: Path) -> dict[str, Path]:
        """Part -> its folder inside ``folder``, which :meth:`locate` found."""
        return {
            part: next(path for path in (folder / name for name in names) if path.is_dir())
            for part, names in self.parts.items()
        }

    def _is_complete(self, folder: Path) -> bool:
        return all(any((folder / name).is_dir() for name in names) for names in self.parts.values())


class FilesError(DataError):
    """Files that cannot be used, with all of their names.

    Attributes:
        text: What is wrong, a clause without a full stop.
        files: The files, with more on each if there is any.
        remedy: What can be done.
    """

    def __init__(self, text: str, files: Sequence[str], remedy: str = "") -> None:
        self.text, self.files, self.remedy = text, tuple(files), remedy
        names = [name_of(file) if file.startswith(os.sep) else file for file in files]
        super().__init__(f"{text}: {first_of(names)}.{f' {remedy}.' if remedy else ''}")


def image_files(folder: str | Path, nested: bool = True, suffixes: tuple[str, ...] = ANY_SUFFIX) -> list[str]:
    """Paths of the image files in a folder (and below, if ``nested``), in no order, hidden ones left out.

    Raises:
        DataError: The folder cannot be read.
    """
    images: list[str] = []
    folders = [str(folder)]
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(suffixes):
                        images.append(entry.path)
                    elif nested and entry.is_dir():
                        folders.append(entry.path)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}.") from error
    return images


def list_images(folder: str | Path, nested: bool = False) -> list[str]:
    """Paths of the images in a folder (and its subfolders, if ``nested``), sorted.

    Raises:
        DataError: There are none, or the folder cannot be read.
    """
    images = image_files(folder, nested, IMAGE_SUFFIXES)
    if not images:
        raise DataError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); found there: {_listing(Path(folder))}."
        )
    images.sort()
    return images


def list_part(folder: str | Path, nested: bool = False) -> list[str]:
    """As :func:`list_images`, for a part of a data set, of which no image may be missed.

    Raises:
        FilesError: There are images of another kind, or in folders that are not looked into.
        DataError: See :func:`list_images`.
    """
    if unseen := sorted(set(image_files(folder)) - set(image_files(folder, nested, IMAGE_SUFFIXES))):
        inside = "" if nested else " directly in that folder"
        text = f"{len(unseen)} image files in {folder} are not read; read are {', '.join(IMAGE_SUFFIXES)}{inside}"
        raise FilesError(text, unseen, RENAME)
    return list_images(folder, nested)


def name_of(path: str) -> str:
    """The last part of a path; quicker than a Path object, which counts for tens of thousands."""
    return path.rpartition(os.sep)[2]


def first_of(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list and how many more there are, for messages."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def count_differences(counts: Mapping[str, tuple[int, int]], official: Mapping[str, tuple[int, int]]) -> str:
    """Where numbers of images and identities by part are not the published ones, for messages; empty if they are."""
    return "; ".join(
        f"{part} has {counts[part][0]:,} images of {counts[part][1]:,} identities instead of {images:,} of "
        f"{identities:,}"
        for part, (images, identities) in official.items()
        if counts[part] != (images, identities)
    )


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (or {', '.join(names[1:])})"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:  # the message that follows says so
        return []


def _listing(folder: Path) -> str:
    """What a folder holds, in short."""
    try:
        names = sorted(path.name for path in folder.iterdir())
        shown = [f"{name}/" if (folder / name).is_dir() else name for name in names[:_SHOWN]]
    except OSError as error:
        return f"nothing readable ({error.strerror})"
    if len(names) > _SHOWN:
        shown.append(f"and {len(names) - _SHOWN} more")
    return ", ".join(shown) or "nothing"


def refuse_existing(target: Path) -> None:
    """Refuse a target that exists, be it a dangling link."""
    if os.path.lexists(target):
        raise DataError(f"{target} exists already and is not changed; remove it or choose another place.")


@contextlib.contextmanager
def new_dataset(target: Path, link: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` at the end of the ``with`` block, unless it fails.

    Raises:
        InputError: The folder above ``target`` cannot be written.
        RunError: Something in the block cannot be written.
    """
    check_writable(target.parent, "The data root")
    try:
        with new_folder(target) as work:
            yield work
    except OSError as error:
        hint = "; without --link images are copied" if link else ""
        raise RunError(f"The data set could not be written to {target}: {error}{hint}.") from error


def write_parts(folder: Path, images: Mapping[str, Sequence[Path]], link: bool) -> None:
    """Copy or link the images of each part into its folder, named as Market-1501's, below ``folder``."""
    from tqdm import tqdm  # a device that reads these names has no tqdm

    with tqdm(total=sum(map(len, images.values())), desc="writing", unit="image", disable=None) as bar:
        for part, sources in images.items():
            target = folder / MARKET_FOLDERS[part]
            target.mkdir(parents=True)
            for source in sources:
                copy_image(source, target / source.name, link)
                bar.update()


def copy_image(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file, or make a hard link to it."""
    if link:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
