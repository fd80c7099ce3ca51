"""Plain data with tensors, written and read back before it takes the place of an older file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amg_plugin.errors import DamagedFileError, RunError
from amg_plugin.models.weights import load_data
from amg_plugin.utils.files import full_disk, replacing

logger = logging.getLogger(__name__)


def save_data(path: str | Path, content: Mapping[str, Any], what: str, previous: Path | None = None) -> None:
    """Write plain data by ``torch.save``; an older file goes only once the new one was read back.

    Args:
        path: Where to; folders are made.
        content: What ``weights_only`` reads: containers, texts, numbers and tensors.
        what: What it is, for messages.
        previous: Gets the older file instead of its end.

    Raises:
        DamagedFileError: If the new file does not hold what was written.
        RunError: If it cannot be written.
    """
    with replacing(path, what, previous) as draft:
        try:
            torch.save(content, draft)
        except RuntimeError as error:  # torch does not say why
            if shutil.disk_usage(draft.parent).free < 1 << 20:
                raise full_disk(path, what) from error
            raise RunError(f"The {what} '{path}' cannot be written: {error}.") from error
        if not _holds(draft, content):
            raise DamagedFileError(f"The {what} '{path}' was not read back as it was written.")


def _holds(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether a file can be read and holds what was written into it."""
    try:
        return same(load_data(path), content)
    except Exception as error:  # torch raises many types for damaged files
        logger.debug("%s: %s", path, error)
        return False


def same(one: Any, other: Any) -> bool:
    """Whether plain data is equal in kind and value; NaN equals itself."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and bool(((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)
