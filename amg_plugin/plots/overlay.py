"""Attention laid over the image that it was paid to."""

from __future__ import annotations

import numpy as np

from amg_plugin.plots.style import heat_map

#: How much of the colour covers the image where attention is strongest, and where there is none.
_STRONG, _WEAK = 0.88, 0.12


def faint(picture: np.ndarray) -> np.ndarray:
    """An image in light grey, so that all colours over it are those of attention; uint8 ``[height, width, 3]``."""
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.repeat((115 + 0.55 * grey)[..., None], 3, axis=2).round().astype(np.uint8)


def opacity(shares: np.ndarray) -> np.ndarray:
    """How much colours cover the image, for attention as a share of the largest ``[rows, columns]``; 0 for NaN."""
    filled = np.sqrt(np.clip(np.nan_to_num(shares), 0, 1))
    return np.where(np.isnan(shares), 0.0, _WEAK + (_STRONG - _WEAK) * filled)


def laid_over(picture: np.ndarray, values: np.ndarray, maximum: float) -> np.ndarray:
    """Colour an image by the attention to its patches.

    Args:
        picture: uint8 ``[height, width, 3]``.
        values: ``[rows, columns]``, NaN where there is no key.
        maximum: What the brightest colour stands for.

    Returns:
        uint8 ``[height, width, 3]``; colours follow the square root, patches without a key stay grey.
    """
    shares = values / max(maximum, np.finfo(np.float32).tiny)
    colours = heat_map()(np.sqrt(np.clip(np.nan_to_num(shares), 0, 1)))[..., :3] * 255
    (height, width), (rows, columns) = picture.shape[:2], values.shape
    where = np.arange(height)[:, None] * rows // height, np.arange(width)[None] * columns // width
    alpha = opacity(shares)[where][..., None]
    return (alpha * colours[where] + (1 - alpha) * faint(picture)).round().astype(np.uint8)
