"""Numbers that are not finite, refused where they are made and with the names of their images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amg_plugin.errors import RunError

_NAMED = 5


def some(images: Sequence[object]) -> str:
    """The first few images, for a message."""
    more = f" and {len(images) - _NAMED} more" if len(images) > _NAMED else ""
    return ", ".join(map(str, images[:_NAMED])) + more


def check_finite(rows: np.ndarray, what: str, images: Sequence[object]) -> None:
    """Check that what was made of images is made of finite numbers.

    Args:
        rows: ``[B, ...]``, one per image.
        what: What it is and where, to follow "The", for the message.
        images: Names of the images.

    Raises:
        RunError: If some are NaN or infinite.
    """
    bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if bad.any():
        named = [image for image, wrong in zip(images, bad, strict=True) if wrong]
        raise RunError(f"The {what} are NaN or infinite for {len(named)} of {len(rows)} images: {some(named)}.")
