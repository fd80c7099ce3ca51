"""Whether images can be decoded: all of them, in threads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

MOST_THREADS = 16
TINY = 8
"""Images with a side below this many pixels are readable, but hardly show a person."""

_CHUNK = 64  # images that a thread takes at once


@dataclass
class ReadableImages:
    """Outcome of reading images.

    Attributes:
        count: Images that were looked at.
        unreadable: Path -> why it cannot be decoded.
        tiny: Paths of readable images with a side below :data:`TINY` pixels.
    """

    count: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    tiny: list[str] = field(default_factory=list)


def read_images(paths: Iterable[str | Path], workers: int = 0) -> ReadableImages:
    """Decodes every image once.

    Grayscale, CMYK and palette images and images with transparency count as readable: torchreid's reader converts
    them to RGB (transparency is dropped, not blended).

    Args:
        paths: Image files; repeated ones are read once.
        workers: Number of threads; 0 takes one per processor.

    Returns:
        What was found; paths are in the order given.
    """
    unique = list(dict.fromkeys(map(str, paths)))
    chunks = [unique[start : start + _CHUNK] for start in range(0, len(unique), _CHUNK)]
    found = ReadableImages(count=len(unique))
    bar = tqdm(total=len(unique), desc="checking images", unit="image", disable=None)
    pool = ThreadPoolExecutor(min(MOST_THREADS, workers or os.cpu_count() or 1))
    # Pillow warns about transparency that it drops, once per image and thread.
    with warnings.catch_warnings(), bar:
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        try:
            for chunk, verdicts in zip(chunks, pool.map(_read_all, chunks), strict=True):
                for path, (side, reason) in zip(chunk, verdicts, strict=True):
                    if reason:
                        found.unreadable[path] = reason
                    elif side < TINY:
                        found.tiny.append(path)
                bar.update(len(chunk))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the queue
    return found


def _read_all(paths: list[str]) -> list[tuple[int, str]]:
    return [_read(path) for path in paths]


def _read(path: str) -> tuple[int, str]:
    """Smaller side of an image in pixels, and why it cannot be decoded."""
    try:
        with Image.open(path) as image:
            # A JPEG is decoded at an eighth of its size: all of its data is read, but most of the arithmetic is saved.
            side = min(image.size)
            image.draft(None, (1, 1))
            image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        if Path(path).is_file() and not Path(path).stat().st_size:
            return 0, "empty file"
        reason = str(error).replace(repr(path), "").strip() or type(error).__name__
        return 0, " ".join(reason.split())
    return side, ""
