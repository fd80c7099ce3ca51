"""Occluded copies of a data set in Market-1501's layout."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from amg_plugin.data.layout import GALLERY_DIR, MARKET_FOLDERS, QUERY_DIR, TRAIN_DIR
from amg_plugin.data.occlusion.copy import MANIFEST, MASK_DIR, identity_of, list_names, mask_name, write_occluded_copy
from amg_plugin.data.occlusion.masks import read_mask
from amg_plugin.data.occlusion.settings import CopySettings, Coverage
from amg_plugin.errors import DataError, RunError

ALL = CopySettings(seed=7, gallery_share=0.5)


@pytest.fixture
def source(tmp_path, drawn_root):
    """A drawn data set that the test may damage."""
    return shutil.copytree(drawn_root / "synthetic_reid", tmp_path / "data" / "source")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "copy"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def first(source, part):
    return source / part / list_names(source / part)[0]


# What is in a copy -----------------------------------------------------------------------------------------------


def test_every_image_has_its_copy(source, target):
    write_occluded_copy(source, target, ALL)
    for part in MARKET_FOLDERS.values():
        assert list_names(target / part) == list_names(source / part)


def test_training_images_are_copied_byte_by_byte(source, target):
    write_occluded_copy(source, target, ALL)
    assert contents(target / TRAIN_DIR) == contents(source / TRAIN_DIR)


def test_all_queries_and_the_asked_share_of_the_gallery_are_occluded(source, target):
    manifest = write_occluded_copy(source, target, ALL)
    gallery = len(list_names(source / GALLERY_DIR))
    expected = {QUERY_DIR: len(list_names(source / QUERY_DIR)), GALLERY_DIR: round(0.5 * gallery)}
    for part, count in expected.items():
        before, after = contents(source / part), contents(target / part)
        changed = {name for name in before if before[name] != after[name]}
        assert len(changed) == count == manifest["counts"][part]["occluded"]
        assert changed == set(manifest["images"][part])
        assert {mask_name(name) for name in changed} == set(contents(target / MASK_DIR / part))


def test_a_tenth_of_the_gallery_is_the_default(source, target):
    manifest = write_occluded_copy(source, target)
    counts = manifest["counts"][GALLERY_DIR]
    assert counts["occluded"] == round(0.1 * counts["images"])


def test_masks_say_where_the_pictures_differ(source, target):
    manifest = write_occluded_copy(source, target, ALL)
    for name, entry in manifest["images"][QUERY_DIR].items():
        mask = read_mask(target / MASK_DIR / QUERY_DIR / mask_name(name))
        before, after = (
            np.asarray(Image.open(folder / QUERY_DIR / name).convert("RGB")).astype(int) for folder in (source, target)
        )
        assert mask.shape == before.shape[:2]
        assert mask.mean() == pytest.approx(entry["coverage"], abs=1e-6)
        difference = np.abs(before - after).max(axis=-1)
        assert difference[mask].mean() > 6 * difference[~mask].mean()  # outside there is JPEG's error only


def test_lossless_formats_keep_what_is_visible_exactly(source, target):
    jpeg = first(source, QUERY_DIR)
    with Image.open(jpeg) as image:
        image.save(jpeg.with_suffix(".png"))
    jpeg.unlink()
    write_occluded_copy(source, target, ALL)
    name = jpeg.with_suffix(".png").name
    mask = read_mask(target / MASK_DIR / QUERY_DIR / name)
    before, after = (np.asarray(Image.open(folder / QUERY_DIR / name)) for folder in (source, target))
    assert np.array_equal(before[~mask], after[~mask])


def test_objects_are_cut_from_training_images_of_other_identities(source, target):
    settings = CopySettings(cut_share=1.0)
    shutil.copy(first(source, QUERY_DIR), source / TRAIN_DIR)  # now an identity is in both
    manifest = write_occluded_copy(source, target, settings)
    for name, entry in manifest["images"][QUERY_DIR].items():
        assert entry["object"] == "cut"
        assert (source / TRAIN_DIR / entry["donor"]).is_file()
        assert identity_of(entry["donor"]) != identity_of(name)


def test_drawn_objects_need_no_donor(source, target):
    manifest = write_occluded_copy(source, target, CopySettings(cut_share=0.0))
    assert {entry["object"] for entry in manifest["images"][QUERY_DIR].values()} <= {"bar", "box", "vehicle"}


def test_junk_images_of_the_gallery_are_not_occluded(source, target):
    junk = source / GALLERY_DIR / "-1_c1s1_000001_01.jpg"
    shutil.copy(first(source, GALLERY_DIR), junk)
    write_occluded_copy(source, target, CopySettings(gallery_share=1.0))
    assert (target / GALLERY_DIR / junk.name).read_bytes() == junk.read_bytes()


def test_other_files_are_left_behind(source, target):
    (source / QUERY_DIR / "Thumbs.db").write_bytes(b"x")
    write_occluded_copy(source, target, ALL)
    assert not (target / QUERY_DIR / "Thumbs.db").exists()


def test_hidden_files_are_left_behind(source, target):
    twin = f"._{first(source, QUERY_DIR).name}"  # what macOS adds on foreign disks
    (source / QUERY_DIR / twin).write_bytes(b"x")
    write_occluded_copy(source, target, ALL)
    assert not (target / QUERY_DIR / twin).exists()


def test_links_share_unchanged_files_only(source, target):
    write_occluded_copy(source, target, ALL, link=True)
    image, query = first(source, TRAIN_DIR), first(source, QUERY_DIR)
    assert (target / TRAIN_DIR / image.name).samefile(image)
    assert not (target / QUERY_DIR / query.name).samefile(query)


def test_the_source_stays_as_it_is(source, target):
    before = contents(source)
    write_occluded_copy(source, target, ALL, link=True)
    assert contents(source) == before


# Manifest --------------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_done(source, target):
    returned = write_occluded_copy(
        source, target, CopySettings(seed=3, coverage=Coverage(0.2, 0.4)), source_name="mine"
    )
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    assert manifest == returned
    assert (manifest["format"], manifest["version"], manifest["seed"]) == ("amg_plugin.occlusion", 1, 3)
    assert manifest["parameters"]["coverage"] == {"low": 0.2, "high": 0.4}
    shares = [entry["coverage"] for entry in manifest["images"][QUERY_DIR].values()]
    statistics = manifest["coverage"][QUERY_DIR]
    assert statistics["mean"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert (statistics["min"], statistics["max"]) == (min(shares), max(shares))
    assert sum(statistics["tenths"]) == len(shares)
    assert str(source) not in (target / MANIFEST).read_text(encoding="utf-8")


def test_the_digest_is_that_of_all_source_files(source, target):
    manifest = write_occluded_copy(source, target, ALL, source_name="mine")
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in sorted(contents(source).items())
        if "/" in name
    ]
    expected = hashlib.sha256("".join(sorted(lines, key=lambda line: line.split()[1])).encode()).hexdigest()
    assert manifest["source"] == {"name": "mine", "sha256": expected}


# Repeating -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_the_same_seed_gives_the_same_bytes(source, target, threads):
    write_occluded_copy(source, target, ALL, threads=1)
    again = target.with_name("again")
    write_occluded_copy(source, again, ALL, threads=threads)
    assert contents(again) == contents(target)


def test_another_seed_gives_other_pictures_and_another_part_of_the_gallery(source, target):
    one = write_occluded_copy(source, target, ALL)
    other = write_occluded_copy(source, target.with_name("other"), CopySettings(seed=8, gallery_share=0.5))
    assert set(one["images"][GALLERY_DIR]) != set(other["images"][GALLERY_DIR])
    before, after = contents(target / QUERY_DIR), contents(target.with_name("other") / QUERY_DIR)
    assert all(before[name] != after[name] for name in before)


def test_an_image_is_occluded_alike_whatever_other_queries_there_are(source, target):
    write_occluded_copy(source, target, ALL)
    removed = first(source, QUERY_DIR)
    removed.unlink()
    write_occluded_copy(source, target.with_name("fewer"), ALL)
    fewer = contents(target.with_name("fewer") / QUERY_DIR)
    assert fewer == {name: data for name, data in contents(target / QUERY_DIR).items() if name != removed.name}


# Bad input -------------------------------------------------------------------------------------------------------


def refused(source, target, match, settings=ALL):
    before = sorted(path.name for path in target.parent.iterdir())
    with pytest.raises(DataError, match=match):
        write_occluded_copy(source, target, settings)
    assert sorted(path.name for path in target.parent.iterdir()) == before


def test_a_truncated_image_is_named_and_nothing_is_left_behind(source, target):
    image = first(source, QUERY_DIR)
    image.write_bytes(image.read_bytes()[:400])
    refused(source, target, rf"1 images .*query/{image.name} \(.*(?i:truncated)")


def test_an_empty_file_is_named(source, target):
    image = first(source, QUERY_DIR)
    image.write_bytes(b"")
    refused(source, target, rf"{image.name} \(empty file\)")


def test_an_image_of_one_pixel_is_named_with_the_least_size(source, target):
    image = first(source, QUERY_DIR)
    Image.new("RGB", (1, 1)).save(image)
    refused(source, target, rf"{image.name} \(1x1 pixels cannot be partly covered; 8x8")


def test_all_bad_images_are_counted_and_ten_are_named(source, target):
    for name in list_names(source / QUERY_DIR):
        shutil.copy(source / QUERY_DIR / name, source / QUERY_DIR / name.replace("_01.jpg", "_77.jpg"))
    names = list_names(source / QUERY_DIR)
    for name in names:
        (source / QUERY_DIR / name).write_bytes(b"")
    refused(source, target, rf"^{len(names)} images .* and {len(names) - 10} more\.$")


def test_a_damaged_training_image_is_named_where_an_object_is_cut_from_it(source, target):
    for name in list_names(source / TRAIN_DIR):
        (source / TRAIN_DIR / name).write_bytes(b"no image")
    refused(source, target, "an object is cut from bounding_box_train/", CopySettings(cut_share=1.0))


def test_without_another_identity_to_cut_from_the_image_is_named(source, target):
    pid = identity_of(first(source, QUERY_DIR).name)
    for name in list_names(source / TRAIN_DIR):
        (source / TRAIN_DIR / name).rename(source / TRAIN_DIR / f"{pid:04d}{name[4:-7]}{name[:4]}.jpg")
    refused(source, target, "no training image of another identity", CopySettings(cut_share=1.0))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_other_kinds_of_images_become_rgb_as_torchreid_reads_them(source, target, mode):
    jpeg = first(source, QUERY_DIR)
    path = jpeg if mode in ("L", "CMYK") else jpeg.with_suffix(".png")
    with Image.open(jpeg) as image:
        converted = image.convert("RGB").convert(mode)
    jpeg.unlink()
    converted.save(path)
    write_occluded_copy(source, target, ALL)
    mask = read_mask(target / MASK_DIR / QUERY_DIR / mask_name(path.name))
    with Image.open(path) as before, Image.open(target / QUERY_DIR / path.name) as after:
        assert after.mode == "RGB"
        difference = np.abs(np.asarray(before.convert("RGB")).astype(int) - np.asarray(after).astype(int))
    assert difference[~mask].mean() < 4


def test_a_target_that_exists_is_left_as_it_is(source, target):
    target.mkdir()
    (target / "mine").write_text("x")
    refused(source, target, "exists already")
    assert contents(target) == {"mine": b"x"}


def test_a_dangling_link_counts_as_existing(source, target):
    target.symlink_to(target.parent / "nowhere")
    refused(source, target, "exists already")


def test_a_source_without_the_layout_is_told_what_was_expected_and_found(source, target):
    shutil.move(source / QUERY_DIR, source / "queries")
    refused(source, target, rf"with the folders {', '.join(MARKET_FOLDERS.values())}; found: .*queries/")


def test_a_source_that_is_not_there_is_named(tmp_path, target):
    with pytest.raises(DataError, match="nowhere does not exist"):
        write_occluded_copy(tmp_path / "nowhere", target)


def test_the_layout_is_found_one_folder_below(source, tmp_path):
    manifest = write_occluded_copy(source.parent, tmp_path / "one")
    assert manifest["source"]["name"] == source.name
    shutil.copytree(source, source.parent / "second")
    with pytest.raises(DataError, match="more than once"):
        write_occluded_copy(source.parent, tmp_path / "two")


def test_an_empty_part_is_named(source, target):
    shutil.rmtree(source / GALLERY_DIR)
    (source / GALLERY_DIR).mkdir()
    refused(source, target, "bounding_box_test holds no images")


@pytest.mark.parametrize("name", ["0001_c1s1_000001_00.gif", "0001/0001_c1s1_000001_00.jpg"])
def test_images_that_would_be_missed_are_named(source, target, name):
    path = source / TRAIN_DIR / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(first(source, QUERY_DIR), path)
    refused(source, target, f"1 image files in .*{TRAIN_DIR} are not read.*{path.name}")


def test_names_that_say_no_identity_are_named(source, target):
    image = first(source, QUERY_DIR)
    image.rename(image.with_name("person.jpg"))
    refused(source, target, r"1 names in .*query .*person\.jpg")


def test_images_whose_masks_would_have_one_name_are_refused(source, target):
    image = first(source, QUERY_DIR)
    shutil.copy(image, image.with_suffix(".png"))
    refused(source, target, "differ only in their suffix")


def test_an_interrupted_copy_leaves_nothing_behind(source, target, monkeypatch):
    before = sorted(path.name for path in target.parent.iterdir())
    monkeypatch.setattr("amg_plugin.data.occlusion.copy.write_mask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_occluded_copy(source, target, ALL)
    assert sorted(path.name for path in target.parent.iterdir()) == before
    monkeypatch.undo()
    assert write_occluded_copy(source, target, ALL)["counts"][QUERY_DIR]["occluded"] > 0


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_full_disk_fails_the_run_and_leaves_nothing_behind(source, target, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amg_plugin.data.occlusion.copy.write_mask", full)
    with pytest.raises(RunError, match="No space left"):
        write_occluded_copy(source, target, ALL)
    assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("change", "match"),
    [({"seed": -1}, "seed is -1"), ({"gallery_share": 1.5}, "gallery share"), ({"cut_share": -0.1}, "cut share")],
)
def test_impossible_settings_are_refused(change, match):
    with pytest.raises(DataError, match=match):
        CopySettings(**change)
