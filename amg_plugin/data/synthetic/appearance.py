"""What makes an identity of the drawn data set: clothes, hair, skin, bag, hat and proportions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]

CLOTHES: tuple[RGB, ...] = (
    (28, 28, 32), (232, 232, 228), (128, 130, 134), (186, 34, 42), (240, 132, 36), (238, 206, 60), (52, 136, 62),
    (60, 190, 178), (38, 72, 168), (120, 176, 232), (120, 56, 150), (236, 130, 170), (112, 72, 42), (204, 178, 138),
)  # fmt: skip
"""Base colours of upper garments, bags and hats."""
LOWER: tuple[RGB, ...] = (
    (30, 30, 36), (226, 222, 212), (112, 114, 120), (44, 62, 118), (112, 146, 196), (104, 72, 46), (84, 98, 58),
    (150, 40, 48), (196, 168, 128), (70, 44, 92),
)  # fmt: skip
"""Base colours of trousers, shorts and skirts."""
HAIR: tuple[RGB, ...] = ((24, 20, 20), (72, 44, 28), (140, 90, 46), (214, 178, 104), (150, 60, 36), (176, 174, 172))
SKIN: tuple[RGB, ...] = ((244, 206, 178), (222, 172, 132), (176, 122, 84), (112, 74, 52))
SHOES: tuple[RGB, ...] = ((24, 24, 26), (234, 234, 234), (120, 74, 44), (190, 44, 48), (60, 84, 160))
PATTERNS = ("plain", "plain", "bands", "stripes", "checks", "dots", "yoke", "sash", "half")
LOWER_KINDS = ("trousers", "trousers", "shorts", "skirt")
BAGS = ("none", "none", "backpack", "shoulder", "hand")
HATS = ("none", "none", "none", "cap", "beanie")

_BLACK_TO_WHITE = 255 * 3**0.5
# What tells people apart: the traits that are there or not, and the colours with the trait that shows them.
_KINDS = ("pattern", "long_sleeves", "lower_kind", "long_hair", "bag", "hat")
_COLORS = (
    ("upper", None, None),
    ("lower", None, None),
    ("accent", "pattern", "plain"),
    ("bag_color", "bag", "none"),
    ("hat_color", "hat", "none"),
)


@dataclass(frozen=True)
class Appearance:
    """What identifies a person.

    Attributes:
        upper: Colour of the upper garment.
        accent: Second colour of its pattern.
        pattern: One of :data:`PATTERNS`.
        long_sleeves: Sleeves down to the hands.
        lower: Colour of the lower garment.
        lower_kind: ``trousers``, ``shorts`` or ``skirt``.
        shoes: Colour of the shoes.
        hair: Colour of the hair.
        long_hair: Hair that falls on the shoulders.
        skin: Colour of the skin.
        bag: One of :data:`BAGS`.
        bag_color: Colour of the bag.
        hat: One of :data:`HATS`.
        hat_color: Colour of the hat.
        breadth: Width of the shoulders, in body heights.
        waist: Where the upper garment ends, in body heights from the top.
        head: Height of the head, in body heights.
    """

    upper: RGB
    accent: RGB
    pattern: str
    long_sleeves: bool
    lower: RGB
    lower_kind: str
    shoes: RGB
    hair: RGB
    long_hair: bool
    skin: RGB
    bag: str
    bag_color: RGB
    hat: str
    hat_color: RGB
    breadth: float
    waist: float
    head: float


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Draws a random person."""

    def shade(palette: tuple[RGB, ...], spread: float = 9.0) -> RGB:
        color = np.asarray(palette[rng.integers(len(palette))]) + rng.normal(0.0, spread, 3)
        r, g, b = np.clip(color, 8, 247).astype(int).tolist()
        return r, g, b

    def accent_to(color: RGB) -> RGB:
        while True:
            other = shade(CLOTHES)
            if distance(color, other) > 0.3:
                return other

    upper = shade(CLOTHES)
    return Appearance(
        upper=upper,
        accent=accent_to(upper),
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        long_sleeves=bool(rng.random() < 0.55),
        lower=shade(LOWER),
        lower_kind=LOWER_KINDS[rng.integers(len(LOWER_KINDS))],
        shoes=shade(SHOES),
        hair=shade(HAIR, 5.0),
        long_hair=bool(rng.random() < 0.4),
        skin=shade(SKIN, 5.0),
        bag=BAGS[rng.integers(len(BAGS))],
        bag_color=shade(CLOTHES),
        hat=HATS[rng.integers(len(HATS))],
        hat_color=shade(CLOTHES),
        breadth=float(rng.uniform(0.235, 0.32)),
        waist=float(rng.uniform(0.48, 0.56)),
        head=float(rng.uniform(0.125, 0.15)),
    )


def distance(a: RGB, b: RGB) -> float:
    """Euclidean distance of two colours, as a fraction of the distance of black and white."""
    return math.dist(a, b) / _BLACK_TO_WHITE


def difference(a: Appearance, b: Appearance) -> float:
    """How differently two people are dressed: 0 for the same appearance, about 1 per clearly different trait.

    Args:
        a: One person.
        b: Another person.

    Returns:
        Sum over the traits; colours count by :func:`distance`, at most 1 each, kinds count 0.5.
    """
    total = 0.5 * sum(getattr(a, name) != getattr(b, name) for name in _KINDS)
    for color, kind, absent in _COLORS:
        if kind is None or getattr(a, kind) != absent or getattr(b, kind) != absent:
            total += min(1.0, 2.5 * distance(getattr(a, color), getattr(b, color)))
    return total
