"""Counting: equal to hand formulas, on what really runs, without a trace in the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amg_plugin.models.complexity import count, count_parameters, explicit_attention
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import build_backbone
from amg_plugin.pruning import AttentionMapRecorder, apply_plan, current_plan

HEIGHT, WIDTH = 64, 32
DEPTH, DIM, HEADS, HEAD_DIM, HIDDEN, PATCHES = 3, 32, 4, 8, 128, 8
OVERRIDES = {"depth": DEPTH, "embed_dim": DIM, "num_heads": HEADS}


def reid(arch="vit_tiny_patch16_224", loss="softmax", **options):
    spec = ModelSpec(arch, (HEIGHT, WIDTH), 11, loss=loss, **{"overrides": OVERRIDES, **options})
    return ReIDModel(spec)


def block_by_hand(queries, keys, heads, mlp_tokens):
    """MACs of one block: projections, the two attention products, output projection, MLP."""
    width = heads * HEAD_DIM
    projections = queries * DIM * width + 2 * keys * DIM * width + queries * width * DIM
    return projections + 2 * queries * keys * width + 2 * mlp_tokens * DIM * HIDDEN


def embedding_by_hand(patches, patch=16):
    return patches * 3 * patch * patch * DIM


def test_vit_tiny_at_256_by_128():
    result = count(ReIDModel(ModelSpec("vit_tiny_patch16_224", (256, 128), 751)), 256, 128)
    assert result["macs"] == 780_341_760
    assert sum(result["macs_by_module"][f"backbone.blocks.{block}"] for block in range(12)) == 761_467_392
    assert result["macs_by_module"]["backbone.blocks"] == 761_467_392
    assert result["macs_by_module"]["backbone.patch_embed"] == 18_874_368


@pytest.mark.parametrize(
    ("arch", "prefix"),
    [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2), ("vit_base_patch16_gap_224", 0)],
)
def test_dense_models_equal_the_hand_formula(arch, prefix):
    tokens = PATCHES + prefix
    expected = DEPTH * block_by_hand(tokens, tokens, HEADS, tokens) + embedding_by_hand(PATCHES)
    assert count(reid(arch), HEIGHT, WIDTH)["macs"] == expected


def test_overlapping_patches_are_counted():
    tokens = 5 * 2 + 1
    expected = DEPTH * block_by_hand(tokens, tokens, HEADS, tokens) + embedding_by_hand(10)
    assert count(reid(stride=12), HEIGHT, WIDTH)["macs"] == expected


@pytest.mark.parametrize("variant", ["kv", "block"])
def test_pruned_models_equal_the_hand_formula(variant):
    model = reid()
    heads, tokens = [[0, 1, 2], [3], [0, 1, 2, 3]], [range(5), range(8), [2]]
    apply_plan(model, current_plan(model).with_variant(variant).narrow(heads=heads, tokens=tokens))
    result = count(model, HEIGHT, WIDTH)
    by_hand = []
    for kept_heads, kept_tokens in zip(heads, tokens, strict=True):
        keys = len(kept_tokens) + 1
        queries = keys if variant == "block" else PATCHES + 1
        by_hand.append(block_by_hand(queries, keys, len(kept_heads), queries))
    for block, macs in enumerate(by_hand):
        assert result["macs_by_module"][f"backbone.blocks.{block}"] == macs
    assert result["macs"] == sum(by_hand) + embedding_by_hand(PATCHES)


def test_parameters_are_counted_without_the_classifier():
    model = reid()
    expected = sum(value.numel() for name, value in model.named_parameters() if name != "classifier.weight")
    assert count(model, HEIGHT, WIDTH)["params"] == count_parameters(model) == expected


def test_parameters_shrink_with_the_heads_and_not_with_the_tokens():
    model = reid()
    dense = count_parameters(model)
    apply_plan(model, current_plan(model).narrow(tokens=[[0], [0], [0]]))
    assert count_parameters(model) == dense
    apply_plan(model, current_plan(model).narrow(heads=[[0, 1, 2], range(4), range(4)]))
    assert count_parameters(model) == dense - HEAD_DIM * (4 * DIM + 3)


def test_a_bare_backbone_and_the_network_around_it_count_the_same_macs():
    model = reid()
    assert count(model.backbone, HEIGHT, WIDTH)["macs"] == count(model, HEIGHT, WIDTH)["macs"]


def test_a_classifier_inside_the_backbone_is_left_out():
    overrides = {**OVERRIDES, "num_classes": 1000}
    options = {"image_size": (HEIGHT, WIDTH)}
    with_head = build_backbone("vit_tiny_patch16_224", **options, overrides=overrides)
    without = build_backbone("vit_tiny_patch16_224", **options, overrides=OVERRIDES)
    counted = [count(model, HEIGHT, WIDTH) for model in (with_head, without)]
    assert counted[0]["macs"] == counted[1]["macs"] and counted[0]["params"] == counted[1]["params"]
    assert "head" not in counted[0]["macs_by_module"]


@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_wrappers_and_losses_do_not_matter(loss):
    expected = count(reid(), HEIGHT, WIDTH)
    assert count(nn.DataParallel(reid(loss=loss).train()), HEIGHT, WIDTH) == expected


def test_modes_flags_and_statistics_stay_as_they_were():
    model = reid().train()
    model.backbone.blocks[1].eval()
    model.backbone.blocks[2].attn.fused_attn = False
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, HEIGHT, WIDTH)
    assert [module.training for module in model.modules()] == modes
    assert [block.attn.fused_attn for block in model.backbone.blocks] == [True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_and_flags_survive_a_failing_pass():
    model = reid().train()
    with pytest.raises(AssertionError):
        count(model, HEIGHT, 2 * WIDTH)
    assert model.training and all(block.attn.fused_attn for block in model.backbone.blocks)


def test_the_count_does_not_depend_on_fused_attention():
    model = reid()
    expected = count(model, HEIGHT, WIDTH)
    with explicit_attention(model):
        assert count(model, HEIGHT, WIDTH) == expected


def test_counting_while_recording_gives_the_same_number():
    model = reid()
    expected = count(model, HEIGHT, WIDTH)
    with AttentionMapRecorder(model):
        assert count(model, HEIGHT, WIDTH) == expected


def test_the_parts_add_up_to_the_whole():
    result = count(reid(), HEIGHT, WIDTH)
    parts = result["macs_by_module"]
    assert parts["backbone.patch_embed"] + parts["backbone.blocks"] == result["macs"]
    assert parts["backbone.blocks.0.attn"] + parts["backbone.blocks.0.mlp"] == parts["backbone.blocks.0"]


@pytest.mark.parametrize("precision", [torch.float16, torch.float64], ids=str)
def test_the_count_does_not_depend_on_the_precision(precision):
    model = build_backbone("vit_tiny_patch16_224", image_size=(HEIGHT, WIDTH), overrides=OVERRIDES)
    expected = count(model, HEIGHT, WIDTH)["macs"]
    assert count(model.to(precision), HEIGHT, WIDTH)["macs"] == expected
