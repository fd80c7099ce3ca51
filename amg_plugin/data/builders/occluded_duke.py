"""Builds Occluded-DukeMTMC (Miao et al., ICCV 2019) from a user's own DukeMTMC-reID and the published name lists.

Nothing is downloaded. The data set appears under its name only when it is complete: it is made in a temporary folder
beside the target, which is renamed at the end and removed if anything goes wrong.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from amg_plugin.data.builders.image_sources import ImageSource, open_source
from amg_plugin.data.layout import first_of
from amg_plugin.errors import DataError, RunError

logger = logging.getLogger(__name__)

DATASET_DIR = "occluded_duke"
PARTS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
"""Part -> its folder, in DukeMTMC-reID and in what is built. Its list is named ``PART.list``."""
OFFICIAL = {"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)}
"""Part -> published numbers of images and identities."""

MAX_IMAGE_BYTES = 16 * 2**20
"""Largest image accepted; those of DukeMTMC-reID are far below 1 MiB."""
MAX_TOTAL_BYTES = 8 * 2**30
"""Most that all images may hold together."""

_FALLBACK = "bounding_box_test"  # Occluded-DukeMTMC moves images from Duke's gallery to query and training
_NAME = re.compile(r"(\d{4})_c\d_f\d{7}\.jpg")
_MAX_LIST_BYTES = 64 * 2**20
_LISTED = 10  # names in a message

Lists = Mapping[str, Sequence[str]]
"""Part -> file names."""


@dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        folder: The data set.
        counts: Part -> numbers of images and identities.
        moved: Part -> number of images that lay in another split of DukeMTMC-reID.
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
        DataError: A list is missing, empty or not text, repeats a name, or has lines that are no name of DukeMTMC-reID.
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
            raise DataError(f"The list {path} is larger than {_MAX_LIST_BYTES >> 20} MiB; it cannot be one of names.")
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
            f"{len(bad)} of {len(names)} lines of the list {path} are no file names of DukeMTMC-reID "
            f"(PPPP_cC_fFFFFFFF.jpg, without a folder): {first_of([repr(name[:80]) for name in bad])}."
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"The list {path} repeats {len(twice)} names: {first_of(twice)}.")
    return names


def build_occluded_duke(source: str | Path, lists: str | Path, root: str | Path, link: bool = False) -> Built:
    """Builds ``root/occluded_duke``.

    Args:
        source: DukeMTMC-reID, the published zip archive or its unpacked folder.
        lists: Folder with the name lists.
        root: Data root; made if it does not exist.
        link: Make hard links instead of copies; the source must be a folder on the same file system.

    Returns:
        The folder and its counts.

    Raises:
        DataError: The target exists, or source or lists cannot be used; listed images that are missing are named.
        RunError: The data set cannot be written.
    """
    root = Path(root).expanduser().resolve()
    target = root / DATASET_DIR
    if os.path.lexists(target):
        raise DataError(f"{target} exists already; remove it or choose another --root. Nothing was changed.")
    names = read_lists(lists)
    with open_source(source) as images:
        plan = _plan(images, names)
        made_root = not root.exists()
        try:
            root.mkdir(parents=True, exist_ok=True)
            _check_space(root, sum(images.sizes[split][name] for part in PARTS for split, name in plan[part]), link)
            _write(images, plan, target, link)
        except OSError as error:
            hint = "; without --link images are copied" if link else ""
            raise RunError(f"{target} could not be written: {error}{hint}.") from error
        finally:
            if made_root and root.is_dir() and not any(root.iterdir()):
                root.rmdir()
    built = Built(
        target,
        {part: _count(names[part]) for part in PARTS},
        {part: sum(split != folder for split, _ in plan[part]) for part, folder in PARTS.items()},
    )
    if not built.is_official:
        logger.warning("%s", _difference(built.counts))
    return built


def _plan(images: ImageSource, names: Lists) -> dict[str, list[tuple[str, str]]]:
    """Part -> split and name of every image; complains of all that cannot be copied before anything is written."""
    plan: dict[str, list[tuple[str, str]]] = {}
    missing: list[str] = []
    for part, own in PARTS.items():
        plan[part] = []
        for name in names[part]:
            split = own if name in images.sizes[own] else _FALLBACK
            if name in images.sizes[split]:
                plan[part].append((split, name))
            else:
                missing.append(f"{part}: {name}")
    total = sum(map(len, names.values()))
    if missing:
        raise DataError(
            f"{len(missing):,} of {total:,} listed images are missing in {images.place} (looked for in their own split "
            f"and in {_FALLBACK}): {first_of(missing, _LISTED)}."
        )
    sizes = {image: images.sizes[image[0]][image[1]] for part in PARTS for image in plan[part]}
    for reason, unusable in (
        ("empty", [name for (_, name), size in sizes.items() if size == 0]),
        (
            f"larger than {MAX_IMAGE_BYTES >> 20} MiB, which no image of DukeMTMC-reID is",
            [name for (_, name), size in sizes.items() if size > MAX_IMAGE_BYTES],
        ),
    ):
        if unusable:
            raise DataError(f"{len(unusable)} images in {images.place} are {reason}: {first_of(unusable, _LISTED)}.")
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        raise DataError(
            f"The listed images in {images.place} hold {sum(sizes.values()) / 2**30:.1f} GiB, more than "
            f"{MAX_TOTAL_BYTES >> 30} GiB; refused."
        )
    return plan


def _check_space(root: Path, needed: int, link: bool) -> None:
    free = shutil.disk_usage(root).free
    if not link and needed > free:
        raise RunError(f"{root} has {free / 2**20:.0f} MiB free, but {needed / 2**20:.0f} MiB are needed.")


def _write(images: ImageSource, plan: Mapping[str, list[tuple[str, str]]], target: Path, link: bool) -> None:
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        total = sum(map(len, plan.values()))
        with tqdm(total=total, desc="building occluded_duke", unit="image", disable=None) as bar:
            for part, folder in PARTS.items():
                (work / folder).mkdir()
                for split, name in plan[part]:
                    images.copy(split, name, work / folder / name, link)
                    bar.update()
        _verify(work, images, plan)
        work.chmod(0o755)  # mkdtemp makes it private
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _verify(work: Path, images: ImageSource, plan: Mapping[str, list[tuple[str, str]]]) -> None:
    """Compares what was written with the lists: names and sizes."""
    for part, folder in PARTS.items():
        with os.scandir(work / folder) as entries:
            written = {entry.name: entry.stat().st_size for entry in entries}
        wanted = {name: images.sizes[split][name] for split, name in plan[part]}
        if written != wanted:
            wrong = [name for name in wanted.keys() | written.keys() if wanted.get(name) != written.get(name)]
            raise RunError(f"{len(wrong)} images of {part} were not written as they are: {first_of(sorted(wrong))}.")


def _count(names: Sequence[str]) -> tuple[int, int]:
    return len(names), len({name.partition("_")[0] for name in names})


def _difference(counts: Mapping[str, tuple[int, int]]) -> str:
    parts = [
        f"{part} {counts[part][0]:,} images of {counts[part][1]:,} identities instead of {images:,} of {identities:,}"
        for part, (images, identities) in OFFICIAL.items()
        if counts[part] != (images, identities)
    ]
    return (
        f"The lists are not the official ones of Occluded-DukeMTMC: {'; '.join(parts)}. Figures from this data set do "
        "not compare with published ones."
    )
