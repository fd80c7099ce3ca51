"""How much of an image is hidden, and which images of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amg_plugin.errors import DataError

if TYPE_CHECKING:
    import numpy as np

LOWEST, HIGHEST = 0.05, 0.7
"""Limits of the share of an image that can be asked for."""


@dataclass(frozen=True)
class Coverage:
    """Distribution of the covered share: ``low + (high - low) * Beta(2, 3)``, with the mean ``0.6 low + 0.4 high``."""

    low: float = 0.15
    high: float = 0.6

    def __post_init__(self) -> None:
        """Refuse limits that are out of range or in the wrong order."""
        if not LOWEST <= self.low <= self.high <= HIGHEST:
            raise DataError(
                f"The covered share is {self.low:g} to {self.high:g}, but must be between {LOWEST} and {HIGHEST}, "
                "the smaller limit first."
            )

    def draw(self, rng: np.random.Generator) -> float:
        """A random share."""
        return self.low + (self.high - self.low) * float(rng.beta(2.0, 3.0))


@dataclass(frozen=True)
class CopySettings:
    """What an occluded copy looks like."""

    seed: int = 1  # of everything random, 0 or larger
    gallery_share: float = 0.1  # of the gallery images; junk images (identity -1) do not count
    cut_share: float = 0.5  # of the objects, cut from other images' margins; the rest is drawn
    coverage: Coverage = field(default_factory=Coverage)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.seed < 0:
            raise DataError(f"The seed is {self.seed}, but must be 0 or larger.")
        for name in ("gallery_share", "cut_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"The {name.replace('_', ' ')} is {getattr(self, name):g}, but must be from 0 to 1.")
