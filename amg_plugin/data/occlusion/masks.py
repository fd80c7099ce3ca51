"""Masks of what is hidden in an image: files, and the patches of a vision transformer that they cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from amg_plugin.errors import DataError

COVERED = 0.5
"""Share of a patch's area from which on the patch counts as covered."""


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask as a PNG file of one bit per pixel; white is hidden.

    Args:
        path: Where to.
        mask: ``[height, width]``, True where the image is hidden.
    """
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1", dither=Image.Dither.NONE).save(path, format="PNG")


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask: ``[height, width]``, True where a pixel is brighter than the middle.

    Raises:
        DataError: The file is missing or cannot be read as an image.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"The mask {path} is missing; make the occluded data set again with amg-reid occlude.")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) >= 128
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        raise DataError(f"The mask {path} cannot be read: {error}.") from error


def patch_coverage(
    mask: np.ndarray,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    stride: tuple[int, int] | None = None,
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
    mask: np.ndarray,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    stride: tuple[int, int] | None = None,
) -> np.ndarray:
    """Which patches are hidden by at least :data:`COVERED` of their area; bool ``[rows * columns]``.

    Arguments as :func:`patch_coverage`.
    """
    return patch_coverage(mask, image_size, patch_size, stride) >= COVERED - 1e-9
