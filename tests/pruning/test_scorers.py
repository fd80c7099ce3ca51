"""Scorers: AMG and the simple rules it is compared with."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import AttentionMapRecorder, TokenGradientRecorder, apply_plan, current_plan, head_entropy
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.registries import HEAD_SCORERS, NEURON_SCORERS, TOKEN_SCORERS

BLOCKS = [0, 1, 2]


def build(arch="vit_tiny_patch16_224"):
    torch.manual_seed(0)
    spec = ModelSpec(arch, (64, 32), 4, overrides={"depth": 3, "embed_dim": 32, "num_heads": 4})
    model = ReIDModel(spec)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def model():
    return build()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(2, 3, 64, 32, generator=generator), torch.tensor([number, 3])) for number in range(3)]


def calibration_of(model, batches, **options):
    def loss(batch):
        images, pids = batch
        return F.cross_entropy(model.logits(images.clone().requires_grad_()), pids)

    return Calibration(lambda: iter(batches), lambda batch: model(batch[0]), loss, **options)


@pytest.mark.parametrize("name", HEAD_SCORERS)
def test_head_scorers_give_one_finite_score_per_head_left(model, batches, name):
    apply_plan(model, current_plan(model).narrow(heads=[[0, 1], [3], [0, 1, 2]]))
    scores = HEAD_SCORERS.load(name)(model, calibration_of(model, batches), [2, 0])
    assert [len(values) for values in scores] == [3, 2]
    assert all(torch.isfinite(values).all() for values in scores)


@pytest.mark.parametrize("name", NEURON_SCORERS)
def test_neuron_scorers_give_one_finite_score_per_neuron_left(model, batches, name):
    apply_plan(model, current_plan(model).narrow(neurons=[range(90), range(128), range(5, 20)]))
    scores = NEURON_SCORERS.load(name)(model, calibration_of(model, batches), [2, 0])
    assert [tuple(values.shape) for values in scores] == [(15,), (90,)]
    assert all(torch.isfinite(values).all() for values in scores)
    assert not any(block.mlp.fc2._forward_pre_hooks for block in model.backbone.blocks)


def hidden_units(model, images, block):
    """``[B, N, F]``, what enters ``fc2`` of a block."""
    seen = []
    handle = model.backbone.blocks[block].mlp.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    handle.remove()
    return seen[0]


def test_variance_of_neurons_is_that_over_all_images_and_tokens(model, batches):
    scores = NEURON_SCORERS.load("variance")(model, calibration_of(model, batches), [1])
    with torch.no_grad():
        units = torch.cat([hidden_units(model, images, 1) for images, _ in batches])
    assert torch.allclose(scores[0], units.double().flatten(0, 1).var(0, correction=0), rtol=1e-6)


def test_taylor_of_neurons_is_the_change_of_the_loss_by_a_unit_in_each_image(model, batches):
    model.double()
    batches = [(images.double(), pids) for images, pids in batches]
    fc2 = model.backbone.blocks[1].mlp.fc2
    expected = torch.zeros(fc2.in_features, dtype=torch.float64)
    for images, pids in batches:
        for number in range(len(images)):
            factor = torch.ones(fc2.in_features, dtype=torch.float64, requires_grad=True)

            def scale(module, inputs, number=number, factor=factor):
                chosen = torch.zeros_like(inputs[0])
                chosen[number] = 1
                return (inputs[0] * (1 + chosen * (factor - 1)),)

            handle = fc2.register_forward_pre_hook(scale)
            loss = F.cross_entropy(model.logits(images), pids)
            handle.remove()
            expected += torch.autograd.grad(loss, factor)[0].abs()
    scores = NEURON_SCORERS.load("taylor")(model, calibration_of(model, batches), [1])
    assert torch.allclose(scores[0], expected, rtol=1e-9)


def test_magnitude_of_neurons_is_the_norm_of_what_a_unit_owns(model, batches):
    scores = NEURON_SCORERS.load("magnitude")(model, calibration_of(model, batches), [1])
    mlp = model.backbone.blocks[1].mlp
    norms = torch.cat([mlp.fc1.weight, mlp.fc2.weight.T], dim=1).norm(dim=1).double()
    assert torch.allclose(scores[0], norms / norms.mean(), rtol=1e-6)


@pytest.mark.parametrize("variant", ["kv", "block"])
@pytest.mark.parametrize("name", TOKEN_SCORERS)
def test_token_scorers_give_one_finite_score_per_token_left(model, batches, name, variant):
    plan = current_plan(model).with_variant(variant)
    apply_plan(model, plan.narrow(tokens=[range(5), range(8), [2]]))
    scores = TOKEN_SCORERS.load(name)(model, calibration_of(model, batches), [2, 0])
    assert [len(values) for values in scores] == [1, 5]
    assert all(torch.isfinite(values).all() for values in scores)


def test_amg_scores_heads_by_the_entropy_of_the_mean_map(model, batches):
    with AttentionMapRecorder(model) as recorder, torch.no_grad():
        model(torch.cat([images for images, _ in batches]))
    scores = HEAD_SCORERS.load("amg")(model, calibration_of(model, batches), BLOCKS)
    for values, mean in zip(scores, recorder.mean(), strict=True):
        assert torch.allclose(values, head_entropy(mean), rtol=1e-5)


def test_normalised_entropies_are_those_divided_by_log2_of_the_keys(model, batches):
    plain = HEAD_SCORERS.load("amg")(model, calibration_of(model, batches), BLOCKS)
    shares = HEAD_SCORERS.load("amg")(model, calibration_of(model, batches, normalize_entropy=True), BLOCKS)
    for bits, share in zip(plain, shares, strict=True):
        assert torch.allclose(bits / torch.tensor(9.0).log2(), share)


def test_amg_scores_tokens_by_similarity_times_gradient_of_the_loss(model, batches):
    calibration = calibration_of(model, batches)
    with TokenGradientRecorder(model) as recorder:
        for batch in batches:
            calibration.loss(batch).backward()
            recorder.end_batch()
    scores = TOKEN_SCORERS.load("amg")(model, calibration, BLOCKS)
    for values, expected in zip(scores, recorder.importance, strict=True):
        assert torch.allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_token_scoring_leaves_no_gradient_and_no_changed_flag(model, batches, requires_grad):
    model.backbone.blocks[1].requires_grad_(requires_grad)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    TOKEN_SCORERS.load("amg")(model, calibration_of(model, batches), BLOCKS)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_token_scoring_works_on_images_that_ask_for_no_gradient(model, batches):
    def loss(batch):
        return F.cross_entropy(model.logits(batch[0]), batch[1])

    plain = Calibration(lambda: iter(batches), lambda batch: model(batch[0]), loss)
    expected = TOKEN_SCORERS.load("amg")(model, calibration_of(model, batches), BLOCKS)
    for values, same in zip(TOKEN_SCORERS.load("amg")(model, plain, BLOCKS), expected, strict=True):
        assert torch.allclose(values, same, rtol=1e-5)


def test_a_failing_loss_leaves_the_model_usable(model, batches):
    def loss(batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TOKEN_SCORERS.load("amg")(model, Calibration(lambda: iter(batches), model, loss), BLOCKS)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(block.attn.observer is None for block in model.backbone.blocks)


def test_magnitude_marks_the_head_with_the_smallest_weights_for_removal(model, batches):
    attention = model.backbone.blocks[1].attn
    with torch.no_grad():
        for part in range(3):
            attention.qkv.weight[part * 32 + 16 : part * 32 + 24] *= 0.1
        attention.proj.weight[:, 16:24] *= 0.1
    scores = HEAD_SCORERS.load("magnitude")(model, calibration_of(model, batches), BLOCKS)
    assert scores[1].argmax() == 2


def test_magnitude_is_relative_to_the_block(model, batches):
    before = HEAD_SCORERS.load("magnitude")(model, calibration_of(model, batches), BLOCKS)
    with torch.no_grad():
        model.backbone.blocks[1].attn.qkv.weight *= 3
        model.backbone.blocks[1].attn.proj.weight *= 3
    after = HEAD_SCORERS.load("magnitude")(model, calibration_of(model, batches), BLOCKS)
    assert torch.allclose(before[1], after[1])


def test_class_attention_is_what_the_class_token_pays(model, batches):
    with AttentionMapRecorder(model) as recorder, torch.no_grad():
        model(torch.cat([images for images, _ in batches]))
    scores = TOKEN_SCORERS.load("cls_attention")(model, calibration_of(model, batches), BLOCKS)
    for values, mean in zip(scores, recorder.mean(), strict=True):
        assert torch.allclose(values, mean[:, 0, 1:].mean(0), rtol=1e-5)


def test_class_attention_without_a_class_token_is_that_of_all_queries(batches):
    model = build("vit_base_patch16_gap_224")
    with AttentionMapRecorder(model) as recorder, torch.no_grad():
        model(torch.cat([images for images, _ in batches]))
    scores = TOKEN_SCORERS.load("cls_attention")(model, calibration_of(model, batches), BLOCKS)
    for values, mean in zip(scores, recorder.mean(), strict=True):
        assert torch.allclose(values, mean.mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("scorers", [HEAD_SCORERS, TOKEN_SCORERS], ids=["heads", "tokens"])
def test_random_scores_are_fixed_by_the_seed_and_need_no_images(model, scorers):
    def scores(seed):
        values = scorers.load("random")(model, calibration_of(model, None, seed=seed), BLOCKS)
        return torch.cat(values).tolist()

    assert scores(1) == scores(1) != scores(2)


def test_maps_are_averaged_over_processes(model, batches):
    alone = HEAD_SCORERS.load("amg")(model, calibration_of(model, batches), BLOCKS)
    # Two processes with the same images: sums and image counts double.
    both = HEAD_SCORERS.load("amg")(model, calibration_of(model, batches, reduce=lambda tensor: 2 * tensor), BLOCKS)
    for one, other in zip(alone, both, strict=True):
        assert torch.allclose(one, other)
