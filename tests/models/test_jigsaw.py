"""Jigsaw patch module: which patches form which part, and what the local branch computes."""

from __future__ import annotations

import pytest
import torch

from amg_plugin.errors import ConfigError
from amg_plugin.models.spec import JigsawSpec
from amg_plugin.models.transreid import JigsawBranch, jigsaw_parts
from amg_plugin.models.vit import build_backbone


def test_patches_are_rolled_dealt_out_and_cut():
    # rolled by 4: 4 5 6 7 0 1 2 3, dealt out over two groups: 4 0 5 1 6 2 7 3
    assert jigsaw_parts(8, JigsawSpec()) == [[4, 0], [5, 1], [6, 2], [7, 3]]


def test_an_odd_number_repeats_the_second_to_last_patch():
    # rolled: 4 5 6 7 8 0 1 2 3, repeated: + 2, dealt out: 4 0 5 1 6 2 7 3 8 2
    assert jigsaw_parts(9, JigsawSpec()) == [[4, 0], [5, 1], [6, 2], [7, 3]]
    assert jigsaw_parts(9, JigsawSpec(parts=1)) == [[4, 0, 5, 1, 6, 2, 7, 3, 8]]


def test_left_over_patches_are_dropped():
    parts = jigsaw_parts(10, JigsawSpec(shift=1, groups=1))
    assert parts == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(("patches", "spec"), [(3, JigsawSpec()), (1, JigsawSpec(parts=1)), (8, JigsawSpec(groups=9))])
def test_too_few_patches_are_refused(patches, spec):
    with pytest.raises(ConfigError, match="too much"):
        jigsaw_parts(patches, spec)


@pytest.mark.parametrize("field", ["parts", "shift", "groups"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ConfigError, match=field):
        JigsawSpec(**{field: 0})


def test_each_part_passes_the_copied_block_alone_with_the_class_token():
    torch.manual_seed(0)
    vit = build_backbone(
        "vit_tiny_patch16_224", image_size=(64, 32), overrides={"depth": 2, "embed_dim": 16, "num_heads": 2}
    )
    branch = JigsawBranch(vit, JigsawSpec()).eval()
    tokens = torch.randn(3, 9, 16)
    found = branch(tokens)
    assert found.shape == (3, 4, 16)
    for part, positions in enumerate(jigsaw_parts(8, JigsawSpec())):
        chosen = tokens[:, [0, *(1 + position for position in positions)]]
        expected = vit.norm(vit.blocks[-1](chosen))[:, 0]
        assert torch.allclose(found[:, part], expected, atol=1e-5)
