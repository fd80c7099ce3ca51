"""Named image transforms: torchreid's own and those it lacks.

torchreid builds its transforms from a fixed list of names and silently ignores any other. Here unknown names are
refused, and the plugin's own are put into the ``Compose`` objects that torchreid has built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize, ToTensor

from amg_plugin.errors import ConfigError, RunError

TORCHREID_TRANSFORMS = ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase")
"""Names that torchreid's ``build_transforms`` knows."""

PAD = 10
"""Width in pixels of the black border that ``pad_crop`` adds on each side."""

Placement = Callable[[Compose, Compose, int, int], None]
"""Puts a transform into the training and the test pipeline; gets both, and the image height and width."""


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


PLUGIN_TRANSFORMS: dict[str, Placement] = {"pad_crop": place_pad_crop, "bicubic": place_bicubic}
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


def place_plugin_transforms(names: Sequence[str], train: Compose, test: Compose, height: int, width: int) -> None:
    """Puts those of ``names`` that are the plugin's into torchreid's pipelines.

    Args:
        names: Transform names as :func:`check_transform_names` returns them.
        train: Training pipeline, changed in place: torchreid's data sets hold the same object.
        test: Test pipeline, changed in place.
        height: Image height in pixels.
        width: Image width in pixels.

    Raises:
        RunError: A pipeline has not the steps that torchreid is known to build.
    """
    for name, place in PLUGIN_TRANSFORMS.items():
        if name in names:
            place(train, test, height, width)


def _index_of(pipeline: Compose, kind: type[Any]) -> int:
    """Position of the first step of type ``kind``."""
    for index, step in enumerate(pipeline.transforms):
        if isinstance(step, kind):
            return index
    raise RunError(f"torchreid's image pipeline has no step {kind.__name__}: {pipeline}.")
