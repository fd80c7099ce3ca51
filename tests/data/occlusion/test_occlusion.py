"""Drawing of occluders: how much they hide, from where, and that nothing else changes."""

import numpy as np
import pytest
from PIL import Image

from amg_plugin.data.occlusion.bars import DRAWN, SIDES, SMALLEST_SIDE, occlude
from amg_plugin.data.occlusion.settings import HIGHEST, LOWEST, Coverage
from amg_plugin.errors import DataError


def noise(width=64, height=128, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def many(count=150, size=(64, 128), coverage=None, cut=0.5):
    """Occlusions of white images; ``cut`` is the share of those with a black donor."""
    white, black = Image.new("RGB", size, "white"), Image.new("RGB", (64, 128))
    return [
        occlude(white, np.random.default_rng(seed), coverage, black if seed < cut * count else None)
        for seed in range(count)
    ]


def test_pixels_outside_the_mask_stay_as_they_are():
    image = noise()
    for seed in range(30):
        result = occlude(image, np.random.default_rng(seed), donor=noise(seed=1) if seed % 2 else None)
        before, after = np.asarray(image), np.asarray(result.image)
        assert np.array_equal(before[~result.mask], after[~result.mask])
        assert (before[result.mask] != after[result.mask]).any(axis=-1).mean() > 0.9


def test_the_original_is_not_painted_on():
    image = noise()
    before = image.copy()
    occlude(image, np.random.default_rng(0))
    assert image == before


@pytest.mark.parametrize("share", [LOWEST, 0.2, 0.45, HIGHEST])
@pytest.mark.parametrize("size", [(64, 128), (128, 256), (45, 90), (100, 60)])
def test_the_hidden_share_is_the_one_that_was_drawn(share, size):
    for result in many(60, size, Coverage(share, share)):
        # A step of one pixel along the longer edge is the least that a silhouette can grow.
        assert result.coverage == pytest.approx(share, abs=3 / min(size)), (result.kind, result.side)


def test_coverage_follows_the_documented_distribution():
    rng = np.random.default_rng(0)
    values = np.array([Coverage(0.2, 0.6).draw(rng) for _ in range(4000)])
    assert values.min() >= 0.2 and values.max() <= 0.6
    assert values.mean() == pytest.approx(0.6 * 0.2 + 0.4 * 0.6, abs=0.005)
    assert values.std() == pytest.approx(0.4 * 0.2, abs=0.005)  # of Beta(2, 3): 0.2


def test_every_side_and_every_kind_occurs():
    results = many()
    assert {result.side for result in results} == set(SIDES)
    assert {result.kind for result in results} == {*DRAWN, "cut"}


@pytest.mark.parametrize("side", SIDES)
def test_objects_come_from_their_side(side):
    for result in (one for one in many(300) if one.side == side):
        height, width = result.mask.shape
        if side == "below":
            assert result.mask[-4:].any()
            assert result.mask[height // 2 :].sum() >= result.mask[: height // 2].sum()
        else:
            near, far = result.mask[:, : width // 2].sum(), result.mask[:, width // 2 :].sum()
            if result.kind != "bar":  # posts stand anywhere near their side
                assert (near >= far) if side == "left" else (far >= near)


def test_cut_objects_show_the_margins_of_the_donor_and_nothing_of_its_middle():
    pixels = np.full((128, 64, 3), (255, 0, 0), np.uint8)
    pixels[:, 13:-13] = (0, 0, 255)
    for seed in range(20):
        result = occlude(Image.new("RGB", (64, 128)), np.random.default_rng(seed), donor=Image.fromarray(pixels))
        hidden = np.asarray(result.image)[result.mask]
        assert (hidden[:, 0] > 200).all() and (hidden[:, 2] < 60).all()


def test_the_same_random_state_gives_the_same_picture():
    first, second, other = (occlude(noise(), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.image == second.image and np.array_equal(first.mask, second.mask)
    assert first.image != other.image


@pytest.mark.parametrize("size", [(SMALLEST_SIDE, SMALLEST_SIDE), (8, 300), (300, 9)])
def test_the_smallest_images_are_covered_in_part(size):
    for result in many(60, size):
        assert 0 < result.coverage < 1


@pytest.mark.parametrize("size", [(1, 1), (SMALLEST_SIDE - 1, 128)])
def test_smaller_images_are_refused(size):
    with pytest.raises(DataError, match=f"{size[0]}x{size[1]} pixels"):
        occlude(Image.new("RGB", size), np.random.default_rng(0))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (500, 20)])
def test_a_donor_may_have_any_size(size):
    result = occlude(noise(), np.random.default_rng(0), donor=Image.new("RGB", size, (0, 200, 0)))
    assert (np.asarray(result.image)[result.mask] == (0, 200, 0)).all()


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (0.0, 0.4), (0.2, 0.9)])
def test_impossible_coverage_is_refused(low, high):
    with pytest.raises(DataError, match=r"must be between 0\.05 and 0\.7"):
        Coverage(low, high)
