"""Drawing of occluders: something in front of a person, and the mask of what it hides.

Objects come from below, from the left or from the right, as in the occluded data sets. Each has a silhouette and a
texture; the silhouette grows until it hides the share of the image that was drawn. The masks say which pixels were
replaced, so that whatever looks at the image can be compared with what is really visible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from amg_plugin.data.occlusion.settings import Coverage
from amg_plugin.errors import DataError

SIDES = ("below", "left", "right")
"""Where an object comes from."""
SIDE_SHARES = (0.5, 0.25, 0.25)
"""How often it comes from there."""
DRAWN = ("bar", "box", "vehicle")
"""Objects that are drawn, equally often; ``cut`` is the one cut out of another image."""
SMALLEST_SIDE = 8
"""Smallest height and width in pixels of an image that can be partly covered."""
MARGIN = 0.2
"""Share of the width, at each side of an image, that counts as background."""

_STEPS = 12  # of the bisection: a 4096th of the image's side
_ENLARGEMENT = 2  # of background textures; what is missing is filled by reflection

Point = tuple[float, float]
Shape = list[list[Point]]
"""Polygons in a box of 1 x 1; y counts from the top."""


@dataclass(frozen=True)
class Occlusion:
    """An occluded image."""

    image: Image.Image  # RGB, as large as the original
    mask: np.ndarray  # [height, width], True where the original is hidden
    side: str  # out of SIDES
    kind: str  # out of DRAWN, or "cut"

    @property
    def coverage(self) -> float:
        """Share of the pixels that are hidden."""
        return float(self.mask.mean())


def occlude(
    image: Image.Image, rng: np.random.Generator, coverage: Coverage | None = None, donor: Image.Image | None = None
) -> Occlusion:
    """Put one object in front of an image. Pixels outside the mask stay as they are.

    Args:
        image: RGB, at least :data:`SMALLEST_SIDE` pixels high and wide.
        rng: Source of everything random.
        coverage: Distribution of the covered share; the default one if omitted.
        donor: Image whose background the object is cut from; None for a drawn object.

    Raises:
        DataError: The image is too small to be partly covered.
    """
    width, height = image.size
    if min(width, height) < SMALLEST_SIDE:
        raise DataError(
            f"{width}x{height} pixels cannot be partly covered; {SMALLEST_SIDE}x{SMALLEST_SIDE} are the least"
        )
    share = (coverage or Coverage()).draw(rng)
    side = str(rng.choice(SIDES, p=SIDE_SHARES))
    kind = "cut" if donor is not None else str(rng.choice(DRAWN))
    shape, box_of, largest = _silhouette(kind, "below" if side == "below" else "left", share, rng)
    extent, mask = _grow(shape, box_of, largest, share, (width, height))
    texture = _background_texture(donor, (width, height), rng) if donor is not None else _surface(kind, image.size, rng)
    if kind == "vehicle":
        _add_details(texture, box_of(extent), rng)
    if side == "right":
        mask, texture = ImageOps.mirror(mask), ImageOps.mirror(texture)
    hidden = np.asarray(mask) > 0
    return Occlusion(Image.composite(texture, image.convert("RGB"), mask), hidden, side, kind)


# Silhouettes -----------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of the image."""


def _silhouette(
    kind: str, side: str, share: float, rng: np.random.Generator
) -> tuple[Shape, Callable[[float], Box], float]:
    """Shape of an object, its box as a function of how far it reaches into the image, and its largest reach."""
    reach = 2.0 if kind == "vehicle" else 1.05
    if side == "below":
        across = rng.uniform(max(0.75, share + 0.15), 1.3) if kind != "vehicle" else rng.uniform(1.2, 2.2)
        left = 0.5 - across / 2 + rng.uniform(-0.12, 0.12)
        return _shape(kind, side, rng), lambda extent: (left, 1 - extent, left + across, 1.0), reach
    if kind == "bar":  # a post stands on the ground and ends above the image
        start = rng.uniform(0.0, min(0.3, 0.88 - share / 0.9))
        return _shape(kind, side, rng), lambda extent: (start, 0.0, start + extent, 1.0), 1.0 - start
    tall = rng.uniform(min(0.95, max(0.55, share * 1.35)), 1.0)
    # What is outside the image counts too: only the end of the object is seen.
    return _shape(kind, side, rng), lambda extent: (-0.9, 1 - tall, extent, 1.0), reach


def _shape(kind: str, side: str, rng: np.random.Generator) -> Shape:
    if kind == "vehicle":  # body with bonnet and cabin; wheels are polygons as well
        body = [(0.0, 0.52), (0.09, 0.42), (0.26, 0.36), (0.37, 0.06), (0.7, 0.02), (0.86, 0.36), (0.97, 0.44),
                (1.0, 0.6), (1.0, 0.93), (0.0, 0.93)]  # fmt: skip
        return [body, *(_disc(x, 0.86, 0.1, 0.14) for x in (0.2, 0.79))]
    if kind == "bar" and side == "below":  # a barrier: two boards on two posts
        boards = [[(0.0, top), (1.0, top), (1.0, top + 0.42), (0.0, top + 0.42)] for top in (0.0, 0.5)]
        return [*boards, *([(x, 0.0), (x + 0.08, 0.0), (x + 0.08, 1.0), (x, 1.0)] for x in (0.12, 0.8))]
    if kind == "bar":
        slant = rng.uniform(-0.1, 0.1)
        return [[(max(0.0, slant), 0.0), (1.0 + min(0.0, slant), 0.0), (1.0 - max(0.0, slant), 1.0),
                 (-min(0.0, slant), 1.0)]]  # fmt: skip
    if kind == "box":
        first, second = rng.uniform(0.0, 0.1, 2)
        return [[(0.0, first), (1.0, second), (1.0, 1.0), (0.0, 1.0)]]
    # What is cut has an uneven edge towards the middle of the image.
    edge = np.linspace(0.0, 1.0, 9)
    depth = rng.uniform(0.0, 0.22, 9) * rng.uniform(0.2, 1.0)
    if side == "below":
        return [[*zip(edge.tolist(), depth.tolist(), strict=True), (1.0, 1.0), (0.0, 1.0)]]
    return [[(0.0, 0.0), *zip((1 - depth).tolist(), edge.tolist(), strict=True), (0.0, 1.0)]]


def _disc(x: float, y: float, across: float, up: float) -> list[Point]:
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return [(x + across * float(np.cos(a)), y + up * float(np.sin(a))) for a in angles]


def _placed(polygon: list[Point], box: Box, size: tuple[int, int]) -> list[Point]:
    left, top, right, bottom = box
    return [((left + x * (right - left)) * size[0], (top + y * (bottom - top)) * size[1]) for x, y in polygon]


def _grow(
    shape: Shape, box_of: Callable[[float], Box], largest: float, share: float, size: tuple[int, int]
) -> tuple[float, Image.Image]:
    """The smallest reach that hides ``share`` of the image, and its mask (mode ``L``, 0 or 255)."""

    def draw(extent: float) -> Image.Image:
        mask = Image.new("L", size)
        pen = ImageDraw.Draw(mask)
        for polygon in shape:
            pen.polygon(_placed(polygon, box_of(extent), size), fill=255)
        return mask

    low, high = 0.0, largest
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _covered(draw(middle)) >= share else (middle, high)
    mask = draw(high)
    if not 0 < _covered(mask) < 1:  # a few pixels only
        mask = Image.new("L", size)
        mask.paste(255, (0, size[1] - max(1, round(share * size[1])), *size))
    return high, mask


def _covered(mask: Image.Image) -> float:
    return 1 - mask.histogram()[0] / (mask.width * mask.height)


# Textures --------------------------------------------------------------------------------------------------------

_PAINTS = ((196, 196, 190), (60, 62, 66), (150, 30, 32), (30, 60, 120), (220, 190, 60), (40, 90, 60), (120, 90, 60))


def _surface(kind: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paint with light from above, some structure and noise, as large as the image."""
    width, height = size
    base = np.asarray(_PAINTS[rng.integers(len(_PAINTS))]) + rng.normal(0.0, 12.0, 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 1.0 - 0.35 * (y / height) + rng.uniform(-0.15, 0.15) * (x / width)
    pixels = base[None, None].astype(np.float32) * light[..., None]
    if kind == "bar":  # warning stripes, or the sheen of a tube
        if rng.random() < 0.5:
            period = rng.uniform(0.12, 0.3) * width
            stripes = ((x + y) % period < period / 2)[..., None]
            pixels = np.where(stripes, pixels, np.float32([232, 230, 224]) * light[..., None])
        else:
            pixels *= (0.75 + 0.35 * np.sin(x / width * np.float32(rng.uniform(6, 14))))[..., None]
    elif kind == "box":  # planks, or bricks
        period = max(3.0, rng.uniform(0.06, 0.16) * height)
        grooves = (y % period < 1) | ((x % (2 * period) < 1) if rng.random() < 0.5 else False)
        pixels = np.where(grooves[..., None], pixels * 0.55, pixels)
    pixels = pixels + rng.normal(0.0, 5.0, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _add_details(texture: Image.Image, box: Box, rng: np.random.Generator) -> None:
    """Windows, wheels and lamps of a vehicle in ``box``; painted on the texture, so they never leave the silhouette."""
    pen = ImageDraw.Draw(texture)
    glass = (34, 40, 48) if rng.random() < 0.7 else (150, 170, 180)
    for window in (
        [(0.33, 0.36), (0.41, 0.12), (0.54, 0.1), (0.54, 0.36)],
        [(0.57, 0.36), (0.57, 0.1), (0.68, 0.1), (0.8, 0.36)],
    ):
        pen.polygon(_placed(window, box, texture.size), fill=glass)
    for x in (0.2, 0.79):
        pen.polygon(_placed(_disc(x, 0.86, 0.1, 0.14), box, texture.size), fill=(22, 22, 24))
        pen.polygon(_placed(_disc(x, 0.86, 0.05, 0.07), box, texture.size), fill=(150, 150, 154))
    for x, color in ((0.0, (236, 232, 200)), (0.95, (170, 30, 30))):
        lamp = [(x, 0.54), (x + 0.05, 0.54), (x + 0.05, 0.64), (x, 0.64)]
        pen.polygon(_placed(lamp, box, texture.size), fill=color)


def _background_texture(donor: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The left or right margin of another image, enlarged a little and continued by reflection to ``size``."""
    width, height = donor.size
    margin = max(1, round(MARGIN * width))
    left = 0 if rng.random() < 0.5 else width - margin
    tall = max(1, round(height * rng.uniform(0.4, 1.0)))
    top = int(rng.integers(0, height - tall + 1))
    strip = donor.convert("RGB").crop((left, top, left + margin, top + tall))
    scale = _ENLARGEMENT * max(1.0, size[1] / (_ENLARGEMENT * height))  # a small donor does not turn into a pattern
    strip = strip.resize((max(1, round(margin * scale)), max(1, round(tall * scale))), Image.Resampling.BICUBIC)
    pixels = np.asarray(strip)[: size[1], : size[0]]
    missing = ((0, size[1] - pixels.shape[0]), (0, size[0] - pixels.shape[1]), (0, 0))
    return Image.fromarray(np.pad(pixels, missing, mode="symmetric"))
