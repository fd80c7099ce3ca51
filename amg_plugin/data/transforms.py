"""Named image transforms that torchreid lacks: the plugin's and those that users register.

torchreid builds its transforms from a fixed list of names and silently ignores any other. Here unknown names are
refused, and the others of :data:`amg_plugin.registries.TRANSFORMS` are put into the ``Compose`` objects that torchreid
has built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize, ToTensor

from amg_plugin.data.occlusion.bars import occlude
from amg_plugin.data.occlusion.settings import Coverage
from amg_plugin.errors import ConfigError, RunError
from amg_plugin.registries import TRANSFORMS

# The functions place_... change torchreid's training and test pipelines in place; height and width are in pixels.

PAD = 10
"""Width in pixels of the black border that ``pad_crop`` adds on each side."""


def place_pad_crop(train: Compose, test: Compose, height: int, width: int) -> None:
    """Adds a border of :data:`PAD` black pixels and a random crop back to ``height`` x ``width``; training only."""
    # Black is black only before the normalisation: the last place for images is right before the tensor.
    train.transforms.insert(_index_of(train, ToTensor), RandomCrop((height, width), padding=PAD, fill=0))


def place_bicubic(train: Compose, test: Compose, height: int, width: int) -> None:
    """Makes the resize of both pipelines bicubic."""
    for pipeline in (train, test):
        resize = Resize((height, width), interpolation=InterpolationMode.BICUBIC)
        pipeline.transforms[_index_of(pipeline, Resize)] = resize


class RandomOcclusion:
    """Puts a drawn object (a bar, a box, a vehicle) in front of some images; see :mod:`amg_plugin.data.occlusion.bars`.

    Random numbers start from torch's generator.

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
    """Adds ``occlusion``, by default one with its own defaults, as the last step on the training image."""
    train.transforms.insert(_index_of(train, ToTensor), occlusion or RandomOcclusion())


def check_transform_names(names: str | Sequence[str] | None) -> list[str]:
    """Normalises the value of ``data.transforms``.

    Raises:
        ConfigError: A name is unknown or not a string.
    """
    names = [names] if isinstance(names, str) else names or []
    known = {name.lower(): name for name in TRANSFORMS}
    for name in names:
        if not isinstance(name, str) or name.lower() not in known:
            raise ConfigError(f"data.transforms: unknown transform {name!r}; allowed are {', '.join(TRANSFORMS)}.")
    return list(dict.fromkeys(known[name.lower()] for name in names))


def place_transforms(
    names: Sequence[str],
    train: Compose,
    test: Compose,
    height: int,
    width: int,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Puts those of ``names`` that torchreid does not know into its pipelines, in the order of their table.

    What a user registers becomes the last step on the training image, before it is made a tensor.

    Raises:
        RunError: A pipeline has not the steps that torchreid is known to build.
    """
    for row in TRANSFORMS.rows.values():
        if row.name not in names or row.stock:
            continue
        entry, options = TRANSFORMS.load(row.name), (settings or {}).get(row.name, {})
        if row.places:
            entry(train, test, height, width, **options)
        else:
            step = entry(**options) if isinstance(entry, type) else entry
            train.transforms.insert(_index_of(train, ToTensor), step)


def _index_of(pipeline: Compose, kind: type[Any]) -> int:
    """Position of the first step of type ``kind``."""
    for index, step in enumerate(pipeline.transforms):
        if isinstance(step, kind):
            return index
    raise RunError(f"torchreid's image pipeline has no step {kind.__name__}: {pipeline}.")
