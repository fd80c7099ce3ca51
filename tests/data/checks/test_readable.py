"""Reading images: what counts as readable, and what is remembered between passes."""

import json
import os
import random
import stat

import numpy as np
import pytest
from PIL import Image

from amg_plugin import compat
from amg_plugin.data.checks import readable
from amg_plugin.data.checks.cache import CheckCache, cache_folder
from amg_plugin.data.checks.readable import read_images


def picture(mode="RGB", size=(64, 128)):
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(14)]
    for path in paths:
        picture().save(path)
    return paths


@pytest.fixture
def cache(tmp_path):
    def fresh():
        return CheckCache(tmp_path / "root", tmp_path / "cache")

    return fresh


@pytest.fixture
def decoded(monkeypatch):
    """Paths that were opened."""
    opened = []
    plain = Image.open

    def noted(path, *args, **kwargs):
        opened.append(str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(readable.Image, "open", noted)
    return opened


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


def test_an_image_of_one_pixel_is_readable_but_named_as_tiny(tmp_path, images, cache):
    dot = tmp_path / "dot.png"
    picture(size=(1, 1)).save(dot)
    held = cache()
    for _ in range(2):  # the second time from the cache
        found = read_images([*images, dot], cache=held)
        assert (found.unreadable, found.tiny) == ({}, [str(dot)])


def test_what_was_fine_is_not_decoded_again(images, cache, decoded):
    held = cache()
    assert read_images(images, cache=held).cached == 0
    held.save()
    decoded.clear()
    assert read_images(images, cache=cache()).cached == 14
    assert decoded == []


def test_only_what_changed_is_decoded_again(images, cache, decoded):
    held = cache()
    read_images(images, cache=held)
    held.save()
    truncate(images[3])
    picture(size=(32, 32)).save(images[4])
    status = images[5].stat()
    os.utime(images[5], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    decoded.clear()
    found = read_images(images, cache=cache())
    assert list(found.unreadable) == [str(images[3])]
    assert sorted(decoded) == sorted(map(str, images[3:6]))


def test_a_bad_image_is_read_again_every_time(images, cache):
    truncate(images[0])
    held = cache()
    assert read_images(images, cache=held).unreadable
    held.save()
    assert read_images(images, cache=cache()).unreadable


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"{",
        lambda content: b"\xff\x00",
        lambda content: b"[]",
        lambda content: content.replace(b'"version":1', b'"version":2'),
        lambda content: content.replace(b'"pillow":"', b'"pillow":"0'),
        lambda content: b'{"format":"amg_plugin.checked_images"}',
    ],
    ids=["cut", "binary", "list", "version", "pillow", "incomplete"],
)
def test_a_cache_that_cannot_be_used_is_replaced(images, cache, change):
    held = cache()
    read_images(images, cache=held)
    held.save()
    whole = held.path.read_bytes()
    held.path.write_bytes(change(whole))
    assert held.path.read_bytes() != whole
    again = cache()
    assert read_images(images, cache=again).cached == 0
    again.save()
    assert held.path.read_bytes() == whole


@pytest.mark.parametrize("entry", [None, [1], ["a", "b", "c"], {"size": 1}, [True, True, True]])
def test_a_damaged_entry_does_not_pass_for_a_good_file(images, cache, entry):
    held = cache()
    read_images(images, cache=held)
    held.save()
    content = json.loads(held.path.read_text())
    content["files"][str(images[0])] = entry
    held.path.write_text(json.dumps(content))
    truncate(images[0])
    found = read_images(images, cache=cache())
    assert list(found.unreadable) == [str(images[0])]
    assert found.cached == 13


def test_a_cache_folder_that_cannot_be_written_is_done_without(images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = CheckCache(tmp_path, tmp_path / "file" / "cache")
    assert read_images(images, cache=cache).unreadable == {}
    cache.save()
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_data_root_that_is_read_only_stays_as_it_is(images, tmp_path, cache):
    root = images[0].parent
    before = sorted(path.name for path in root.iterdir())
    root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        held = CheckCache(root)
        read_images(images, cache=held)
        held.save()
        assert held.path.is_file()
    finally:
        root.chmod(stat.S_IRWXU)
    assert sorted(path.name for path in root.iterdir()) == before


def test_the_cache_lies_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "amg_plugin"
    assert CheckCache("a").path.parent == tmp_path / "amg_plugin"
    assert CheckCache("a").path != CheckCache("b").path
