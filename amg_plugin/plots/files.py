"""Images that a user names for figures."""

from __future__ import annotations

from pathlib import Path

from amg_plugin.data.layout import list_images
from amg_plugin.errors import InputError


def image_files(word: str) -> list[Path]:
    """A file named by ``--images``; a folder stands for the images in it.

    Raises:
        InputError: If there is nothing of that name.
    """
    path = Path(word)
    if path.is_dir():
        return [Path(image) for image in list_images(path)]
    if not path.is_file():
        raise InputError(f"The image '{path}' (--images) does not exist.")
    return [path]
