"""Writing data sets: a folder is complete or absent, and one that exists is left as it is."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from amg_plugin.errors import DataError, RunError
from amg_plugin.utils.files import check_writable, new_folder


def refuse_existing(target: Path) -> None:
    """Refuse a target that exists, be it a dangling link.

    Raises:
        DataError: It exists.
    """
    if os.path.lexists(target):
        raise DataError(f"{target} exists already and is not changed; remove it or choose another place.")


@contextlib.contextmanager
def new_dataset(target: Path, link: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` at the end of the ``with`` block, unless it fails.

    Args:
        target: The data set's folder.
        link: Whether hard links are made, for the message.

    Raises:
        InputError: The folder above ``target`` cannot be written.
        RunError: Something in the block cannot be written.
    """
    check_writable(target.parent, "The data root")
    try:
        with new_folder(target) as work:
            yield work
    except OSError as error:
        hint = "; without --link images are copied" if link else ""
        raise RunError(f"The data set could not be written to {target}: {error}{hint}.") from error


def copy_image(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file, or make a hard link to it."""
    if link:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
