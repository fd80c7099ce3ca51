"""Whether images can be decoded: all of them, in threads, remembering those that were fine."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from amg_plugin.data.checks.cache import CheckCache

MOST_THREADS = 16
TINY = 8
"""Images with a side below this many pixels are readable, but hardly show a person."""

_CHUNK = 64  # images that a thread takes at once
_Verdict = tuple[str, int, int, int, str]  # path, bytes, modification time in ns, smaller side, why unreadable


@dataclass
class ReadableImages:
    """Outcome of reading images.

    Attributes:
        count: Images that were looked at.
        unreadable: Path -> why it cannot be decoded.
        tiny: Paths of readable images with a side below :data:`TINY` pixels.
        cached: How many of them were known to be fine from an earlier pass.
    """

    count: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    tiny: list[str] = field(default_factory=list)
    cached: int = 0


def read_images(paths: Iterable[str | Path], workers: int = 0, cache: CheckCache | None = None) -> ReadableImages:
    """Decodes every image once; one that ``cache`` knows with the same size and time is not decoded again.

    Grayscale, CMYK and palette images and images with transparency count as readable: torchreid's reader converts
    them to RGB (transparency is dropped, not blended).

    Args:
        paths: Image files; repeated ones are read once.
        workers: Number of threads; 0 takes one per processor.
        cache: What earlier passes found; images that are fine are added to it. The caller saves it.

    Returns:
        What was found; paths are in the order given.
    """
    unique = list(dict.fromkeys(map(str, paths)))
    threads = min(MOST_THREADS, workers if workers > 0 else (os.cpu_count() or 1))
    chunks = [unique[start : start + _CHUNK] for start in range(0, len(unique), _CHUNK)]
    found = ReadableImages(count=len(unique))
    bar = tqdm(total=len(unique), desc="checking images", unit="image", disable=None)
    # Pillow warns about transparency that it drops, once per image and thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool, bar:
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        try:
            for verdicts in pool.map(_read_chunk, chunks, itertools.repeat(cache)):
                for path, size, time, side, reason in verdicts:
                    if reason:
                        found.unreadable[path] = reason
                        continue
                    if side < TINY:
                        found.tiny.append(path)
                    if cache is None:
                        continue
                    if cache.knows(path, size, time):
                        found.cached += 1
                    else:
                        cache.add(path, size, time, side)
                bar.update(len(verdicts))
        except BaseException:  # Ctrl-C should not wait for the queue
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _read_chunk(paths: Sequence[str], cache: CheckCache | None) -> list[_Verdict]:
    return [_read(path, cache) for path in paths]


def _read(path: str, cache: CheckCache | None) -> _Verdict:
    size = time = side = 0
    try:
        status = os.stat(path)  # noqa: PTH116 - per image, and Path costs more than the call
        size, time = status.st_size, status.st_mtime_ns
        if size == 0:
            return path, size, time, side, "empty file"
        known = None if cache is None else cache.side_of(path, size, time)
        if known is not None:
            return path, size, time, known, ""
        with Image.open(path) as image:
            side = min(image.size)
            # A JPEG is decoded at an eighth of its size: all of its data is read, but most of the arithmetic is saved.
            image.draft(None, (1, 1))
            image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise more than OSError on damaged files
        reason = str(error).replace(repr(path), "").strip() or type(error).__name__
        return path, size, time, side, " ".join(reason.split())
    return path, size, time, side, ""
