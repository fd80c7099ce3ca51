"""Surgery: physically pruned models compute what the masked dense model computes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from masked_reference import CASES, HEADS, MaskedViT, build_tiny, images_for, random_choice, relative_error
from timm.layers import RmsNorm
from torch import nn

from amg_plugin.errors import PlanError, UnsupportedModelError
from amg_plugin.models.attention import SubsetNorm
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import pooled_features
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan

HEAD_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
TOKEN_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
VARIANTS = ("kv", "block")


def features_of(model, images):
    with torch.no_grad():
        return pooled_features(model, model.forward_features(images))


def everything(plan):
    return [list(kept) for kept in plan.heads], [list(kept) for kept in plan.tokens]


def random_plan(model, variant, *, heads=0.5, tokens=0.6, seed=0):
    dense = PruningPlan.dense([HEADS] * len(model.blocks), model.patch_embed.num_patches, variant)
    return dense.narrow(
        heads=random_choice(dense.heads_per_block, heads, seed) if heads < 1 else None,
        tokens=random_choice(dense.tokens_per_block, tokens, seed + 1) if tokens < 1 else None,
    )


def without_neurons(plan, keep=0.5, seed=2):
    return plan.narrow(neurons=random_choice(plan.neurons_per_block, keep, seed))


@pytest.fixture(params=CASES)
def dense(request):
    return build_tiny(request.param)


def test_the_reference_without_masks_is_the_dense_model(dense):
    images = images_for(dense.double())
    plan = current_plan(dense)
    _, expected = MaskedViT(dense)(images, *everything(plan), "block")
    assert relative_error(features_of(dense, images), expected) < 1e-12


@pytest.mark.parametrize("precision", HEAD_TOLERANCE, ids=str)
def test_pruned_heads_equal_masked_heads(dense, precision):
    dense.to(precision)
    images, reference = images_for(dense), MaskedViT(dense)
    before = features_of(dense, images)
    plan = random_plan(dense, "block", tokens=1)
    apply_plan(dense, plan)
    actual = features_of(dense, images)
    assert relative_error(actual, reference(images, *everything(plan), "block")[1]) < HEAD_TOLERANCE[precision]
    assert relative_error(actual, before) > 0.05  # the heads mattered


@pytest.mark.parametrize("precision", TOKEN_TOLERANCE, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_pruned_tokens_equal_masked_tokens(dense, variant, precision):
    dense.to(precision)
    images, reference = images_for(dense), MaskedViT(dense)
    before = features_of(dense, images)
    plan = random_plan(dense, variant, heads=1)
    apply_plan(dense, plan)
    actual = features_of(dense, images)
    assert relative_error(actual, reference(images, *everything(plan), variant)[1]) < TOKEN_TOLERANCE[precision]
    assert relative_error(actual, before) > 0.01  # the tokens mattered


@pytest.mark.parametrize("precision", HEAD_TOLERANCE, ids=str)
def test_pruned_neurons_equal_masked_neurons(dense, precision):
    dense.to(precision)
    images, reference = images_for(dense), MaskedViT(dense)
    before, plan = features_of(dense, images), without_neurons(current_plan(dense))
    apply_plan(dense, plan)
    actual = features_of(dense, images)
    expected = reference(images, *everything(plan), "block", neurons=list(plan.neurons))[1]
    assert relative_error(actual, expected) < HEAD_TOLERANCE[precision]
    assert relative_error(actual, before) > 0.05  # the neurons mattered


@pytest.mark.parametrize("variant", VARIANTS)
def test_heads_tokens_and_neurons_together_equal_the_masked_model(dense, variant):
    images, reference = images_for(dense), MaskedViT(dense)
    plan = without_neurons(random_plan(dense, variant).fitted(current_plan(dense)))
    apply_plan(dense, plan)
    expected = reference(images, *everything(plan), variant, neurons=list(plan.neurons))[1]
    assert relative_error(features_of(dense, images), expected) < TOKEN_TOLERANCE[torch.float32]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_token_comes_out_in_its_place(variant):
    model = build_tiny("registers")
    images, reference = images_for(model), MaskedViT(model)
    plan = random_plan(model, variant)
    apply_plan(model, plan)
    model.norm = nn.Identity()
    with torch.no_grad():
        tokens = model.forward_features(images)
    assert relative_error(tokens, reference(images, *everything(plan), variant)[0]) < TOKEN_TOLERANCE[torch.float32]


def test_the_two_variants_compute_different_things():
    model = build_tiny()
    images = images_for(model)
    outputs = []
    for variant in VARIANTS:
        pruned = apply_plan(copy.deepcopy(model), random_plan(model, variant, heads=1))
        outputs.append(features_of(pruned, images))
    assert relative_error(*outputs) > 0.01


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_and_explicit_attention_agree_after_pruning(variant, fused):
    model = build_tiny()
    images, reference = images_for(model), MaskedViT(model)
    plan = random_plan(model, variant)
    apply_plan(model, plan)
    for block in model.blocks:
        block.attn.fused_attn = fused
    expected = reference(images, *everything(plan), variant)[1]
    assert relative_error(features_of(model, images), expected) < TOKEN_TOLERANCE[torch.float32]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "order", ["heads tokens heads", "tokens heads tokens", "heads neurons tokens neurons", "both both", "all all"]
)
def test_pruning_in_stages_equals_pruning_at_once(order, variant):
    staged = build_tiny("registers")
    at_once, images = copy.deepcopy(staged), images_for(staged)
    for number, target in enumerate(order.split()):
        plan = current_plan(staged).with_variant(variant)
        heads = random_choice(plan.heads_per_block, 0.75, number) if target in ("heads", "both", "all") else None
        tokens = random_choice(plan.tokens_per_block, 0.75, number) if target in ("tokens", "both", "all") else None
        neurons = random_choice(plan.neurons_per_block, 0.75, number) if target in ("neurons", "all") else None
        apply_plan(staged, plan.narrow(heads=heads, tokens=tokens, neurons=neurons))
    apply_plan(at_once, current_plan(staged))
    assert torch.equal(features_of(staged, images), features_of(at_once, images))
    for name, value in at_once.state_dict().items():
        assert torch.equal(staged.state_dict()[name], value), name


def test_state_dict_keys_stay_those_of_timm():
    for name, case in CASES.items():
        model = build_tiny(name)
        keys = list(model.state_dict())
        if not case.attention:
            plain = timm.create_model(
                case.arch,
                img_size=(5 * case.patch, 3 * case.patch),
                num_classes=0,
                **{"depth": 3, "embed_dim": 32, "num_heads": 4, **case.overrides},
            )
            assert keys == list(plain.state_dict()), name
        apply_plan(model, without_neurons(random_plan(model, "block").fitted(current_plan(model))))
        assert sorted(model.state_dict()) == sorted(keys), name


def test_heads_are_removed_physically():
    model = build_tiny("gated_scale_norm")
    apply_plan(model, current_plan(model).narrow(heads=[[0, 1, 2, 3], [2], [0, 3]]))
    for block, heads in zip(model.blocks, (4, 1, 2), strict=True):
        width = heads * 8
        attention = block.attn
        assert attention.num_heads == heads
        assert attention.qkv.weight.shape == (3 * width, 32) and attention.qkv.bias.shape == (3 * width,)
        assert attention.proj.weight.shape == (32, width) and attention.proj.bias.shape == (32,)
        assert attention.gate.weight.shape == (width, 32) and attention.norm.weight.shape == (width,)
        assert attention.qkv.out_features == 3 * width and attention.proj.in_features == width


@pytest.mark.parametrize(
    ("case", "shapes"),
    [
        ("vit", {"fc1.weight": (5, 32), "fc1.bias": (5,)}),
        ("packed_swiglu", {"fc1.weight": (10, 32), "fc1.bias": (10,)}),
        (
            "swiglu_norm",
            {"fc1_g.weight": (5, 32), "fc1_g.bias": (5,), "fc1_x.weight": (5, 32), "fc1_x.bias": (5,)}
            | {"norm.weight": (5,), "norm.bias": (5,)},
        ),
    ],
)
def test_neurons_are_removed_physically(case, shapes):
    model = build_tiny(case)
    counts = current_plan(model).num_neurons
    apply_plan(model, current_plan(model).narrow(neurons=[range(counts[0]), range(3, 8), range(counts[2])]))
    expected = {**shapes, "fc2.weight": (32, 5), "fc2.bias": (32,)}
    assert {name: tuple(value.shape) for name, value in model.blocks[1].mlp.named_parameters()} == expected
    assert [block.mlp.fc2.in_features for block in model.blocks] == [counts[0], 5, counts[2]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_removed_physically(variant):
    model = build_tiny("distilled")
    apply_plan(model, random_plan(model, variant, heads=1))
    for block, kept in zip(model.blocks, current_plan(model).tokens, strict=True):
        index = block.attn.kept_tokens if variant == "kv" else block.kept_tokens
        assert index.dtype == torch.int64
        assert index.tolist() == [0, 1, *(2 + position for position in kept)]


def test_index_buffers_follow_the_model_and_are_no_weights():
    model = build_tiny()
    apply_plan(model, random_plan(model, "block"))
    assert not any("token" in name and name != "cls_token" for name in model.state_dict())
    assert model.to("meta").blocks[0].kept_tokens.device.type == "meta"


def test_a_block_that_keeps_every_token_takes_timms_path():
    model = build_tiny()
    apply_plan(model, current_plan(model).narrow(tokens=[range(15), range(15), range(14)]))
    assert [block.kept_tokens is None for block in model.blocks] == [True, True, False]


def test_the_dense_plan_changes_nothing():
    model = build_tiny()
    images = images_for(model)
    parameters = [id(parameter) for parameter in model.parameters()]
    before = features_of(model, images)
    apply_plan(model, current_plan(model))
    assert torch.equal(features_of(model, images), before)
    assert [id(parameter) for parameter in model.parameters()] == parameters


def test_plan_is_remembered_through_copies_and_wrappers():
    spec = ModelSpec("vit_tiny_patch16_224", (80, 48), 5, overrides={"depth": 3, "embed_dim": 32, "num_heads": 4})
    model = ReIDModel(spec)
    plan = random_plan(model.backbone, "kv")
    wrapped = nn.DataParallel(model)
    assert apply_plan(wrapped, plan) is wrapped
    assert current_plan(wrapped) == current_plan(model) == current_plan(copy.deepcopy(model)) == plan


def test_frozen_parameters_stay_frozen_and_others_trainable():
    model = build_tiny()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    apply_plan(model, random_plan(model, "block"))
    assert not model.blocks[0].attn.qkv.weight.requires_grad
    assert model.blocks[0].attn.proj.weight.requires_grad
    assert model.blocks[0].attn.proj.weight.is_leaf


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pruned_model_can_be_trained(variant):
    model = build_tiny().train()
    apply_plan(model, random_plan(model, variant))
    pooled_features(model, model.forward_features(images_for(model))).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", [nn.LayerNorm, RmsNorm])
def test_scale_norm_keeps_the_statistics_of_the_full_width(kind):
    norm = kind(12, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    x[..., 4:8] = 0
    expected = norm.double()(x)
    kept = [0, 1, 2, 3, 8, 9, 10, 11]
    subset = SubsetNorm(norm)
    for name, parameter in norm.named_parameters():
        setattr(subset, name, nn.Parameter(parameter[kept]))
    assert torch.allclose(subset(x[..., kept]), expected[..., kept], atol=1e-12)


def test_a_plan_for_another_model_is_refused():
    model = build_tiny()
    with pytest.raises(PlanError, match="15 patches"):
        apply_plan(model, PruningPlan.dense([4, 4, 4], 16))
    with pytest.raises(PlanError, match="heads"):
        apply_plan(model, PruningPlan.dense([4, 4], 15))


def test_nothing_can_be_brought_back():
    model = build_tiny()
    dense = current_plan(model)
    apply_plan(model, random_plan(model, "block"))
    with pytest.raises(PlanError, match="only remove"):
        apply_plan(model, dense)


def test_variants_cannot_be_mixed():
    model = build_tiny()
    apply_plan(model, random_plan(model, "kv"))
    with pytest.raises(PlanError, match="variant"):
        apply_plan(model, PruningPlan.from_dict({**current_plan(model).to_dict(), "variant": "block"}))


def test_a_network_without_a_plain_vit_is_refused():
    with pytest.raises(UnsupportedModelError, match="Linear"):
        apply_plan(nn.Linear(2, 2), PruningPlan.dense([4], 4))
