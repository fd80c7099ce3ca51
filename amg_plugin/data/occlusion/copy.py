"""An occluded copy of a data set in Market-1501's layout, with the masks of what was hidden.

All query images and a share of the gallery get an object in front of them, as in Occluded-DukeMTMC (Miao et al., ICCV
2019: 100 % and 10 %); training images and the rest of the gallery are copied byte by byte. What happens to an image
depends on the seed, its name and the names of the training images alone, so neither threads nor the order of the files
matter.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from amg_plugin.data.images import as_rgb
from amg_plugin.data.layout import (
    GALLERY_DIR,
    MARKET_EXAMPLE,
    MARKET_FOLDERS,
    QUERY_DIR,
    TRAIN_DIR,
    FolderLayout,
    copy_image,
    first_of,
    identity_and_camera,
    list_part,
    name_of,
    new_dataset,
    refuse_existing,
)
from amg_plugin.data.occlusion.bars import occlude
from amg_plugin.data.occlusion.masks import FORMAT, MANIFEST, MASK_DIR, VERSION, mask_name, write_mask
from amg_plugin.data.occlusion.settings import CopySettings
from amg_plugin.errors import DataError
from amg_plugin.utils.files import expanded

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95
"""Of occluded images whose names end in .jpg or .jpeg; colours are not subsampled. Other formats are lossless."""

_SOURCE = FolderLayout("in Market-1501's layout", (".",), advice="amg-reid occlude copies no other")
_FOLDERS = tuple(MARKET_FOLDERS.values())
_LISTED = 10
_TRIES = 50  # draws of a donor with another identity


def list_names(folder: Path) -> list[str]:
    """Names of the images of one part, sorted; other files (Thumbs.db) and hidden ones (._*) are left out."""
    names = list(map(name_of, list_part(folder)))
    if foreign := [name for name in names if not identity_and_camera(name)]:
        raise DataError(
            f"{len(foreign)} names in {folder} do not start with identity and camera as Market-1501's do "
            f"({MARKET_EXAMPLE}): {first_of(foreign, _LISTED)}."
        )
    masks = Counter(map(mask_name, names))
    if twice := [name for name, count in masks.items() if count > 1]:
        raise DataError(
            f"Images in {folder} differ only in their suffix, and so would their masks: {first_of(twice, _LISTED)}."
        )
    return names


def write_occluded_copy(
    source: str | Path,
    target: str | Path,
    settings: CopySettings | None = None,
    *,
    source_name: str = "",
    link: bool = False,
    threads: int = 0,
) -> dict[str, Any]:
    """Write the occluded copy of a data set; the target is either complete or absent.

    ``source`` holds the three parts, or is the folder above; ``source_name`` is its name in the manifest, the folder's
    if omitted. ``link`` makes hard links of unchanged images. 0 threads are one per processor.

    Returns:
        The manifest, as written to ``target/occlusion.json``.

    Raises:
        DataError: The target exists, the source is not in the layout, or images cannot be read or covered (all of
            them are tried, the first ten are named).
        InputError: The folder above the target cannot be written.
        RunError: Something cannot be written.
    """
    settings, target = settings or CopySettings(), expanded(target)
    refuse_existing(target)
    source = _SOURCE.locate(source)
    names = {part: list_names(source / part) for part in _FOLDERS}
    with new_dataset(target, link) as work:
        manifest = _Copy(source, work, names, settings, link).run(threads or (os.cpu_count() or 1))
        manifest = {**manifest, "source": {"name": source_name or source.name, **manifest["source"]}}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    logger.info("%s: %s", target, manifest["counts"])
    return manifest


class _Copy:
    """One copy in the making; its state does not change once it is made, so threads share it."""

    def __init__(
        self, source: Path, work: Path, names: dict[str, list[str]], settings: CopySettings, link: bool
    ) -> None:
        self.source, self.work, self.settings, self.link = source, work, settings, link
        self.names = names
        self.occluded = {QUERY_DIR: set(names[QUERY_DIR]), GALLERY_DIR: self._chosen(names[GALLERY_DIR])}

    def _chosen(self, names: Iterable[str]) -> set[str]:
        """The share of the gallery with the smallest random numbers, which names alone decide."""
        names = [name for name in names if not name.startswith("-")]
        count = round(self.settings.gallery_share * len(names))
        return set(sorted(names, key=lambda name: _digest(self.settings.seed, "gallery", name))[:count])

    def run(self, threads: int) -> dict[str, Any]:
        """Write all images and masks; returns the manifest."""
        for part in _FOLDERS:
            (self.work / part).mkdir()
        for part in self.occluded:
            (self.work / MASK_DIR / part).mkdir(parents=True)
        tasks = [(part, name) for part in _FOLDERS for name in self.names[part]]
        pool = ThreadPoolExecutor(threads)
        try:
            results = pool.map(self._one, tasks)
            bar = tqdm(results, total=len(tasks), desc="occluding", unit="image", disable=None)
            done = dict(zip(tasks, bar, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
        if failed := [f"{part}/{name} ({result})" for (part, name), result in done.items() if isinstance(result, str)]:
            raise DataError(f"{len(failed)} images of {self.source} cannot be used: {first_of(failed, _LISTED)}.")
        return self._manifest(done)

    def _one(self, task: tuple[str, str]) -> tuple[str, dict[str, Any] | None] | str:
        """Copy or occlude one image; its SHA-256 and what hides it, or why it cannot be used."""
        part, name = task
        path = self.source / part / name
        try:
            content = path.read_bytes()
        except OSError as error:
            return error.strerror or str(error)
        digest = hashlib.sha256(content).hexdigest()
        if name not in self.occluded.get(part, ()):
            copy_image(path, self.work / part / name, self.link)
            return digest, None
        rng = np.random.default_rng(list(_digest(self.settings.seed, part, name)))
        try:
            image = _decoded(content)
            donor = self._donor(name, rng) if rng.random() < self.settings.cut_share else None
            background = self._background(donor) if donor else None
            occlusion = occlude(image, rng, self.settings.coverage, background)
        except DataError as error:
            return str(error)
        options = {"quality": JPEG_QUALITY, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
        occlusion.image.save(self.work / part / name, **options)
        write_mask(self.work / MASK_DIR / part / mask_name(name), occlusion.mask)
        entry = {"coverage": round(occlusion.coverage, 6), "side": occlusion.side, "object": occlusion.kind}
        return digest, {**entry, "donor": donor} if donor else entry

    def _donor(self, name: str, rng: np.random.Generator) -> str:
        """A training image, of another identity where there is one."""
        donors = self.names[TRAIN_DIR]
        for _ in range(_TRIES):
            donor = donors[rng.integers(len(donors))]
            if identity_of(donor) != identity_of(name):
                return donor
        raise DataError("no training image of another identity to cut an object from")

    def _background(self, donor: str) -> Image.Image:
        path = self.source / TRAIN_DIR / donor
        try:
            return _decoded(path.read_bytes())
        except (DataError, OSError) as error:
            raise DataError(f"an object is cut from {TRAIN_DIR}/{donor}, which cannot be read: {error}") from error

    def _manifest(self, done: dict[tuple[str, str], tuple[str, dict[str, Any] | None]]) -> dict[str, Any]:
        whole = hashlib.sha256()
        for (part, name), (digest, _) in sorted(done.items()):
            whole.update(f"{digest}  {part}/{name}\n".encode())
        images: dict[str, dict[str, Any]] = {part: {} for part in self.occluded}
        for (part, name), (_, entry) in done.items():
            if entry is not None:
                images[part][name] = entry
        parameters = asdict(self.settings)
        return {
            "format": FORMAT,
            "version": VERSION,
            "source": {"sha256": whole.hexdigest()},
            "seed": parameters.pop("seed"),
            "parameters": {**parameters, "distribution": "low + (high - low) * Beta(2, 3)"},
            "jpeg": {"quality": JPEG_QUALITY, "subsampling": "4:4:4"},
            "counts": {
                part: {"images": len(self.names[part]), "occluded": len(images.get(part, ()))} for part in _FOLDERS
            },
            "coverage": {part: _statistics([e["coverage"] for e in images[part].values()]) for part in images},
            "images": images,
        }


def identity_of(name: str) -> int:
    """Identity that a file name says."""
    return identity_and_camera(name)[0]


def _digest(*words: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, words)).encode()).digest()


def _decoded(content: bytes) -> Image.Image:
    """The image as torchreid reads it: RGB, whatever it was; transparency is dropped."""
    if not content:
        raise DataError("empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return as_rgb(image)
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        text = re.sub(r" ?<_io\.BytesIO object at \w+>", "", str(error))
        raise DataError(text or type(error).__name__) from error


def _statistics(values: list[float]) -> dict[str, Any]:
    if not values:
        return {"mean": 0.0, "min": 0.0, "max": 0.0, "tenths": [0] * 10}
    tenths, _ = np.histogram(values, bins=10, range=(0.0, 1.0))
    return {"mean": round(float(np.mean(values)), 6), "min": min(values), "max": max(values), "tenths": tenths.tolist()}
