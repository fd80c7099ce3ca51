"""Cameras, backgrounds and occluders of the drawn data set.

A :class:`Camera` is what all images of one camera share: where the people stand in the picture, the colours of wall
and floor, light, colour cast, contrast and blur. Clutter, light and noise change from image to image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from amg_plugin.data.synthetic.figures import CLOTHES, LOWER, RGB

MARGIN = 0.2
"""What a painted scene is wider than the photograph on each side, fraction of the photograph's width."""


@dataclass(frozen=True)
class Camera:
    """What the images of one camera have in common."""

    gain: tuple[float, float, float]  # factors of red, green and blue: light and colour cast
    gamma: float  # exponent of the tone curve
    saturation: float  # 1 leaves the colours as they are, 0 is grey
    lift: float  # level that black is raised to, fraction of white
    blur: float  # radius of the Gaussian blur in pixels of the final image
    noise: float  # standard deviation in grey levels
    scale: float  # height of the figures, fraction of the image height
    offset: tuple[float, float]  # mean position of the figures against the middle, fraction of the image (x, y)
    shear: float  # horizontal shift per pixel of height
    taper: float  # how much narrower the feet look than the head (a camera that looks down)
    horizon: float  # where wall and floor meet, fraction of the image height
    wall: RGB
    floor: RGB


def sample_camera(rng: np.random.Generator) -> Camera:
    """Draws a random camera."""
    cast = rng.normal(0.0, 1.0, 3)
    cast = (cast - cast.mean()) / max(1e-6, float(np.abs(cast - cast.mean()).max()))
    light = rng.uniform(0.82, 1.08)
    gain = light * (1.0 + rng.uniform(0.04, 0.12) * cast)
    wall, floor = (rng.uniform(80, 180) + rng.normal(0.0, 16.0, 3) for _ in range(2))
    return Camera(
        gain=tuple(gain.tolist()),
        gamma=float(rng.uniform(0.85, 1.2)),
        saturation=float(rng.uniform(0.65, 1.1)),
        lift=float(rng.uniform(0.0, 0.12)),
        blur=float(rng.uniform(0.0, 0.8)),
        noise=float(rng.uniform(2.0, 6.0)),
        scale=float(rng.uniform(0.82, 0.93)),
        offset=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.02, 0.02))),
        shear=float(rng.uniform(-0.06, 0.06)),
        taper=float(rng.uniform(0.0, 0.15)),
        horizon=float(rng.uniform(0.45, 0.7)),
        wall=tuple(wall.astype(int).tolist()),
        floor=tuple(floor.astype(int).tolist()),
    )


def paint_background(size: tuple[int, int], camera: Camera, clutter: float, rng: np.random.Generator) -> Image.Image:
    """Paints wall, floor and ``clutter`` random things."""
    width, height = size
    image = Image.new("RGB", size, _jitter(camera.wall, 12, rng))
    draw = ImageDraw.Draw(image)
    ground = int(height * (camera.horizon + rng.uniform(-0.03, 0.03)))
    draw.rectangle([0, ground, width, height], fill=_jitter(camera.floor, 12, rng))
    for _ in range(rng.poisson(clutter)):
        color = _thing_color(rng)
        x, y = rng.uniform(-0.2, 1.0) * width, rng.uniform(-0.1, 1.0) * height
        w, h = rng.uniform(0.08, 0.5) * width, rng.uniform(0.05, 0.3) * height
        kind = rng.integers(4)
        if kind == 0:
            draw.rectangle([x, y, x + w, y + h], fill=color)
        elif kind == 1:
            draw.ellipse([x, y, x + w, y + h], fill=color)
        elif kind == 2:
            draw.line([x, y, x + rng.uniform(-1, 1) * width, y + h * 2], fill=color, width=int(rng.integers(3, 12)))
        else:
            draw.polygon([(x, y + h), (x + w / 2, y), (x + w, y + h)], fill=color)
    return image


def paint_occluder(image: Image.Image, rng: np.random.Generator) -> None:
    """Paints something that stands in front of the person: a box, a pole, a bush or an umbrella."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    color, second = _thing_color(rng), _thing_color(rng)
    kind = rng.integers(4)
    if kind == 0:  # a car, a bin or a low wall hides the legs
        top = height * rng.uniform(0.58, 0.75)
        left = width * rng.uniform(-0.3, 0.2)
        draw.rectangle([left, top, left + width * rng.uniform(0.8, 1.2), height], fill=color)
        draw.rectangle([left, top, left + width * 1.2, top + height * 0.05], fill=second)
    elif kind == 1:  # a pole or a door frame hides a vertical strip
        left = width * rng.uniform(0.22, 0.62)
        draw.rectangle([left, 0, left + width * rng.uniform(0.1, 0.17), height], fill=color)
    elif kind == 2:  # a bush hides a corner
        x, y = width * rng.choice((0.15, 0.85)), height * rng.uniform(0.65, 0.9)
        for _ in range(14):
            r = width * rng.uniform(0.08, 0.2)
            dx, dy = rng.normal(0, width * 0.16), rng.normal(0, height * 0.09)
            green = _jitter((58, 104, 52), 18, rng)
            draw.ellipse([x + dx - r, y + dy - r, x + dx + r, y + dy + r], fill=green)
    else:  # an umbrella hides the head
        y = height * rng.uniform(-0.08, 0.0)
        draw.chord([-width * 0.05, y, width * 1.05, y + height * rng.uniform(0.4, 0.5)], 180, 360, fill=color)


def photograph(image: Image.Image, size: tuple[int, int], camera: Camera, rng: np.random.Generator) -> Image.Image:
    """What ``camera`` makes of a painted scene: viewpoint, size, blur, light, colour cast and noise.

    The scene has :data:`MARGIN` on both sides; its height becomes that of the photograph.
    """
    width, height = image.size
    # The corners that become the picture: shear slants them, taper shows more of the width at the bottom.
    slant, taper = camera.shear * height / 2, camera.taper * width / 4
    half, middle = height * size[0] / size[1] / 2, width / 2
    left, right = middle - half, middle + half
    top, bottom = (left + slant + taper, right + slant - taper), (left - slant - taper, right - slant + taper)
    quad = (top[0], 0, bottom[0], height, bottom[1], height, top[1], 0)
    photo = image.transform(size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    if camera.blur > 0.1:
        photo = photo.filter(ImageFilter.GaussianBlur(camera.blur))
    pixels = np.asarray(photo, dtype=np.float32) / 255.0
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * np.float32(camera.saturation)
    light = np.float32(rng.uniform(0.85, 1.12))
    shade = 1.0 + np.float32(rng.uniform(-0.12, 0.12)) * np.linspace(-1, 1, size[0], dtype=np.float32)[None, :, None]
    gain = np.asarray(camera.gain, dtype=np.float32) * light
    pixels = np.clip(pixels, 0.0, 1.0) ** np.float32(camera.gamma) * gain * shade
    pixels = camera.lift + (1.0 - camera.lift) * pixels
    pixels = pixels * 255.0 + np.float32(camera.noise) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _jitter(color: RGB, spread: float, rng: np.random.Generator) -> RGB:
    """A colour near ``color``."""
    r, g, b = np.clip(np.asarray(color) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist()
    return r, g, b


def _thing_color(rng: np.random.Generator) -> RGB:
    """A colour that clothes have too, so that colours alone do not tell people from things."""
    palette = CLOTHES if rng.random() < 0.7 else LOWER
    return _jitter(palette[rng.integers(len(palette))], 14, rng)
