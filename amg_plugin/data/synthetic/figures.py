"""People of the drawn data set: what makes an identity, and how it looks in one pose, drawn with Pillow.

Coordinates are relative to the figure: x = 0 is its middle axis, y = 0 the top of the head and y = 1 the soles, both
in units of its height.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

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
VIEWS = ("front", "back", "left", "right")

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
    """What identifies a person."""

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
    # In body heights: width of the shoulders, where the upper garment ends (from the top), height of the head.
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
    """How differently two people are dressed: 0 for the same, 1 at most per colour, 0.5 per other trait."""
    total = 0.5 * sum(getattr(a, name) != getattr(b, name) for name in _KINDS)
    for color, kind, absent in _COLORS:
        if kind is None or getattr(a, kind) != absent or getattr(b, kind) != absent:
            total += min(1.0, 2.5 * distance(getattr(a, color), getattr(b, color)))
    return total


@dataclass(frozen=True)
class Pose:
    """What changes between two images of a person."""

    view: str
    # In body heights: half distance of the feet, swing of the arms, shift of the head against the hips.
    stride: float
    swing: float
    lean: float


def sample_pose(rng: np.random.Generator) -> Pose:
    """Draws a random viewpoint and posture."""
    return Pose(
        view=VIEWS[rng.choice(4, p=(0.36, 0.36, 0.14, 0.14))],
        stride=float(rng.uniform(0.02, 0.10)),
        swing=float(rng.uniform(-0.06, 0.09)),
        lean=float(rng.normal(0.0, 0.008)),
    )


class FigurePainter:
    """Draws one figure onto an RGB image: its middle axis, the top of its head and its height are in pixels."""

    def __init__(self, image: Image.Image, center: float, top: float, height: float):
        self._image = image
        self._draw = ImageDraw.Draw(image)
        self._center, self._top, self._height = center, top, height

    def paint(self, person: Appearance, pose: Pose) -> None:
        """Draws ``person`` in ``pose``."""
        side = pose.view in ("left", "right")
        half = person.breadth / 2 * (0.66 if side else 1.0)
        neck = (pose.lean, person.head)
        shoulder_y = person.head + 0.035
        if person.long_hair and pose.view != "back":
            self._ellipse(neck[0], 0.085, 0.066, 0.088, person.hair)
        if person.bag == "backpack" and side:
            way = 1 if pose.view == "left" else -1
            self._box(way * half * 0.6, shoulder_y + 0.02, way * (half + 0.07), person.waist - 0.06, person.bag_color)
        self._legs(person, pose, half)
        far, near = (-1, 1) if pose.view != "right" else (1, -1)
        self._arm(person, pose, far, half, shoulder_y)
        self._torso(person, pose, half, shoulder_y)
        self._arm(person, pose, near, half * (0.1 if side else 1.0), shoulder_y)
        self._head(person, pose, neck)
        self._bag(person, pose, half, shoulder_y)

    def _xy(self, x: float, y: float) -> Point:
        return self._center + x * self._height, self._top + y * self._height

    def _polygon(self, points: list[Point], color: RGB) -> None:
        self._draw.polygon([self._xy(*p) for p in points], fill=color)

    def _box(self, x0: float, y0: float, x1: float, y1: float, color: RGB) -> None:
        self._polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def _ellipse(self, x: float, y: float, rx: float, ry: float, color: RGB) -> None:
        self._draw.ellipse([self._xy(x - rx, y - ry), self._xy(x + rx, y + ry)], fill=color)

    def _limb(self, points: list[Point], width: float, color: RGB) -> None:
        pixels = [self._xy(*p) for p in points]
        self._draw.line(pixels, fill=color, width=max(2, round(width * self._height)), joint="curve")

    def _legs(self, person: Appearance, pose: Pose, half: float) -> None:
        hip = person.waist - 0.02
        thick = person.breadth * 0.36
        for way in (-1, 1):
            x0, x1 = way * half * 0.42, way * (half * 0.34 + pose.stride)
            knee = ((x0 + x1) / 2, 0.73)
            bare = person.lower_kind != "trousers"
            self._limb(
                [(x0, hip), knee, (x1, 0.95)], thick * (0.75 if bare else 1.0), person.skin if bare else person.lower
            )
            if person.lower_kind == "shorts":
                self._limb([(x0, hip), knee], thick * 1.15, person.lower)
            self._ellipse(x1, 0.968, 0.045, 0.026, person.shoes)
        if person.lower_kind == "skirt":
            flare = half * 1.15 + pose.stride * 0.4
            self._polygon([(-half * 0.85, hip), (half * 0.85, hip), (flare, 0.76), (-flare, 0.76)], person.lower)
        self._box(-half * 0.86, hip - 0.01, half * 0.86, hip + 0.07, person.lower)

    def _arm(self, person: Appearance, pose: Pose, way: int, half: float, shoulder_y: float) -> None:
        swing = pose.swing * way
        shoulder = (way * half * 0.94, shoulder_y + 0.02)
        elbow = (way * (half * 1.12) + swing * 0.5, shoulder_y + 0.17)
        hand = (way * (half * 1.05) + swing, shoulder_y + 0.31)
        thick = person.breadth * 0.25
        self._limb([shoulder, elbow, hand], thick * 0.8, person.skin)
        self._limb([shoulder, elbow, hand] if person.long_sleeves else [shoulder, elbow], thick, person.upper)
        self._ellipse(*hand, 0.022, 0.024, person.skin)

    def _torso(self, person: Appearance, pose: Pose, half: float, shoulder_y: float) -> None:
        lean = pose.lean
        outline = [
            (lean - half * 0.45, shoulder_y - 0.02), (lean + half * 0.45, shoulder_y - 0.02),
            (lean + half, shoulder_y + 0.02), (half * 0.88, person.waist), (-half * 0.88, person.waist),
            (lean - half, shoulder_y + 0.02),
        ]  # fmt: skip
        self._limb([(lean, person.head - 0.02), (lean, shoulder_y)], 0.055, person.skin)
        self._polygon(outline, person.upper)
        if person.pattern == "plain":
            return
        # The pattern is painted on a layer of its own, so that the outline of the torso can cut it off.
        x0, y0 = (round(v) for v in self._xy(-half * 1.1, shoulder_y - 0.02))
        x1, y1 = (round(v) for v in self._xy(half * 1.1, person.waist))
        layer = Image.new("RGB", (x1 - x0, y1 - y0), person.upper)
        mask = Image.new("L", layer.size)
        corners = [(px - x0, py - y0) for px, py in (self._xy(*p) for p in outline)]
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        _paint_pattern(layer, person, mirrored=pose.view == "back")
        self._image.paste(layer, (x0, y0), mask)

    def _head(self, person: Appearance, pose: Pose, neck: Point) -> None:
        x, ry = neck[0], person.head / 2
        rx = ry * 0.82
        if pose.view == "back":
            if person.long_hair:
                self._ellipse(x, ry * 1.45, rx * 1.2, ry * 1.5, person.hair)
            self._ellipse(x, ry, rx, ry, person.hair)
        else:
            self._ellipse(x, ry, rx, ry, person.skin)
            pixels = [self._xy(x - rx, 0.0), self._xy(x + rx, 2 * ry)]
            start, end = {"front": (185, 355), "left": (200, 420), "right": (120, 340)}[pose.view]
            self._draw.chord(pixels, start, end, fill=person.hair)
        if person.hat != "none":
            deep = ry * (0.75 if person.hat == "cap" else 1.0)
            pixels = [self._xy(x - rx * 1.12, -ry * 0.2), self._xy(x + rx * 1.12, deep * 2)]
            self._draw.chord(pixels, 180, 360, fill=person.hat_color)
            if person.hat == "cap" and pose.view != "back":
                shift = {"front": 0.0, "left": -rx, "right": rx}[pose.view]
                self._box(x + shift - rx, deep * 0.75, x + shift + rx, deep, person.hat_color)

    def _bag(self, person: Appearance, pose: Pose, half: float, shoulder_y: float) -> None:
        color = person.bag_color
        # Carried on the person's right: left in the image from the front, right from the back.
        way = -1 if pose.view in ("front", "left") else 1
        if person.bag == "backpack":
            if pose.view == "back":
                self._box(-half * 0.72, shoulder_y + 0.01, half * 0.72, person.waist - 0.06, color)
            elif pose.view == "front":
                for strap in (-1, 1):
                    self._limb(
                        [(strap * half * 0.6, shoulder_y), (strap * half * 0.62, shoulder_y + 0.2)], 0.028, color
                    )
        elif person.bag == "shoulder":
            self._limb([(-way * half * 0.6, shoulder_y), (way * half * 0.9, person.waist)], 0.022, color)
            self._box(way * half * 0.6, person.waist - 0.04, way * (half + 0.06), person.waist + 0.08, color)
        elif person.bag == "hand":
            x = way * half * 1.05
            self._limb([(x, shoulder_y + 0.31), (x, shoulder_y + 0.36)], 0.02, color)
            self._box(x - 0.055, shoulder_y + 0.35, x + 0.055, shoulder_y + 0.48, color)


def _paint_pattern(layer: Image.Image, person: Appearance, mirrored: bool) -> None:
    """Fills ``layer`` with the pattern of the upper garment."""
    draw = ImageDraw.Draw(layer)
    width, height = layer.size
    step = max(4, height // 6)
    color = person.accent
    if person.pattern in ("bands", "checks"):
        for y in range(step, height, 2 * step):
            draw.rectangle([0, y, width, y + step - 1], fill=color)
    if person.pattern in ("stripes", "checks"):
        for x in range(step // 2, width, 2 * step):
            draw.rectangle([x, 0, x + step - 1, height], fill=color)
    elif person.pattern == "dots":
        for row, y in enumerate(range(step // 2, height, 2 * step)):
            for x in range(step * (row % 2), width, 2 * step):
                draw.ellipse([x, y, x + step, y + step], fill=color)
    elif person.pattern == "yoke":
        draw.rectangle([0, 0, width, int(height * 0.42)], fill=color)
    elif person.pattern == "half":
        left = (0, width // 2) if not mirrored else (width // 2, width)
        draw.rectangle([left[0], 0, left[1], height], fill=color)
    elif person.pattern == "sash":
        wide = height * 0.28
        start, end = (0.0, float(width)) if not mirrored else (float(width), 0.0)
        draw.polygon([(start, 0), (start, wide), (end, height), (end, height - wide)], fill=color)
