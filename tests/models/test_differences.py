"""Which descriptions stand for the same network."""

from dataclasses import replace

import pytest

from amg_plugin.models.build import differences
from amg_plugin.models.spec import JigsawSpec, ModelSpec, SideInformationSpec

PLAIN = ModelSpec("vit_tiny_patch16_224", (64, 32), 5)
FULL = replace(PLAIN, side_information=SideInformationSpec(cameras=3), jigsaw=JigsawSpec(parts=2))
PARTS = replace(PLAIN, head="parts", parts=4)


def keys(ours, theirs, **options):
    return [key for key, _, _ in differences(ours, theirs, **options)]


@pytest.mark.parametrize("spec", [PLAIN, FULL, PARTS])
def test_a_network_equals_itself(spec):
    assert keys(spec, spec) == []


@pytest.mark.parametrize(
    "other",
    [
        {"arch": "vit_base_patch16_224", "overrides": {"embed_dim": 192, "num_heads": 3}},
        {"overrides": {"depth": 12, "qkv_bias": True}},
        {"stride": 16},
        {"stride": (16, 16)},
        {"layer_norm_eps": 1e-6},
        {"attention_scale": 64**-0.5},
    ],
)
def test_two_spellings_of_a_backbone_are_equal(other):
    assert keys(PLAIN, replace(PLAIN, **other)) == []


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"arch": "vit_small_patch16_224"}, "amg.arch"),
        ({"overrides": {"depth": 11}}, "amg.override"),
        ({"overrides": {"num_heads": 6}}, "amg.override"),
        ({"overrides": {"qkv_bias": False}}, "amg.override"),
        ({"stride": 12}, "amg.stride"),
        ({"attention_scale": 0.1}, "amg.override.attention_scale"),
        ({"layer_norm_eps": 1e-5}, "layer norm epsilon"),
        ({"head": "parts"}, "amg.head"),
        ({"jigsaw": JigsawSpec(parts=2)}, "amg.jpm.enabled"),
        ({"side_information": SideInformationSpec(cameras=3)}, "amg.sie.enabled"),
    ],
)
def test_another_structure_is_named_by_its_key(other, key):
    assert keys(PLAIN, replace(PLAIN, **other)) == [key]


@pytest.mark.parametrize(
    ("side", "key"),
    [
        (SideInformationSpec(cameras=4), "amg.sie.cameras"),
        (SideInformationSpec(cameras=3, views=2), "amg.sie.views"),
        (SideInformationSpec(cameras=3, coefficient=1.0), "amg.sie.coefficient"),
    ],
)
def test_another_side_information_is_named_by_its_key(side, key):
    assert keys(FULL, replace(FULL, side_information=side)) == [key]


def test_the_number_of_cameras_may_be_left_to_the_data():
    assert keys(FULL, replace(FULL, side_information=SideInformationSpec(cameras=1)), count_cameras=False) == []
    without = SideInformationSpec(cameras=0, views=2)
    assert "amg.sie.cameras" in keys(FULL, replace(FULL, side_information=without), count_cameras=False)


@pytest.mark.parametrize("field", ["parts", "shift", "groups"])
def test_another_jigsaw_is_named_by_its_key(field):
    assert keys(FULL, replace(FULL, jigsaw=replace(FULL.jigsaw, **{field: 3}))) == [f"amg.jpm.{field}"]


def test_the_published_hidden_width_may_be_spelled_out():
    assert keys(PARTS, replace(PARTS, part_hidden=256)) == []
    assert keys(PARTS, replace(PARTS, part_hidden=128)) == ["amg.parts.hidden"]


@pytest.mark.parametrize(
    "other", [{"loss": "triplet"}, {"neck_feat": "before"}, {"drop_path": 0.1}, {"num_classes": 9}, {"part_dropout": 0}]
)
def test_what_is_no_structure_does_not_count(other):
    assert keys(PLAIN, replace(PLAIN, **other)) == []


def test_the_treatment_of_unseen_cameras_is_no_structure():
    mean = replace(FULL.side_information, unseen="mean")
    assert keys(FULL, replace(FULL, side_information=mean)) == []
