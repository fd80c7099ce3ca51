"""Masks of what is hidden in an image: files next to the images, and the patches of a network that they cover."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from amg_plugin.data.layout import first_of
from amg_plugin.errors import DataError, shown
from amg_plugin.utils.files import kind_of, read_json

MASK_DIR, MANIFEST = "masks", "occlusion.json"
FORMAT, VERSION = "amg_plugin.occlusion", 1
"""Of the manifest."""
COVERED = 0.5
"""Share of a patch's area from which on the patch counts as covered."""


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask, bool ``[height, width]``, as a PNG file of one bit per pixel; white is hidden."""
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1", dither=Image.Dither.NONE).save(path, format="PNG")


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask: ``[height, width]``, True where a pixel is brighter than the middle.

    Raises:
        DataError: The file is missing or cannot be read as an image.
    """
    path = Path(path)
    if kind_of(path) != "file":
        raise DataError(f"The mask {path} is missing; make the occluded data set again with amg-reid occlude.")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) >= 128
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        raise DataError(f"The mask {path} cannot be read: {error}.") from error


def patch_coverage(
    mask: np.ndarray, image_size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int] | None = None
) -> np.ndarray:
    """Share of each patch's area that is hidden, after the image was resized to the network's size.

    The area is exact for any size: the mask is integrated over the rectangle that the patch has in the original image.

    Args:
        mask: ``[height, width]`` of the original image, True where it is hidden.
        image_size: Height and width in pixels that the image is resized to.
        patch_size: Height and width of a patch in those pixels.
        stride: Step between patches; the patch size if omitted. A border that no whole patch fits into is dropped.

    Returns:
        ``[rows * columns]``, float64, row by row.
    """
    stride = stride or patch_size
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    integral[1:, 1:] = mask.cumsum(0).cumsum(1)
    areas = integral
    for axis, (pixels, side, patch, step) in enumerate(zip(mask.shape, image_size, patch_size, stride, strict=True)):
        starts = np.arange(0, side - patch + 1, step)
        first, last = (_interpolated(areas, edge * (pixels / side), axis) for edge in (starts, starts + patch))
        areas = (last - first) / (patch * pixels / side)
    return np.clip(areas, 0.0, 1.0).ravel()


def _interpolated(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """``values`` between its entries along ``axis``: the integral of a constant pixel is linear."""
    below = np.minimum(places.astype(int), values.shape[axis] - 2)
    share = np.expand_dims(places - below, 1 - axis)
    return np.take(values, below, axis) * (1 - share) + np.take(values, below + 1, axis) * share


def covered_patches(
    mask: np.ndarray, image_size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int] | None = None
) -> np.ndarray:
    """Which patches are hidden by at least :data:`COVERED` of their area; bool ``[rows * columns]``.

    Arguments as :func:`patch_coverage`.
    """
    return patch_coverage(mask, image_size, patch_size, stride) >= COVERED - 1e-9


@dataclass(frozen=True)
class Grid:
    """How a network cuts images into patches: heights and widths in pixels, and the steps between patches."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    stride: tuple[int, int]


def mask_name(name: str) -> str:
    """Name of the mask of an image."""
    return Path(name).with_suffix(".png").name


def mask_path(image: str | Path) -> Path:
    """Where the mask of an image is: ``masks`` next to the image's folder, then that folder's name."""
    image = Path(image)
    return image.parent.parent / MASK_DIR / image.parent.name / mask_name(image.name)


def masked_images(images: Iterable[str | Path]) -> dict[str, Path]:
    """Image -> mask of those images that have one.

    Without a folder of masks there are none. What ``occlusion.json`` lists as occluded has to have its mask.

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
            f"{len(missing)} masks of occluded images are missing: {first_of(missing, 10)}; make the "
            "occluded data set again with amg-reid occlude."
        )
    return found


def _listed(manifest: Path) -> dict[str, Any]:
    """Names of the occluded images by part; nothing without a manifest, for masks of other origin."""
    if not manifest.is_file():
        return {}
    try:
        content = read_json(manifest)
        if content["format"] != FORMAT:
            raise ValueError(f"format {shown(content['format'])}")
        return {part: set(names) for part, names in content["images"].items()}
    except Exception as error:  # values of any type fail anywhere
        raise DataError(f"{manifest} cannot be read as written by amg-reid occlude: {error!r}.") from error


def covered_by_masks(images: Iterable[str | Path], grid: Grid, label: str = "masks") -> dict[str, np.ndarray]:
    """Image -> which of its patches are covered, bool ``[N]``, for those images that have a mask.

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
