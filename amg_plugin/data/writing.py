"""Writing data sets: a folder is complete or absent, and one that exists is left as it is."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from amg_plugin.data.layout import MARKET_FOLDERS
from amg_plugin.errors import DataError, RunError
from amg_plugin.utils.files import check_writable, new_folder


def refuse_existing(target: Path) -> None:
    """Refuse a target that exists, be it a dangling link."""
    if os.path.lexists(target):
        raise DataError(f"{target} exists already and is not changed; remove it or choose another place.")


@contextlib.contextmanager
def new_dataset(target: Path, link: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` at the end of the ``with`` block, unless it fails.

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


def write_parts(folder: Path, images: Mapping[str, Sequence[Path]], link: bool) -> None:
    """Copy or link the images of each part into its folder, named as Market-1501's, below ``folder``."""
    with tqdm(total=sum(map(len, images.values())), desc="writing", unit="image", disable=None) as bar:
        for part, sources in images.items():
            target = folder / MARKET_FOLDERS[part]
            target.mkdir(parents=True)
            for source in sources:
                copy_image(source, target / source.name, link)
                bar.update()


def copy_image(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file, or make a hard link to it."""
    if link:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
