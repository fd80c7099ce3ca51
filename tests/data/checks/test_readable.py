"""Reading images: what counts as readable."""

import random

import numpy as np
import pytest
from PIL import Image

from amg_plugin import compat
from amg_plugin.data.checks.inspection import read_images


def picture(mode="RGB", size=(64, 128)):
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(14)]
    for path in paths:
        picture().save(path)
    return paths


def test_good_images_are_counted_once_each(images):
    found = read_images([*images, *images], workers=2)
    assert (found.count, found.unreadable, found.tiny) == (14, {}, [])


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text("no image"), "cannot identify"),
        (lambda path: path.unlink(), "No such file"),
    ],
    ids=["truncated", "empty", "text", "missing"],
)
def test_a_damaged_image_is_named_with_the_reason(images, damage, reason):
    damage(images[5])
    found = read_images(images, workers=2)
    assert list(found.unreadable) == [str(images[5])]
    assert reason in found.unreadable[str(images[5])]


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_what_is_cut_off_anywhere_counts_as_the_reader_sees_it(tmp_path, kind):
    """Reading at an eighth of the size must find what decoding the whole image finds."""
    whole = tmp_path / f"whole.{kind}"
    picture(size=(48, 96)).save(whole)
    content, cuts = whole.read_bytes(), random.Random(1)
    verdicts = {}
    for number in range(60):
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(content[: cuts.randrange(1, len(content))])
        try:
            Image.open(path).convert("RGB")
            verdicts[str(path)] = True
        except Exception:
            verdicts[str(path)] = False
    assert {path: path not in read_images(verdicts).unreadable for path in verdicts} == verdicts
    assert False in verdicts.values()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png"), ("I;16", "png")],
)
@pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")
def test_images_of_other_modes_count_as_readable_and_torchreid_makes_them_rgb(tmp_path, mode, kind):
    path = tmp_path / f"image.{kind}"
    if mode == "I;16":
        Image.fromarray(np.arange(64 * 32, dtype=np.uint16).reshape(64, 32)).save(path)
    else:
        picture(mode).save(path)
    assert Image.open(path).mode == mode
    assert read_images([path]).unreadable == {}
    assert compat.torchreid().utils.read_image(str(path)).mode == "RGB"


@pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")
def test_transparency_is_dropped_and_gives_no_warning(tmp_path, recwarn):
    path = tmp_path / "palette.png"
    image = Image.new("P", (16, 32), 0)
    image.putpalette([200, 10, 20, 0, 0, 0])
    image.save(path, transparency=bytes([0, 255]))
    assert read_images([path]).unreadable == {}
    assert not [warning for warning in recwarn if "Transparency" in str(warning.message)]
    assert compat.torchreid().utils.read_image(str(path)).getpixel((0, 0)) == (200, 10, 20)


def test_an_image_of_one_pixel_is_readable_but_named_as_tiny(tmp_path, images):
    dot = tmp_path / "dot.png"
    picture(size=(1, 1)).save(dot)
    found = read_images([*images, dot])
    assert (found.unreadable, found.tiny) == ({}, [str(dot)])
