"""Image files as RGB pixels, in one way for data sets, checks and features. Light: Pillow and numpy only.

For images of 8 bits a channel this is Pillow's ``convert("RGB")``, as in torchreid. Pillow clips deeper ones, so that
nearly everything becomes white; here they are scaled where their mode says what white is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from amg_plugin.errors import DataError

#: Seconds before another try.
_PAUSES = (0.1, 0.3)

SCALED = "16 bit, scaled"
"""What is done with deeper images, for messages."""

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_BITS_PER_SAMPLE = 258  # TIFF tag


def read_rgb(path: str | Path | BinaryIO) -> Image.Image:
    """Read an image file, by its path or opened.

    Raises:
        DataError: It is missing, cannot be decoded, or does not say what white is.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except FileNotFoundError as error:
        raise DataError(f"The image '{path}' does not exist.") from error
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        name = path if isinstance(path, str | Path) else getattr(path, "name", type(path).__name__)
        raise DataError(f"The image '{name}' cannot be read: {str(error).rstrip('.')}.") from error


def read_patiently(path: str | Path) -> Image.Image:
    """As :func:`read_rgb`, a few times: file systems of networks fail for moments.

    Raises:
        DataError: See :func:`read_rgb`; it failed each time.
    """
    for pause in _PAUSES:
        try:
            return read_rgb(path)
        except DataError:
            time.sleep(pause)
    return read_rgb(path)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB.

    Grey values of 16 bits (12 in some TIFF files) are scaled to 8 and rounded. EXIF rotation is not applied, as in
    torchreid, except by Pillow's own reader of TIFF files.

    Raises:
        DataError: Its values are of 32 bits or floats, which have no defined white.
    """
    white = _white(image)
    if white is None:
        return image.convert("RGB")
    values = np.asarray(image).astype(np.int64)
    scaled = np.clip((values * 255 + white // 2) // white, 0, 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _white(image: Image.Image) -> int | None:
    """The highest value of a deep grey image; None for other modes."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})  # of TIFF files only
        return 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # which are of 16 bits
        return 2**16 - 1
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise DataError(f"{kind} values have no defined white; save it with 8 or 16 bits")
    return None


def is_scaled(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits a channel; Pillow scales those of colours itself.

    Raises:
        DataError: See :func:`as_rgb`.
    """
    raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))  # how the decoder takes the values
    return _white(image) is not None or ";16" in raw


def is_rotated(image: Image.Image) -> bool:
    """Whether a decoded image is shown rotated or mirrored by viewers, as its EXIF data says, and not here."""
    return image.getexif().get(_ORIENTATION, 1) != 1
