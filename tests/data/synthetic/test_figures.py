import dataclasses

import numpy as np
import pytest
from PIL import Image

from amg_plugin.data.synthetic.figures import (
    BAGS,
    HATS,
    LOWER_KINDS,
    PATTERNS,
    VIEWS,
    FigurePainter,
    Pose,
    difference,
    sample_appearance,
)

SIZE = (90, 256)


def person(seed=0, **changes):
    return dataclasses.replace(sample_appearance(np.random.default_rng(seed)), **changes)


def painted(someone, view="front"):
    image = Image.new("RGB", SIZE, (1, 2, 3))
    FigurePainter(image, 45, 20, 220).paint(someone, Pose(view, 0.05, 0.02, 0.0))
    return np.asarray(image)


def test_a_person_does_not_differ_from_themselves():
    assert difference(person(1), person(1)) == 0


def test_difference_is_symmetric():
    assert difference(person(1), person(2)) == pytest.approx(difference(person(2), person(1)))


def test_the_colour_of_a_bag_that_nobody_carries_makes_no_difference():
    assert difference(person(bag="none", bag_color=(0, 0, 0)), person(bag="none", bag_color=(255, 255, 255))) == 0


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_drawn_between_head_and_soles(view):
    drawn = (painted(person(hat="none"), view) != (1, 2, 3)).any(axis=2)
    rows = np.flatnonzero(drawn.any(axis=1))
    assert abs(rows.min() - 20) <= 3
    assert abs(rows.max() - 240) <= 3


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("pattern", sorted(set(PATTERNS))),
        ("lower_kind", sorted(set(LOWER_KINDS))),
        ("bag", sorted(set(BAGS))),
        ("hat", sorted(set(HATS))),
        ("long_sleeves", (False, True)),
        ("long_hair", (False, True)),
    ],
)
def test_every_kind_of_a_trait_looks_different(trait, values):
    colors = {"accent": (250, 250, 0), "bag_color": (0, 250, 250), "hat_color": (250, 0, 250), "hair": (90, 90, 0)}
    pictures = {painted(person(**{"hat": "none", **colors, trait: value}), "back").tobytes() for value in values}
    assert len(pictures) == len(values)


def test_a_half_and_half_shirt_is_mirrored_from_behind():
    someone = person(pattern="half", upper=(250, 0, 0), accent=(0, 250, 0), bag="none", long_hair=False)
    front, back = painted(someone, "front"), painted(someone, "back")
    left, right = (110, 38), (110, 52)
    assert front[left].argmax() == back[right].argmax() == 1
    assert front[right].argmax() == back[left].argmax() == 0
