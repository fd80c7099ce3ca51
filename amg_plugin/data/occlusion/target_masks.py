"""Masks that are next to the query and gallery images of a target."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from amg_plugin.data.layout import first_of
from amg_plugin.data.occlusion.copy import FORMAT, MANIFEST, MASK_DIR, mask_name
from amg_plugin.data.occlusion.masks import covered_patches, read_mask
from amg_plugin.errors import DataError

_LISTED = 10


@dataclass(frozen=True)
class Grid:
    """How a network cuts images into patches.

    Attributes:
        image_size: Height and width in pixels.
        patch_size: Height and width of a patch.
        stride: Vertical and horizontal step between patches.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    stride: tuple[int, int]


def mask_path(image: str | Path) -> Path:
    """Where the mask of an image is: ``masks`` next to the image's folder, then that folder's name."""
    image = Path(image)
    return image.parent.parent / MASK_DIR / image.parent.name / mask_name(image.name)


def masked_images(images: Iterable[str | Path]) -> dict[str, Path]:
    """Image -> mask of those images that have one.

    Without a folder of masks there are none. What ``occlusion.json`` lists as occluded has to have its mask.

    Args:
        images: Paths of query or gallery images.

    Raises:
        DataError: Masks are missing, or occlusion.json cannot be read.
    """
    listed: dict[Path, dict[str, Any]] = {}
    found: dict[str, Path] = {}
    missing: list[str] = []
    for image in map(Path, images):
        folder = image.parent.parent
        if not (folder / MASK_DIR).is_dir():
            continue
        if folder not in listed:
            listed[folder] = _listed(folder / MANIFEST)
        mask = mask_path(image)
        if mask.is_file():
            found[str(image)] = mask
        elif image.name in listed[folder].get(image.parent.name, ()):
            missing.append(str(mask))
    if missing:
        raise DataError(
            f"{len(missing)} masks of occluded images are missing: {first_of(missing, _LISTED)}; make the "
            "occluded data set again with amg-reid occlude."
        )
    return found


def _listed(manifest: Path) -> dict[str, Any]:
    """Names of the occluded images by part; nothing without a manifest, for masks of other origin."""
    if not manifest.is_file():
        return {}
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return {part: set(names) for part, names in content["images"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{manifest} cannot be read as written by amg-reid occlude: {error!r}.") from error


def covered_by_masks(images: Iterable[str | Path], grid: Grid, label: str = "masks") -> dict[str, np.ndarray]:
    """Image -> which of its patches are covered, bool ``[N]``, for those images that have a mask.

    Args:
        images: Paths of query or gallery images.
        grid: Image size and patches of the network.
        label: What the progress bar says.

    Raises:
        DataError: A mask is missing, unreadable or of another size than its image.
    """
    masks = masked_images(images)
    return {
        image: _covered(image, mask, grid)
        for image, mask in tqdm(masks.items(), desc=label, unit="mask", leave=False, disable=None)
    }


def _covered(image: str, path: Path, grid: Grid) -> np.ndarray:
    mask = read_mask(path)
    with Image.open(image) as opened:  # the header only
        width, height = opened.size
    if mask.shape != (height, width):
        raise DataError(
            f"The mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, its image {image} has {width}x{height}; "
            "they must be of one size."
        )
    return covered_patches(mask, grid.image_size, grid.patch_size, grid.stride)
