"""Tensors behind the figures: who attends to what, numbered as in the dense model."""

import pytest
import torch

from amg_plugin.errors import PlanError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import backbone_of
from amg_plugin.plots.attention import (
    attention_of_images,
    check_comparable,
    group_numbers,
    kept_heads,
    kept_tokens,
    lay_out,
    per_block_norm,
)
from amg_plugin.pruning import AttentionMapRecorder, PruningPlan, apply_plan, current_plan

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 8}
HEADS = [[0, 2], [0, 1, 2, 3], [3]]
TOKENS = [[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 5, 6, 7], [4]]
NETWORKS = {
    "plain": ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides=SMALL),
    "distilled": ModelSpec("deit_tiny_distilled_patch16_224", (32, 16), 5, overrides=SMALL),
    "registers": ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides={**SMALL, "reg_tokens": 2}),
    "averaged": ModelSpec(
        "vit_tiny_patch16_224", (32, 16), 5, overrides={**SMALL, "class_token": False, "global_pool": "avg"}
    ),
    "jigsaw": ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides=SMALL, jigsaw={"parts": 2}),
    "cameras": ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides=SMALL, side_information={"cameras": 3}),
    "parts": ModelSpec("vit_tiny_patch16_224", (32, 16), 5, overrides=SMALL, head="parts", parts=4),
}


def network(name="plain", variant=None):
    torch.manual_seed(5)
    model = build_network(NETWORKS[name]).eval()
    if variant:
        pruned = list(range(3)) if name != "jigsaw" else [0, 1]
        plan = current_plan(model).with_variant(variant)
        heads = [HEADS[block] if block in pruned else range(4) for block in range(3)]
        tokens = [TOKENS[block] if block in pruned else range(8) for block in range(3)]
        apply_plan(model, plan.narrow(heads=heads, tokens=tokens))
    return model


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(2))


def reference(model, images, block):
    """Attention of the first query to the patches, by hand, from what the block's attention gets."""
    backbone, held = backbone_of(model), {}
    handle = backbone.blocks[block].attn.register_forward_pre_hook(lambda _, args: held.update(x=args[0]))
    with torch.no_grad():
        model.embed(images)
        handle.remove()
        attention = backbone.blocks[block].attn
        x, (heads, width) = held["x"], (attention.num_heads, attention.head_dim)
        query, key, _ = attention.qkv(x).reshape(*x.shape[:2], 3, heads, width).permute(2, 0, 3, 1, 4)
        if attention.kept_tokens is not None:
            key = key[:, :, attention.kept_tokens]
        maps = (query @ key.transpose(-2, -1) * attention.scale).softmax(-1)
    return maps[:, :, 0, backbone.num_prefix_tokens :]


@pytest.mark.parametrize("name", ["plain", "distilled", "registers", "jigsaw", "cameras", "parts"])
@pytest.mark.parametrize("variant", [None, "block", "kv"])
def test_the_class_tokens_attention_lies_at_the_dense_numbers(images, name, variant):
    model = network(name, variant)
    plan = current_plan(model)
    found = attention_of_images(model, images)
    assert [part.grid for part in found] == [(4, 2)] * 2
    assert found[0].query == "class token"
    for block in range(3):
        expected = reference(model, images, block)
        for number, image in enumerate(found):
            kept = image.maps[block][list(plan.heads[block])][:, list(plan.tokens[block])]
            torch.testing.assert_close(kept, expected[number], rtol=1e-4, atol=1e-6)
            assert image.maps[block].isnan().sum() == 32 - kept.numel()


def test_patches_share_the_attention_that_their_token_gets(images):
    model = network()
    groups = [[[n] for n in range(8)], [[0, 6], [1], [2, 3, 5], [4], [7]], [[2, 3, 4, 5, 7], [0, 1, 6]]]
    merged = current_plan(model).with_variant("merge").merge([range(8), [0, 1, 3, 4, 7], [2, 6]], groups)
    apply_plan(model, merged)
    with AttentionMapRecorder(model) as recorder, torch.no_grad():
        model.embed(images[:1])
    image = attention_of_images(model, images[:1])[0]
    for block, tokens in enumerate(merged.groups):
        expected = recorder.mean()[block][:, 0, 1:].float()
        for number, group in enumerate(tokens):
            for position in group:
                torch.testing.assert_close(image.maps[block, :, position], expected[:, number] / len(group))


def test_without_a_class_token_all_tokens_ask(images):
    (first, _) = attention_of_images(network("averaged"), images)
    assert first.query == "mean of all tokens"
    torch.testing.assert_close(first.maps.sum(-1), torch.ones(3, 4))  # no prefix token takes a share


def test_the_mean_is_over_the_heads_that_are_left(images):
    model = network("plain", "block")
    image = attention_of_images(model, images)[0]
    mean = image.mean()
    torch.testing.assert_close(mean[0], image.maps[0, [0, 2]].mean(0))
    torch.testing.assert_close(mean[2, 4], image.maps[2, 3, 4])
    assert mean[1].isnan().nonzero().flatten().tolist() == [0, 3, 4]


def test_looking_leaves_no_trace(images):
    model = network("plain", "kv")
    with torch.no_grad():
        before = model(images)
        attention_of_images(model, images)
        assert torch.equal(model(images), before)
    assert all(block.attn.observer is None for block in backbone_of(model).blocks)


def plan(heads=HEADS, tokens=TOKENS):
    return PruningPlan("block", [4, 4, 4], 8, heads, tokens)


def test_kept_marks_follow_the_plan():
    assert kept_heads(plan()).int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert [row.nonzero().flatten().tolist() for row in kept_tokens(plan())] == TOKENS


def test_positions_know_the_token_that_stands_for_them():
    merged = PruningPlan.dense([4, 4], 4, "merge").merge([range(4), [1, 2]], [[[0], [1], [2], [3]], [[0, 1], [2, 3]]])
    assert group_numbers(merged).tolist() == [[0, 1, 2, 3], [0, 0, 1, 1]]
    assert group_numbers(plan()).tolist()[2] == [-1, -1, -1, -1, 0, -1, -1, -1]


def test_blocks_with_fewer_heads_are_padded():
    uneven = PruningPlan("block", [2, 4], 8, [[1], [0, 3]], [range(8)] * 2)
    assert kept_heads(uneven).int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]


def test_scores_of_a_pruned_network_lie_at_the_dense_numbers():
    laid_out = lay_out([torch.tensor([1.0, 2.0]), torch.tensor([3.0])], [0, 2], HEADS, 4)
    assert laid_out[0, [0, 2]].tolist() == [1, 2]
    assert laid_out[2, 3] == 3
    assert laid_out.isnan().sum() == 9


def test_importance_is_divided_by_the_norm_of_its_block():
    values = torch.tensor([[3.0, torch.nan, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    divided = per_block_norm(values)
    assert divided[0, [0, 2]].tolist() == [0.6, 0.8]
    assert divided[0, 1].isnan()
    assert divided[1].tolist() == [0, 0, 0]


def test_before_and_after_belong_to_one_dense_model():
    dense = PruningPlan.dense([4, 4, 4], 8)
    check_comparable(dense, plan())
    check_comparable(plan(), plan())
    with pytest.raises(PlanError, match="lacks heads, tokens or neurons"):
        check_comparable(plan(), dense)
    with pytest.raises(PlanError, match=r"different dense models.*9 patches"):
        check_comparable(PruningPlan.dense([4, 4, 4], 9), plan())
