"""Mask files, and the patches that masks cover."""

import numpy as np
import pytest
from PIL import Image

from amg_plugin.data.occlusion.masks import covered_patches, patch_coverage, read_mask, write_mask
from amg_plugin.errors import DataError


def random_mask(height=24, width=12, seed=0):
    return np.random.default_rng(seed).random((height, width)) < 0.4


def test_a_mask_survives_its_file_which_has_one_bit_per_pixel(tmp_path):
    write_mask(tmp_path / "mask.png", random_mask())
    assert np.array_equal(read_mask(tmp_path / "mask.png"), random_mask())
    with Image.open(tmp_path / "mask.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "1", (12, 24))


def test_a_grey_mask_is_split_in_the_middle(tmp_path):
    Image.fromarray(np.uint8([[0, 127], [128, 255]])).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False], [True, True]]


def test_a_missing_mask_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.png is missing"):
        read_mask(tmp_path / "nowhere.png")


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_damaged_mask_is_named(tmp_path, content):
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(DataError, match=r"mask\.png cannot be read"):
        read_mask(tmp_path / "mask.png")


def test_patches_of_an_image_in_its_own_size_are_means_of_the_mask():
    mask = random_mask(24, 12)
    expected = mask.reshape(4, 6, 3, 4).mean(axis=(1, 3)).ravel()
    assert np.allclose(patch_coverage(mask, (24, 12), (6, 4)), expected)


@pytest.mark.parametrize("scale", [2, 3, 7])
def test_enlarging_by_a_whole_factor_equals_repeating_pixels(scale):
    mask = random_mask(24, 12)
    large = np.kron(mask, np.ones((scale, scale), bool))
    patch = (5, 4)
    size = (large.shape[0] // 5 * 5, large.shape[1])
    if size[0] == large.shape[0]:
        assert np.allclose(patch_coverage(mask, size, patch), patch_coverage(large, size, patch))
    assert np.allclose(
        patch_coverage(mask, large.shape, patch, (3, 2)), patch_coverage(large, large.shape, patch, (3, 2))
    )


@pytest.mark.parametrize(("size", "patch", "stride"), [((168, 84), 14, 14), ((256, 128), 16, 12), ((37, 23), 5, 3)])
def test_any_size_and_grid_gives_the_area_that_fine_sampling_finds(size, patch, stride):
    mask = random_mask(128, 64)
    found = patch_coverage(mask, size, (patch, patch), (stride, stride))
    fine = 12  # samples per pixel of the network's image
    rows = ((np.arange(size[0] * fine) + 0.5) * (mask.shape[0] / (size[0] * fine))).astype(int)
    columns = ((np.arange(size[1] * fine) + 0.5) * (mask.shape[1] / (size[1] * fine))).astype(int)
    expected = []
    for top in range(0, size[0] - patch + 1, stride):
        for left in range(0, size[1] - patch + 1, stride):
            y, x = slice(top * fine, (top + patch) * fine), slice(left * fine, (left + patch) * fine)
            expected.append(mask[rows[y]][:, columns[x]].mean())
    assert found.shape == (len(expected),)
    assert np.allclose(found, expected, atol=0.03)


def test_a_patch_counts_as_covered_from_half_of_its_area_on():
    mask = np.zeros((4, 6), bool)
    mask[:, :1] = True  # half of the first patch
    mask[:2, 2:3] = True  # a quarter of the second
    mask[:, 4:] = True  # all of the third
    assert patch_coverage(mask, (4, 6), (4, 2)).tolist() == [0.5, 0.25, 1.0]
    assert covered_patches(mask, (4, 6), (4, 2)).tolist() == [True, False, True]


@pytest.mark.parametrize(("value", "expected"), [(False, 0.0), (True, 1.0)])
def test_nothing_and_everything_are_exact(value, expected):
    shares = patch_coverage(np.full((128, 64), value), (168, 84), (14, 14))
    assert shares.shape == (72,)
    assert np.allclose(shares, expected, atol=1e-12)
