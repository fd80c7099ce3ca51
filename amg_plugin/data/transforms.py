"""Named image transforms: torchreid's own and those it lacks.

torchreid builds its transforms from a fixed list of names and silently ignores any other. Here unknown names are
refused, and the plugin's own are put into the ``Compose`` objects that torchreid has built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize, ToTensor

from amg_plugin.data.occlusion.bars import Coverage, occlude
from amg_plugin.errors import ConfigError, RunError

TORCHREID_TRANSFORMS = ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase")
"""Names that torchreid's ``build_transforms`` knows."""

PAD = 10
"""Width in pixels of the black border that ``pad_crop`` adds on each side."""

Placement = Callable[..., None]
"""Puts a transform into the training and the test pipeline; gets both, the image height and width, and its settings."""


def place_pad_crop(train: Compose, test: Compose, height: int, width: int) -> None:
    """Adds a border of :data:`PAD` black pixels and a random crop back to ``height`` x ``width``; training only.

    Args:
        train: Training pipeline, changed in place.
        test: Test pipeline, left as it is.
        height: Image height in pixels.
        width: Image width in pixels.
    """
    # Black is black only before the normalisation: the last place for images is right before the tensor.
    train.transforms.insert(_index_of(train, ToTensor), RandomCrop((height, width), padding=PAD, fill=0))


def place_bicubic(train: Compose, test: Compose, height: int, width: int) -> None:
    """Makes the resize of both pipelines bicubic.

    Args:
        train: Training pipeline, changed in place.
        test: Test pipeline, changed in place.
        height: Image height in pixels.
        width: Image width in pixels.
    """
    for pipeline in (train, test):
        resize = Resize((height, width), interpolation=InterpolationMode.BICUBIC)
        pipeline.transforms[_index_of(pipeline, Resize)] = resize


class RandomOcclusion:
    """Puts a drawn object (a bar, a box, a vehicle) in front of some images; see :mod:`amg_plugin.data.occlusion.bars`.

    Random numbers start from torch's generator, which torchreid seeds and which every loader process has its own of.

    Args:
        probability: Share of the images that get an object.
        coverage: Distribution of the covered share of an image.
    """

    def __init__(self, probability: float = 0.5, coverage: Coverage | None = None) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"amg.occlusion.probability is {probability!r}, but must be from 0 to 1.")
        self.probability = probability
        self.coverage = coverage or Coverage()

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, or the image behind an object."""
        if torch.rand(()).item() >= self.probability:
            return image
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        return occlude(image, rng, self.coverage).image

    def __repr__(self) -> str:
        return f"{type(self).__name__}(probability={self.probability}, coverage={self.coverage})"


def place_random_occlusion(
    train: Compose, test: Compose, height: int, width: int, occlusion: RandomOcclusion | None = None
) -> None:
    """Adds :class:`RandomOcclusion` as the last step on the training image.

    Args:
        train: Training pipeline, changed in place.
        test: Test pipeline, left as it is.
        height: Image height in pixels.
        width: Image width in pixels.
        occlusion: The step; one with its defaults if omitted.
    """
    train.transforms.insert(_index_of(train, ToTensor), occlusion or RandomOcclusion())


PLUGIN_TRANSFORMS: dict[str, Placement] = {
    "pad_crop": place_pad_crop,
    "bicubic": place_bicubic,
    "random_occlusion": place_random_occlusion,
}
"""Transforms that the plugin adds: name -> what places it. They are placed in this order."""

TRANSFORMS = (*TORCHREID_TRANSFORMS, *PLUGIN_TRANSFORMS)
"""Every name that ``data.transforms`` takes."""


def check_transform_names(names: str | Sequence[str] | None) -> list[str]:
    """Normalises the value of ``data.transforms``.

    Args:
        names: One name, several or none; upper and lower case are the same.

    Returns:
        The names in lower case, each once.

    Raises:
        ConfigError: A name is unknown or not a string.
    """
    if names is None:
        names = []
    elif isinstance(names, str):
        names = [names]
    result: list[str] = []
    for name in names:
        lowered = name.lower() if isinstance(name, str) else name
        if lowered not in TRANSFORMS:
            raise ConfigError(f"data.transforms: unknown transform {name!r}; allowed are {', '.join(TRANSFORMS)}.")
        if lowered not in result:
            result.append(lowered)
    return result


def place_plugin_transforms(
    names: Sequence[str],
    train: Compose,
    test: Compose,
    height: int,
    width: int,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Puts those of ``names`` that are the plugin's into torchreid's pipelines.

    Args:
        names: Transform names as :func:`check_transform_names` returns them.
        train: Training pipeline, changed in place: torchreid's data sets hold the same object.
        test: Test pipeline, changed in place.
        height: Image height in pixels.
        width: Image width in pixels.
        settings: Per transform, further arguments of its :data:`Placement`.

    Raises:
        RunError: A pipeline has not the steps that torchreid is known to build.
    """
    for name, place in PLUGIN_TRANSFORMS.items():
        if name in names:
            place(train, test, height, width, **(settings or {}).get(name, {}))


def _index_of(pipeline: Compose, kind: type[Any]) -> int:
    """Position of the first step of type ``kind``."""
    for index, step in enumerate(pipeline.transforms):
        if isinstance(step, kind):
            return index
    raise RunError(f"torchreid's image pipeline has no step {kind.__name__}: {pipeline}.")
