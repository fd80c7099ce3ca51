"""From images to the network's input without torch: the same numbers as torchreid's test transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amg_plugin.data.images import as_rgb, read_rgb
from amg_plugin.data.layout import list_images
from amg_plugin.errors import DataError, InputError
from amg_plugin.utils.preprocessing import INPUTS, Preprocessing


def as_image(source: Any) -> Image.Image:
    """An RGB image out of what shows one.

    Args:
        source: A path, an opened file, a PIL image, or a ``uint8`` array ``[H, W, 3]`` (RGB) or ``[H, W]`` (grey).

    Raises:
        DataError: If a file is missing or cannot be decoded, or an image has values without a defined white.
        InputError: If the array has another type or shape, or the source is of another kind.
    """
    if isinstance(source, str | Path) or hasattr(source, "read"):
        return read_rgb(source)
    if isinstance(source, Image.Image):
        return as_rgb(source)
    if isinstance(source, np.ndarray):
        grey, colour = source.ndim == 2, source.ndim == 3 and source.shape[2] == 3
        if source.dtype != np.uint8 or not (grey or colour) or not source.size:
            raise InputError(
                f"An image array must be uint8 of shape [H, W, 3] (RGB) or [H, W], not {source.dtype} of "
                f"{list(source.shape)}."
            )
        return Image.fromarray(source).convert("RGB")
    raise InputError(
        f"An image is a path, an opened file, a PIL image or a uint8 array, not a {type(source).__name__}."
    )


def unit_input(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """The resized image as float32 ``[3, height, width]`` from 0 to 1.

    Resizing is Pillow's own, as behind torchvision's ``Resize`` for PIL images.
    """
    size = (preprocessing.width, preprocessing.height)
    if image.size != size:
        image = image.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


def normalized(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """``(images - mean) / std`` per channel of ``[..., 3, height, width]``."""
    return (images - _per_channel(preprocessing.mean)) / _per_channel(preprocessing.std)


def as_given(images: np.ndarray, preprocessing: Preprocessing, given: str) -> np.ndarray:
    """Images as one of :data:`~amg_plugin.utils.preprocessing.INPUTS` out of the network's inputs ``[B, 3, H, W]``."""
    subtract, divide = preprocessing.left_to_do(given)
    return images if given == "network" else images * _per_channel(divide) + _per_channel(subtract)


def _per_channel(values: tuple[float, ...]) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)[:, None, None]


def prepare(sources: list[Any], preprocessing: Preprocessing, given: str = "network") -> np.ndarray:
    """Images float32 ``[B, 3, height, width]`` of what :func:`as_image` takes, for a network or an exported file.

    Args:
        sources: The images.
        preprocessing: How they are resized, and how the network wants them normalised.
        given: What the file takes, one of :data:`~amg_plugin.utils.preprocessing.INPUTS`.
    """
    batch = np.stack([unit_input(as_image(source), preprocessing) for source in sources])
    mean, std = INPUTS[given] or (preprocessing.mean, preprocessing.std)
    return (batch - _per_channel(mean)) / _per_channel(std)


def images_below(folder: str | Path) -> list[Path]:
    """Image files in ``folder`` and below, sorted.

    Raises:
        DataError: If the folder is missing or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"The folder of images '{folder}' does not exist.")
    return sorted(map(Path, list_images(folder, nested=True)))


def spread(items: list[Any], count: int) -> list[Any]:
    """At most ``count`` of ``items``, evenly spread over the list."""
    return items[:] if len(items) <= count else [items[index * len(items) // count] for index in range(count)]
