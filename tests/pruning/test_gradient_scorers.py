"""Scorers that follow the loss into each image, against references that go through the images one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from masked_reference import build_tiny, images_for
from torch.nn import functional as F

from amg_plugin.errors import RunError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import backbone_of, pooled_features
from amg_plugin.pruning import TokenGradientRecorder, apply_plan, current_plan, head_entropy
from amg_plugin.pruning.cut import PruningRules, plan_cut
from amg_plugin.pruning.recorder import AttentionMapRecorder, InputGradientRecorder
from amg_plugin.pruning.schedule import PruningSchedule, Stage
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.scores import (
    entropy_against_gradient,
    loss_changes,
    token_sums_per_image,
    what_repair_leaves,
)
from amg_plugin.registries import HEAD_SCORERS, TOKEN_SCORERS

TINY = {"depth": 3, "embed_dim": 16, "num_heads": 2}
CAMERAS = torch.tensor([0, 2, 1])
NETWORKS = {
    "plain": {},
    "transreid": {"stride": 12, "side_information": {"cameras": 3}, "jigsaw": {}, "loss": "triplet"},
    "la_transformer": {"head": "parts", "parts": 3, "part_hidden": 8},
}
BEYOND_HEADS = ["taylor", "entropy_gradient", "reconstruction"]


def network(name):
    torch.manual_seed(0)
    model = build_network(ModelSpec("vit_tiny_patch16_224", (64, 32), 4, overrides=TINY, **NETWORKS[name])).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def loss_per_image(model, images, cameras, pids):
    """``[B]``: the task loss of each image, over all outputs of the network."""
    outputs = model.training_outputs(images, *([cameras] if model.uses_cameras else []))
    logits, features = outputs if isinstance(outputs, tuple) else (outputs, [])
    logits, features = (value if isinstance(value, list) else [value] for value in (logits, features))
    entropy = torch.stack([F.cross_entropy(one, pids, reduction="none") for one in logits]).mean(0)
    return entropy + sum(one.square().mean(1) for one in features)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(3, 3, 64, 32, generator=generator, dtype=torch.float64), CAMERAS, torch.tensor([number, 3, 1]))
        for number in range(2)
    ]


def calibration_of(model, batches, **options):
    return Calibration(
        lambda: iter(batches),
        lambda batch: model.embed(batch[0], *([batch[1]] if model.uses_cameras else [])),
        lambda batch: loss_per_image(model, *batch).mean(),
        **options,
    )


def pruned(model, variant="block"):
    plan = current_plan(model).with_variant(variant)
    patches = range(plan.num_patches)
    if variant == "merge":
        everything = tuple((position,) for position in patches)
        pairs = tuple((position, position + 1) for position in patches[::2])
        plan = plan.narrow(heads=[[1], [0, 1], [0, 1]])
        return apply_plan(model, plan.merge([patches, patches[::2], patches], [everything, pairs, everything]))
    return apply_plan(model, plan.narrow(heads=[[1], [0, 1], [0, 1]], tokens=[patches[:5], patches[2:], patches]))


def changes_one_by_one(model, batches, block):
    """``[H]``: what scaling a head of one image does to the loss, for every image and head by itself."""
    attention = backbone_of(model).blocks[block].attn
    totals = [0.0] * attention.num_heads
    for images, cameras, pids in batches:
        for number in range(len(images)):
            for head in range(attention.num_heads):
                factor = torch.ones((), dtype=torch.float64, requires_grad=True)
                columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)

                def scale(module, inputs, number=number, columns=columns, factor=factor):
                    chosen = torch.zeros_like(inputs[0])
                    chosen[number, :, columns] = 1
                    return (inputs[0] * (1 + chosen * (factor - 1)),)

                handle = attention.proj.register_forward_pre_hook(scale)
                loss = loss_per_image(model, images, cameras, pids).mean()
                handle.remove()
                totals[head] += abs(torch.autograd.grad(loss, factor)[0].item())
    return torch.tensor(totals, dtype=torch.float64)


def lost_one_by_one(model, batches, block, front=None):
    """``[2]``: what the residual of a head, fitted by the other one, does to the loss in every image by itself."""
    attention, seen, totals = backbone_of(model).blocks[block].attn, [], [0.0, 0.0]
    keep = attention.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, :front].detach()))
    for batch in batches:
        loss_per_image(model, *batch)
    keep.remove()
    tokens = torch.cat([values.flatten(0, 1) for values in seen])
    mean = tokens.mean(0)
    heads = [slice(head * attention.head_dim, (head + 1) * attention.head_dim) for head in range(2)]
    for head, (ours, other) in enumerate((heads, heads[::-1])):
        weights = direct_fit((tokens - mean)[:, other], (tokens - mean)[:, ours], 1e-3)
        for images, cameras, pids in batches:
            for number in range(len(images)):
                share = torch.zeros((), dtype=torch.float64, requires_grad=True)

                def lose(module, inputs, number=number, share=share, ours=ours, other=other, weights=weights):
                    centred = (inputs[0] - mean)[number].detach()
                    lost = torch.zeros_like(inputs[0])
                    lost[number, :, ours] = centred[:, ours] - centred[:, other] @ weights
                    return (inputs[0] - share * lost,)

                handle = attention.proj.register_forward_pre_hook(lose)
                loss = loss_per_image(model, images, cameras, pids).mean()
                handle.remove()
                totals[head] += abs(torch.autograd.grad(loss, share)[0].item())
    return torch.tensor(totals, dtype=torch.float64)


def direct_fit(inputs, targets, ridge):
    """Weights ``[K, R]`` of the ridge regression of centred targets on centred inputs, by rows for the penalty."""
    size, mean = len(inputs), inputs.square().mean(0).mean()
    rows = torch.cat([inputs / size**0.5, (ridge * mean) ** 0.5 * torch.eye(inputs.shape[1], dtype=inputs.dtype)])
    values = torch.cat([targets / size**0.5, torch.zeros(inputs.shape[1], targets.shape[1], dtype=targets.dtype)])
    return torch.linalg.lstsq(rows, values).solution


def tokens_one_by_one(model, batches, block):
    """``[N]``: AMG's importance of every image by itself, mean over a batch, sum over batches."""
    total = 0
    for images, cameras, pids in batches:
        for number in range(len(images)):
            one = slice(number, number + 1)
            with TokenGradientRecorder(model, [block]) as recorder:
                (loss_per_image(model, images[one], cameras[one], pids[one]).sum() / len(images)).backward()
                recorder.end_batch()
            total = total + recorder.importance[0] / len(images)
    return total


@pytest.mark.parametrize("variant", ["block", "kv", "merge", None])
@pytest.mark.parametrize("name", NETWORKS)
def test_taylor_is_the_change_of_the_loss_by_a_head_in_each_image(batches, name, variant):
    model = network(name)
    if variant:
        pruned(model, variant)
    scores = HEAD_SCORERS.load("taylor")(model, calibration_of(model, batches), [1, 0])
    for values, block in zip(scores, [1, 0], strict=True):
        assert torch.allclose(-values, changes_one_by_one(model, batches, block), rtol=1e-9, atol=0)
        assert (values < 0).all() and values.dtype == torch.float64


@pytest.mark.parametrize("variant", ["block", "kv", "merge", None])
@pytest.mark.parametrize("name", NETWORKS)
def test_amg_image_is_the_importance_of_each_image_by_itself(batches, name, variant):
    model = network(name)
    if variant:
        pruned(model, variant)
    scores = TOKEN_SCORERS.load("amg_image")(model, calibration_of(model, batches), [1, 0])
    for values, block in zip(scores, [1, 0], strict=True):
        assert torch.allclose(values, tokens_one_by_one(model, batches, block), rtol=1e-9, atol=0)
        assert values.dtype == torch.float64


def test_one_image_a_batch_gives_what_amg_gives(batches):
    model = network("plain")
    alone = [tuple(part[number : number + 1] for part in batch) for batch in batches for number in range(3)]
    scores = [TOKEN_SCORERS.load(name)(model, calibration_of(model, alone), [0, 2]) for name in ("amg", "amg_image")]
    for amg, image in zip(*scores, strict=True):
        assert torch.allclose(amg, image)


def test_entropy_gradient_is_half_the_difference_of_both_on_a_common_scale(batches):
    model = pruned(network("plain"))
    with AttentionMapRecorder(model) as recorder, torch.no_grad():
        for images, *_ in batches:
            model(images)
    entropy = [head_entropy(mean, normalize=True).tolist() for mean in recorder.mean()]
    changes = [changes_one_by_one(model, batches, block).tolist() for block in range(3)]

    def scaled(values):
        together = [value for block in values for value in block]
        return [[(value - min(together)) / (max(together) - min(together)) for value in block] for block in values]

    scores = HEAD_SCORERS.load("entropy_gradient")(model, calibration_of(model, batches), [0, 1, 2])
    for values, spread, change in zip(scores, scaled(entropy), scaled(changes), strict=True):
        expected = [(one - other) / 2 for one, other in zip(spread, change, strict=True)]
        assert values.tolist() == pytest.approx(expected)


def test_what_does_not_tell_heads_apart_has_no_say():
    same, other = [torch.ones(2), torch.ones(1)], [torch.tensor([0.0, 4.0]), torch.tensor([1.0])]
    assert torch.cat(entropy_against_gradient(same, other)).tolist() == [0, -0.5, -0.125]
    assert torch.cat(entropy_against_gradient(other, same)).tolist() == [0, 0.5, 0.125]


@pytest.mark.parametrize("case", ["vit", "distilled", "registers", "no_class_token", "scale_norm", "gated_scale_norm",
                                  "qk_norm", "layer_scale", "heads_of_other_width"])  # fmt: skip
def test_the_change_is_that_of_a_head_behind_norm_and_gate(case):
    model = build_tiny(case).double()
    images = images_for(model)

    def loss_of(number=None, head=None, factor=1.0):
        def scale(module, inputs):
            values = inputs[0].clone()
            values[number].unflatten(-1, (attention.num_heads, -1))[:, head].mul_(factor)
            return (values,)

        handle = attention.proj.register_forward_pre_hook(scale) if number is not None else None
        loss = pooled_features(model, model.forward_features(images)).tanh().square().sum()
        if handle:
            handle.remove()
        return loss

    attention, step = model.blocks[1].attn, 1e-5
    with InputGradientRecorder([attention.proj], [attention.head_dim]) as recorder:
        loss_of().backward()
    for head in (0, 3):
        with torch.no_grad():
            slopes = [
                abs(loss_of(number, head, 1 + step) - loss_of(number, head, 1 - step)) / (2 * step)
                for number in range(len(images))
            ]
        assert recorder.changes[0][head].item() == pytest.approx(sum(slopes).item(), rel=1e-5)


def test_changes_of_parts_of_one_column_are_those_of_hidden_units():
    generator = torch.Generator().manual_seed(0)
    values, gradient = (torch.randn(3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    for width in (1, 2, 6):
        expected = [
            sum(
                abs(
                    sum(
                        (values[b, n, c] * gradient[b, n, c]).item()
                        for n in range(5)
                        for c in range(part, part + width)
                    )
                )
                for b in range(3)
            )
            for part in range(0, 6, width)
        ]
        assert loss_changes(values, gradient, width).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_what_repair_leaves_is_the_residual_of_a_direct_least_squares_fit(width):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    tokens = torch.randn(50, 6, generator=generator, dtype=torch.float64) @ mix + 3
    centred = tokens - tokens.mean(0)
    left = centred @ what_repair_leaves(centred.T @ centred / len(tokens), width, 0.1).T
    for start in range(0, 6, width):
        part = list(range(start, start + width))
        others = [column for column in range(6) if column not in part]
        expected = centred[:, part]
        if others:
            expected = expected - centred[:, others] @ direct_fit(centred[:, others], expected, 0.1)
        assert torch.allclose(left[:, part], expected)


@pytest.mark.parametrize("variant", ["block", "kv", "merge", None])
@pytest.mark.parametrize("name", NETWORKS)
def test_reconstruction_is_the_change_by_what_the_other_heads_cannot_make_up_for(batches, name, variant):
    model = network(name)
    if variant:
        pruned(model, variant)
    (values,) = HEAD_SCORERS.load("reconstruction")(model, calibration_of(model, batches), [1])
    assert torch.allclose(-values, lost_one_by_one(model, batches, 1), rtol=1e-8, atol=0)
    assert values.dtype == torch.float64


def test_a_last_block_of_which_the_class_token_is_read_is_fitted_on_that_token(batches):
    model = network("plain")
    (values,) = HEAD_SCORERS.load("reconstruction")(model, calibration_of(model, batches), [2])
    assert torch.allclose(-values, lost_one_by_one(model, batches, 2, front=1), rtol=1e-8, atol=0)
    assert not torch.allclose(-values, lost_one_by_one(model, batches, 2), rtol=1e-3, atol=0)


def test_what_others_say_as_well_leaves_nothing_behind():
    one = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    same, dead = torch.cat([one, one], 1), torch.zeros(2, 2, dtype=torch.float64)
    assert (same @ what_repair_leaves(same.T @ same / 2, 1).T).abs().max() < 2e-3
    assert torch.equal(what_repair_leaves(dead, 1), torch.eye(2, dtype=torch.float64))


def test_token_sums_per_image_do_not_cancel_out():
    attention = torch.tensor([1.0, 1.0]).reshape(2, 1, 1, 1)
    gradient = torch.tensor([3.0, -2.0]).reshape(2, 1, 1, 1)
    assert token_sums_per_image(attention, gradient).tolist() == [5.0]


@pytest.mark.parametrize("name", BEYOND_HEADS)
def test_sums_are_added_up_over_processes(batches, name):
    model = network("plain")
    scores = [
        torch.cat(HEAD_SCORERS.load(name)(model, calibration_of(model, some, reduce=reduce), [0, 1, 2]))
        for some, reduce in ((batches, None), (batches, lambda tensor: 2 * tensor), (batches * 2, None))
    ]
    assert torch.allclose(scores[1], scores[2])
    assert torch.allclose(scores[1], scores[0] * (1 if name == "entropy_gradient" else 2))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(
    "scorer", [(HEAD_SCORERS, name) for name in BEYOND_HEADS] + [(TOKEN_SCORERS, "amg_image")], ids=lambda one: one[1]
)
def test_scoring_leaves_no_trace(batches, scorer, trainable):
    model = network("transreid")
    model.backbone.blocks[0].requires_grad_(trainable)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = model.embed(batches[0][0], CAMERAS)
    scorer[0].load(scorer[1])(model, calibration_of(model, batches), [0, 1])
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(block.attn.observer is None for block in model.backbone.blocks)
    assert torch.equal(model.embed(batches[0][0], CAMERAS), before)


@pytest.mark.parametrize("name", BEYOND_HEADS)
def test_a_failing_loss_leaves_no_recorder_behind(batches, name):
    def loss(batch):
        raise ZeroDivisionError

    model = network("plain")
    with pytest.raises(ZeroDivisionError):
        HEAD_SCORERS.load(name)(model, replace(calibration_of(model, batches), loss=loss), [0, 1])
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("target", "name"), [*(("heads", name) for name in BEYOND_HEADS), ("tokens", "amg_image")])
def test_nothing_is_pruned_on_scores_that_are_not_finite(batches, target, name):
    model = network("plain")
    calibration = calibration_of(model, batches)
    broken = replace(calibration, loss=lambda batch: calibration.loss(batch) * torch.nan)
    cut = PruningSchedule([Stage(target, 0.5)], 0).cuts[0]
    rules = PruningRules(head_scorer=name, token_scorer=name)
    with pytest.raises(RunError, match=f"'{name}' gave NaN or infinity for the {target} of block 0"):
        plan_cut(model, cut, rules, broken)


def test_gradients_of_nothing_are_refused():
    model = network("plain")
    with InputGradientRecorder([model.backbone.blocks[0].attn.proj], [8]) as recorder, torch.no_grad():
        with pytest.raises(RuntimeError, match="no_grad"):
            model(torch.zeros(1, 3, 64, 32, dtype=torch.float64))
        with pytest.raises(RuntimeError, match="no gradient reached"):
            _ = recorder.changes
