"""How a person looks in one pose: figures drawn with Pillow.

Coordinates are relative to the figure: x = 0 is its middle axis, y = 0 the top of the head and y = 1 the soles, both
in units of its height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from amg_plugin.data.synthetic.appearance import RGB, Appearance

Point = tuple[float, float]

VIEWS = ("front", "back", "left", "right")


@dataclass(frozen=True)
class Pose:
    """What changes between two images of a person.

    Attributes:
        view: Side that the camera sees, one of :data:`VIEWS`.
        stride: Half distance of the feet, in body heights.
        swing: Swing of the arms, in body heights.
        lean: Horizontal shift of the head against the hips, in body heights.
    """

    view: str
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
    """Draws one figure onto an image.

    Args:
        image: RGB image that is drawn on.
        center: x of the figure's middle axis, in pixels.
        top: y of the top of the head, in pixels.
        height: Height of the figure, in pixels.
    """

    def __init__(self, image: Image.Image, center: float, top: float, height: float):
        self._image = image
        self._draw = ImageDraw.Draw(image)
        self._center, self._top, self._height = center, top, height

    def paint(self, person: Appearance, pose: Pose) -> None:
        """Draws ``person`` in ``pose``.

        Args:
            person: What the figure looks like.
            pose: How it stands.
        """
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
