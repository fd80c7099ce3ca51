"""Reading images: what counts as readable."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from amg_plugin import compat
from amg_plugin.data.checks.inspection import read_images
from amg_plugin.data.images import as_rgb, read_rgb
from amg_plugin.deploy.images import as_image
from amg_plugin.errors import DataError


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
    ("mode", "kind"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png")]
)
@pytest.mark.skipif(not compat.is_installed(), reason="torchreid is not installed")
def test_images_of_other_modes_are_read_as_by_torchreid(tmp_path, mode, kind):
    path = tmp_path / f"image.{kind}"
    picture(mode).save(path)
    assert Image.open(path).mode == mode
    assert read_images([path]).unreadable == {}
    assert read_rgb(path).tobytes() == compat.torchreid().utils.read_image(str(path)).tobytes()


GREY = np.arange(0, 256, 2, dtype=np.uint16).reshape(16, 8)  # of 8 bits


def write_deep(path, mode):
    """An image of one mode with 16 bits, or floats, a channel; white is where :data:`GREY` is 254."""
    deep = Image.fromarray((GREY * 257).astype(">u2" if mode.endswith("B") else "<u2"))
    if mode == "RGB":
        raw = (GREY * 257).astype(">u2").repeat(3).tobytes()
        rows = b"".join(b"\0" + raw[start : start + 48] for start in range(0, len(raw), 48))
        head = struct.pack(">IIBBBBB", 8, 16, 16, 2, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        body = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    elif mode == "PGM":
        path.write_bytes(b"P5 8 16 65535\n" + (GREY * 257).astype(">u2").tobytes())
    elif mode in ("I", "F"):
        Image.fromarray(GREY.astype(np.int32 if mode == "I" else np.float32)).save(path)
    else:
        deep.save(path)


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "png"), ("I;16", "tif"), ("I;16B", "tif"), ("PGM", "pgm"), ("RGB", "png")]
)
def test_16_bits_are_scaled_and_named(tmp_path, mode, kind):
    path = tmp_path / f"deep.{kind}"
    write_deep(path, mode)
    found = read_images([path])
    assert (found.unreadable, found.scaled) == ({}, [str(path)])
    assert np.array_equal(np.asarray(read_rgb(path))[..., 0], GREY)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(as_image(opened)), np.asarray(read_rgb(path)))


def test_12_bits_in_a_tiff_file_are_scaled_by_their_own_white(tmp_path):
    image = Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16))
    image.tag_v2 = {258: (12,)}
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("mode", "reason"), [("I", "32-bit"), ("F", "floating-point")])
def test_values_without_a_defined_white_are_refused_everywhere(tmp_path, mode, reason):
    path = tmp_path / "deep.tif"
    write_deep(path, mode)
    assert reason in read_images([path]).unreadable[str(path)]
    for read in (read_rgb, as_image, lambda path: as_image(Image.open(path))):
        with pytest.raises(DataError, match=f"{reason} values have no defined white"):
            read(path)


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(size=(20, 40)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_rotation_is_named_and_not_applied(tmp_path, kind):
    path = rotated(tmp_path / f"image.{kind}")
    assert read_images([path]).rotated == [str(path)]
    assert read_rgb(path).size == (20, 40)


def test_an_opened_file_is_an_image_too(images):
    content = io.BytesIO(images[0].read_bytes())
    with images[0].open("rb") as file:
        assert as_image(file).tobytes() == as_image(content).tobytes() == read_rgb(images[0]).tobytes()
    with pytest.raises(DataError, match="BytesIO"):
        as_image(io.BytesIO(b"no image"))


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
