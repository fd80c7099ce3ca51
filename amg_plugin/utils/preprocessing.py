"""How images become a network's inputs: what travels inside checkpoints and exported files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amg_plugin.errors import CheckpointError, shown

if TYPE_CHECKING:
    from yacs.config import CfgNode

INTERPOLATIONS = ("bilinear", "bicubic")
#: Mean and standard deviation per channel (RGB) of ImageNet's images, from 0 to 1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: What images an exported file takes, all resized and RGB: values from 0 to 1 from which the first numbers were
#: subtracted and which were divided by the second ones, per channel; ``network`` stands for the network's own.
INPUTS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]] | None] = {
    "network": None,
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "raw255": ((0.0,) * 3, (1 / 255,) * 3),
    "imagenet": IMAGENET,
}
#: Most pixels of a network's input: what a description says is believed up to here only.
LARGEST_INPUT = 1 << 22


@dataclass(frozen=True)
class Preprocessing:
    """Resize to ``height`` x ``width`` pixels, scale to 0 to 1, subtract ``mean``, divide by ``std`` (RGB).

    Attributes:
        height: Pixels.
        width: Pixels.
        mean: Per channel.
        std: Per channel, above 0.
        interpolation: One of :data:`INTERPOLATIONS`.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def left_to_do(self, given: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What makes the network's inputs out of one of :data:`INPUTS`: numbers to subtract, and to divide by.

        They are zeros and ones if nothing is left to do.
        """
        mean, std = INPUTS[given] or (self.mean, self.std)
        subtract = tuple((ours - theirs) / scale for ours, theirs, scale in zip(self.mean, mean, std, strict=True))
        return subtract, tuple(ours / theirs for ours, theirs in zip(self.std, std, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it is stored."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def of_torchreid(cls, image_size: tuple[int, int]) -> Preprocessing:
        """What torchreid's data manager does where it is told nothing but the size."""
        return cls(*image_size, *IMAGENET, "bilinear")

    @classmethod
    def from_config(cls, data: CfgNode) -> Preprocessing:
        """What the node ``data`` of a configuration asks for in evaluation."""
        bicubic = "bicubic" in map(str.lower, data.transforms)
        mean, std = tuple(data.norm_mean), tuple(data.norm_std)
        return cls(data.height, data.width, mean, std, "bicubic" if bicubic else "bilinear")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: str | Path) -> Preprocessing:
        """Inverse of :meth:`to_dict`.

        Args:
            values: What was stored; further entries are left out.
            path: The file that they are from, for messages.

        Raises:
            CheckpointError: If something is missing or impossible.
        """
        if not isinstance(values, Mapping):
            raise damaged(path, "preprocessing", values, "an object")
        names = tuple(cls.__dataclass_fields__)
        if missing := [name for name in names if name not in values]:
            raise not_recorded(path, missing)
        checks = {
            "height": (is_size(values["height"]), "a whole number from 1"),
            "width": (is_size(values["width"]), "a whole number from 1"),
            "mean": (_are_three(values["mean"], -math.inf), "three numbers"),
            "std": (_are_three(values["std"], 0), "three numbers above 0"),
            "interpolation": (values["interpolation"] in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise damaged(path, name, values[name], allowed)
        if (pixels := values["height"] * values["width"]) > LARGEST_INPUT:
            raise damaged(path, "height times width", pixels, f"at most {LARGEST_INPUT}")
        return cls(**{name: tuple(values[name]) if name in ("mean", "std") else values[name] for name in names})


def not_recorded(path: str | Path, missing: list[str] | None = None) -> CheckpointError:
    """The error for a checkpoint that does not say how images are prepared."""
    missing = missing or list(Preprocessing.__dataclass_fields__)
    return CheckpointError(
        f"'{path}' does not record how images are prepared ({', '.join(missing)}); "
        "set the network's 'preprocessing' and save it again with amg_plugin.save_checkpoint."
    )


def damaged(path: str | Path, name: str, value: Any, allowed: str) -> CheckpointError:
    """The error for an impossible entry in what a file says about itself."""
    return CheckpointError(f"The description in '{path}' has {name} {shown(value)}, which must be {allowed}.")


def is_size(value: Any, most: float = math.inf) -> bool:
    """Whether a value is a whole number from 1 to ``most``."""
    return type(value) is int and 0 < value <= most


def _are_three(values: Any, least: float) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and math.isfinite(value) and value > least for value in values)
    )
