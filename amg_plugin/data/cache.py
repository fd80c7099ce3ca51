"""Decoded, resized images kept in memory, so that epochs do not decode them again.

torchreid's pipelines begin with a resize, which is the same in every epoch; what is random comes after it. The images
behind that step are kept. Where a pipeline begins with another step, the decoded images are. Without memory for them,
images are read by the same function.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import Compose, Resize
from tqdm import tqdm

from amg_plugin import compat
from amg_plugin.data.images import read_patiently
from amg_plugin.data.replacing import Replacements
from amg_plugin.data.seeding import random_numbers
from amg_plugin.errors import DataError, RunError

logger = logging.getLogger(__name__)

_MOST_THREADS = 16


class KeptImages:
    """RGB images by path, in memory that loader processes share however they are started.

    Args:
        resize: What is done to an image before it is kept; None keeps it as it was decoded.
        sizes: Path -> height and width of the image that is kept.
        workers: Threads that read; 0 takes one per processor.

    Raises:
        DataError: An image cannot be read.
        RunError: There is not so much memory.
    """

    def __init__(self, resize: Resize | None, sizes: Mapping[str, tuple[int, int]], workers: int = 0) -> None:
        self._places: dict[str, tuple[int, int, int]] = {}  # path -> offset in bytes, height, width
        end = 0
        for path, (height, width) in sizes.items():
            self._places[path] = (end, height, width)
            end += 3 * height * width
        try:
            self._memory = multiprocessing.RawArray(ctypes.c_uint8, end)
        except (OSError, MemoryError) as error:
            raise RunError(
                f"There is no room for {end / 1e9:.2f} GB of images in memory ({error}); lower amg.cache_gb, or set "
                "amg.cache_images to none."
            ) from error
        bar = tqdm(total=len(sizes), desc="keeping images", unit="image", disable=None)
        pool = ThreadPoolExecutor(min(_MOST_THREADS, workers or os.cpu_count() or 1))
        try:
            for _ in pool.map(lambda path: self._keep(path, resize), sizes):
                bar.update()
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)  # neither an error nor Ctrl-C should wait for the queue

    def __len__(self) -> int:
        return len(self._places)

    def get(self, path: str) -> Image.Image | None:
        """A copy of an image; None if it is not kept."""
        return Image.fromarray(self._pixels(path)) if path in self._places else None

    def _pixels(self, path: str) -> np.ndarray:
        offset, height, width = self._places[path]
        return np.frombuffer(self._memory, np.uint8, 3 * height * width, offset).reshape(height, width, 3)

    def _keep(self, path: str, resize: Resize | None) -> None:
        image = read_patiently(path)
        self._pixels(path)[:] = np.asarray(image if resize is None else resize(image))


class ReadDataset(Dataset):
    """An image data set of torchreid's whose images are read by :func:`amg_plugin.data.images.read_patiently`.

    Items are those of ``ImageDataset``; what is random in that of a seeded index follows from the index alone.
    Everything else is the data set's own; what is set on this object, such as another ``transform``, holds for this
    object only.

    Args:
        dataset: The data set.

    Attributes:
        replacements: What is taken for an image that cannot be read; None lets it end the run.
    """

    replacements: Replacements | None = None

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # asked for while a copy is made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with random_numbers(getattr(index, "seed", None)):
            try:
                return self._item(index)
            except DataError as error:
                if self.replacements is None:
                    raise
                return self._other(index, error)

    def _other(self, index: int, error: DataError) -> dict[str, Any]:
        for place in self.replacements.order(self.data, index):
            with contextlib.suppress(DataError):
                item = self._item(place)
                self.replacements.note()
                return item
        raise DataError(f"{error} No other image of its identity can be read.") from error

    def _item(self, index: int) -> dict[str, Any]:
        path, pid, camid, dsetid = self.data[index]
        image, steps = self._read(path)
        if self.transform is not None:
            image = self._transform_image(Compose(steps), self.k_tfm, image)
        return {"img": image, "pid": pid, "camid": camid, "impath": path, "dsetid": dsetid}

    def _read(self, path: str) -> tuple[Image.Image, list[Any]]:
        """An image, and the steps of the pipeline that it has not been through."""
        return read_patiently(path), _steps(self.transform)


class CachedDataset(ReadDataset):
    """One whose images come from memory, as far as they are kept there.

    Args:
        dataset: The data set.
        kept: Images by the first step of a pipeline, see :func:`first_step`.
    """

    def __init__(self, dataset: Any, kept: Mapping[str, KeptImages]) -> None:
        super().__init__(dataset)
        self.kept = kept

    def _read(self, path: str) -> tuple[Image.Image, list[Any]]:
        resize = first_step(self.transform)
        images = self.kept.get(repr(resize))
        image = images.get(path) if images else None
        if image is None:
            return super()._read(path)
        return image, _steps(self.transform)[resize is not None :]


def reading(datasets: Sequence[Any]) -> list[Any]:
    """Data sets of torchreid's as :class:`ReadDataset`; one whose class reads images in its own way stays as it is."""
    return [ReadDataset(dataset) if _reads_as_usual(dataset) else dataset for dataset in datasets]


def first_step(transform: Any) -> Resize | None:
    """The resize to a fixed size that a pipeline begins with, if it does."""
    steps = _steps(transform)
    resizes = bool(steps) and type(steps[0]) is Resize
    return steps[0] if resizes and isinstance(steps[0].size, Sequence) and len(steps[0].size) == 2 else None


def _steps(transform: Any) -> list[Any]:
    return list(transform.transforms) if isinstance(transform, Compose) else [transform]


def keep_images(datasets: Sequence[Any], gigabytes: float, workers: int = 0) -> list[Any]:
    """Read the images of data sets and keep as many as fit, those of the first data sets first.

    Args:
        datasets: Image data sets of torchreid's.
        gigabytes: Memory that the images may take, in 10^9 bytes.
        workers: Threads that read; 0 takes one per processor.

    Returns:
        The data sets with their images in memory. One whose class reads its images in a way of its own stays as it is.

    Raises:
        DataError: An image cannot be read.
        RunError: There is not so much memory.
    """
    wanted: dict[str, tuple[Resize | None, dict[str, tuple[int, int]]]] = {}
    left, total = gigabytes * 1e9, 0
    usual = [dataset for dataset in datasets if _reads_as_usual(dataset)]
    for dataset in usual:
        resize = first_step(dataset.transform)
        _, sizes = wanted.setdefault(repr(resize), (resize, {}))
        for path in (item[0] for item in dataset.data):
            if path in sizes:
                continue
            total += 1
            height, width = _size(path) if resize is None else resize.size
            if (cost := 3 * height * width) <= left:
                sizes[path] = (height, width)
                left -= cost
    kept = {name: KeptImages(resize, sizes, workers) for name, (resize, sizes) in wanted.items() if sizes}
    images = sum(map(len, kept.values()))
    used = gigabytes - left / 1e9
    logger.info("%d of %d images are kept in memory (%.2f of %g GB)", images, total, used, gigabytes)
    for dataset in datasets:
        if dataset not in usual:
            logger.warning("%s reads its images in a way of its own, so they are not kept", type(dataset).__name__)
    return [CachedDataset(dataset, kept) if dataset in usual else dataset for dataset in datasets]


def _reads_as_usual(dataset: Any) -> bool:
    return type(dataset).__getitem__ is compat.torchreid().data.ImageDataset.__getitem__


def _size(path: str) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"The image {path} cannot be read: {error}.") from error
