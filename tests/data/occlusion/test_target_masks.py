"""Masks beside query and gallery images: found, complete, and of the right size."""

import json
import shutil

import numpy as np
import pytest

from amg_plugin.data.layout import GALLERY_DIR, QUERY_DIR
from amg_plugin.data.occlusion.copy import MANIFEST, MASK_DIR, write_occluded_copy
from amg_plugin.data.occlusion.masks import (
    Grid,
    covered_by_masks,
    covered_patches,
    mask_path,
    masked_images,
    read_mask,
    write_mask,
)
from amg_plugin.data.occlusion.settings import CopySettings
from amg_plugin.errors import DataError

GRID = Grid((64, 32), (16, 16), (8, 8))


@pytest.fixture
def copy(tmp_path, drawn_root):
    """An occluded copy that the test may damage."""
    target = tmp_path / "copy"
    write_occluded_copy(drawn_root / "synthetic_reid", target, CopySettings(gallery_share=0.25))
    return target


def images(folder):
    return [str(path) for part in (QUERY_DIR, GALLERY_DIR) for path in sorted((folder / part).iterdir())]


def test_exactly_the_occluded_images_have_masks(copy):
    manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    expected = {str(copy / part / name) for part, names in manifest["images"].items() for name in names}
    assert set(masked_images(images(copy))) == expected


def test_the_patches_are_those_of_the_networks_grid(copy):
    covered = covered_by_masks(images(copy), GRID)
    assert covered.keys() == masked_images(images(copy)).keys()
    for image, found in covered.items():
        mask = read_mask(mask_path(image))
        assert np.array_equal(found, covered_patches(mask, GRID.image_size, GRID.patch_size, GRID.stride))
        assert found.shape == (7 * 3,)


def test_data_sets_without_masks_have_none(drawn_root):
    assert masked_images(images(drawn_root / "synthetic_reid")) == {}


def test_removing_all_masks_is_allowed(copy):
    shutil.rmtree(copy / MASK_DIR)
    assert masked_images(images(copy)) == {}


def test_some_missing_masks_are_an_error_that_names_them(copy):
    masks = sorted((copy / MASK_DIR / QUERY_DIR).iterdir())[:2]
    for mask in masks:
        mask.unlink()
    with pytest.raises(DataError, match=rf"^2 masks .*{masks[0].name}.*{masks[1].name}"):
        masked_images(images(copy))


def test_masks_of_other_origin_need_no_manifest(copy):
    (copy / MANIFEST).unlink()
    mask = sorted((copy / MASK_DIR / QUERY_DIR).iterdir())[0]
    mask.unlink()
    found = masked_images(images(copy))
    assert mask not in found.values()
    assert len(found) == len(list((copy / MASK_DIR).rglob("*.png")))


def test_a_mask_of_another_size_is_named_with_both_sizes(copy):
    mask = sorted((copy / MASK_DIR / QUERY_DIR).iterdir())[0]
    write_mask(mask, np.zeros((10, 20), bool))
    with pytest.raises(DataError, match=rf"{mask.name} has 20x10 pixels, its image .* has 64x128"):
        covered_by_masks(images(copy), GRID)


def test_a_damaged_mask_is_named(copy):
    mask = sorted((copy / MASK_DIR / QUERY_DIR).iterdir())[0]
    mask.write_bytes(mask.read_bytes()[:30])
    with pytest.raises(DataError, match=mask.name):
        covered_by_masks(images(copy), GRID)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "images": {}}'])
def test_a_foreign_manifest_is_refused(copy, text):
    (copy / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{MANIFEST} cannot be read"):
        masked_images(images(copy))
