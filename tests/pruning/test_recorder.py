"""Recorders: right sums, memory of one batch, no trace left behind."""

from __future__ import annotations

import weakref

import pytest
import timm
import torch
from masked_reference import MaskedViT, build_tiny, images_for, random_choice
from torch import nn
from torch.profiler import ProfilerActivity, profile

from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.models.vit import pooled_features
from amg_plugin.pruning import (
    AttentionMapRecorder,
    AttentionRecorder,
    TokenGradientRecorder,
    apply_plan,
    current_plan,
    head_entropy,
)


@pytest.fixture
def model():
    return build_tiny("registers").double()


def run(model, images):
    return pooled_features(model, model.forward_features(images))


def loss_of(features):
    return features.tanh().square().sum()


def score_tokens(model, batches, reduce=None):
    with TokenGradientRecorder(model) as recorder:
        for images in batches:
            loss_of(run(model, images)).backward()
            recorder.end_batch(reduce)
    return recorder


def record_maps(model, batches, blocks=None):
    with AttentionMapRecorder(model, blocks) as recorder, torch.no_grad():
        for images in batches:
            run(model, images)
    return recorder


def everything_kept(model):
    plan = current_plan(model)
    return [list(kept) for kept in plan.heads], [list(kept) for kept in plan.tokens]


def test_mean_attention_equals_the_reference_over_all_images(model):
    batches = [images_for(model, batch, seed) for seed, batch in enumerate((3, 2, 1))]
    recorder = record_maps(model, batches)
    reference = MaskedViT(model)
    reference(torch.cat(batches), *everything_kept(model), "block")
    assert recorder.images == 6
    for mean, maps in zip(recorder.mean(), reference.maps, strict=True):
        assert mean.dtype == torch.float64
        assert torch.allclose(mean, maps.mean(0), atol=1e-12)


@pytest.mark.parametrize("variant", ["kv", "block"])
def test_maps_of_a_pruned_model_cover_the_tokens_that_are_left(model, variant):
    plan = current_plan(model).with_variant(variant)
    apply_plan(model, plan.narrow(heads=[[0, 1], [2], [0, 1, 3]], tokens=random_choice([15] * 3, 0.6, 0)))
    means = record_maps(model, [images_for(model)]).mean()
    for block, mean in enumerate(means):
        heads, keys = current_plan(model).heads_per_block[block], 5 + current_plan(model).tokens_per_block[block]
        assert mean.shape == (heads, keys if variant == "block" else 20, keys)
        assert torch.allclose(mean.sum(-1), torch.ones(1, dtype=torch.float64))


def test_sums_of_two_recorders_add_up_to_one_pass_over_all_images(model):
    first, second = images_for(model, 3, 0), images_for(model, 2, 1)
    whole = record_maps(model, [first, second])
    parts = [record_maps(model, [first]), record_maps(model, [second])]
    assert parts[0].images + parts[1].images == whole.images
    for total, one, other in zip(whole.sums, parts[0].sums, parts[1].sums, strict=True):
        assert torch.equal(total, one + other)


@pytest.mark.parametrize("blocks", [[0, 2], [2, 0], [1]])
def test_results_follow_the_order_in_which_blocks_were_named(model, blocks):
    images = [images_for(model)]
    everything = record_maps(model, images).mean()
    for mean, block in zip(record_maps(model, images, blocks).mean(), blocks, strict=True):
        assert torch.allclose(mean, everything[block])
    whole = score_tokens(model, images).importance
    with TokenGradientRecorder(model, blocks) as recorder:
        loss_of(run(model, images[0])).backward()
        recorder.end_batch()
    for values, block in zip(recorder.importance, blocks, strict=True):
        assert torch.allclose(values, whole[block])


def test_half_precision_maps_are_summed_without_losing_the_total():
    recorder = AttentionMapRecorder(build_tiny())
    for _ in range(200):
        recorder.observe(0, torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16))
    assert torch.equal(recorder.sums[0], torch.full((1, 2, 2), 100.0, dtype=torch.float64))


def test_recorded_maps_are_those_before_dropout(model):
    for block in model.blocks:
        block.attn.attn_drop.p = 0.5
    model.train()
    for mean in record_maps(model, [images_for(model)]).mean():
        assert torch.allclose(mean.sum(-1), torch.ones(1, dtype=torch.float64))


def test_importance_is_the_derivative_by_a_factor_on_each_key(model):
    images = images_for(model, 2)
    recorder = score_tokens(model, [images])
    factors = [torch.ones(20, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    reference = MaskedViT(model)
    loss_of(reference(images, *everything_kept(model), "block", factors)[1]).backward()
    terms = 2 * 4 * 20
    for values, factor in zip(recorder.importance, factors, strict=True):
        assert torch.allclose(values, (factor.grad.abs() / terms)[5:], rtol=1e-9)
        assert (values > 0).all()


def test_importance_predicts_what_removing_a_little_of_a_key_costs(model):
    images, step = images_for(model, 2), 1e-4
    recorder = score_tokens(model, [images])
    reference = MaskedViT(model)
    for block, position in ((0, 0), (1, 7), (2, 14)):
        losses = []
        for factor in (1 + step, 1 - step):
            factors = [torch.ones(20, dtype=torch.float64) for _ in range(3)]
            factors[block][5 + position] = factor
            losses.append(loss_of(reference(images, *everything_kept(model), "block", factors)[1]).item())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert recorder.importance[block][position].item() == pytest.approx(abs(slope) / (2 * 4 * 20), rel=1e-4)


def test_importance_of_batches_adds_up_after_the_absolute_value(model):
    batches = [images_for(model, 2, seed) for seed in range(3)]
    together = score_tokens(model, batches)
    assert together.batches == 3
    apart = [score_tokens(model, [images]).importance for images in batches]
    for total, *parts in zip(together.importance, *apart, strict=True):
        assert torch.allclose(total, sum(parts))


def test_parts_of_one_global_batch_add_up_before_the_absolute_value(model):
    images = images_for(model, 4)
    whole = score_tokens(model, [images])
    with TokenGradientRecorder(model) as recorder:
        for part in images.split(2):
            loss_of(run(model, part)).backward()
        recorder.end_batch()
    for expected, values in zip(whole.importance, recorder.importance, strict=True):
        assert torch.allclose(values, expected)


def test_sums_and_counts_are_reduced_over_processes(model):
    batch = [images_for(model)]
    # Two processes with the same images: sums and counts double, their ratio stays.
    reduced = score_tokens(model, batch, reduce=lambda tensor: 2 * tensor)
    for values, expected in zip(reduced.importance, score_tokens(model, batch).importance, strict=True):
        assert torch.allclose(values, expected)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("recorder_class", [AttentionMapRecorder, TokenGradientRecorder])
def test_memory_of_one_batch_is_kept(model, recorder_class, trainable):
    model.requires_grad_(trainable)
    seen = []

    class Watching(recorder_class):
        def observe(self, place, attention):
            super().observe(place, attention)
            seen.append(weakref.ref(attention))

    sizes = []
    with Watching(model) as recorder:
        for _ in range(3):
            images = images_for(model)
            if recorder_class is TokenGradientRecorder:
                loss_of(run(model, images)).backward()
                recorder.end_batch()
            else:
                with torch.no_grad():
                    run(model, images)
            assert [ref() for ref in seen] == [None] * len(seen)
            held = [value for entry in vars(recorder).values() if isinstance(entry, list) for value in entry]
            sizes.append(sum(value.numel() for value in held if isinstance(value, torch.Tensor)))
    assert len(seen) == 9 and len(set(sizes)) == 1


@pytest.mark.parametrize("recorder_class", [AttentionMapRecorder, TokenGradientRecorder])
def test_nothing_stays_behind_after_ejection(model, recorder_class):
    images = images_for(model)

    def traces():
        return [
            (name, type(module), sorted(vars(module)), dict(vars(module).get("_buffers", {})))
            for name, module in model.named_modules()
        ]

    def hooks():
        return [
            dict(hooks)
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ]

    before, hooks_before, output = traces(), hooks(), run(model, images)
    with recorder_class(model):
        assert all(block.attn.observer is not None for block in model.blocks)
        loss_of(run(model, images)).backward()
    model.zero_grad()
    assert traces() == before and hooks() == hooks_before
    assert all(block.attn.observer is None and block.attn.fused_attn for block in model.blocks)
    assert torch.equal(run(model, images), output)


def test_fused_attention_is_used_again_after_ejection(model):
    def fused(step):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        counts = {event.key: event.count for event in profiled.key_averages()}
        return counts.get("aten::scaled_dot_product_attention", 0)

    assert fused(lambda: record_maps(model, [images_for(model)])) == 0
    assert fused(lambda: run(model, images_for(model))) == len(model.blocks)


def test_a_plain_timm_model_can_be_recorded_and_computes_the_same_afterwards():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=(80, 48), depth=3, embed_dim=32, num_heads=4).eval()
    images = images_for(plain)
    before, keys = plain(images), list(plain.state_dict())
    means = record_maps(plain, [images]).mean()
    assert all(torch.isfinite(head_entropy(mean)).all() for mean in means)
    assert torch.equal(plain(images), before) and list(plain.state_dict()) == keys


def test_recording_leaves_the_output_as_it_is_up_to_rounding(model):
    images = images_for(model)
    expected = run(model, images)
    with AttentionMapRecorder(model):
        assert torch.allclose(run(model, images), expected, rtol=1e-12)


def test_an_error_while_recording_ejects_the_recorder(model):
    with pytest.raises(KeyError), AttentionMapRecorder(model):
        raise KeyError
    assert all(block.attn.observer is None for block in model.blocks)


def test_a_second_recorder_is_refused_and_the_first_goes_on(model):
    with AttentionMapRecorder(model, [1]) as recorder:
        with pytest.raises(RuntimeError, match="another recorder"):
            AttentionMapRecorder(model).attach()
        run(model, images_for(model))
        assert recorder.images == 3
    assert all(block.attn.observer is None for block in model.blocks)


def test_recorders_look_through_dataparallel_and_the_reid_network():
    spec = ModelSpec("vit_tiny_patch16_224", (80, 48), 5, overrides={"depth": 2, "embed_dim": 32, "num_heads": 4})
    network = ReIDModel(spec).eval()
    with AttentionMapRecorder(nn.DataParallel(network)) as recorder:
        network(torch.zeros(2, 3, 80, 48))
    assert recorder.images == 2 and recorder.mean()[0].shape == (4, 16, 16)


def test_a_mean_of_nothing_is_refused(model):
    with pytest.raises(RuntimeError, match="no image"):
        AttentionMapRecorder(model).mean()


def test_token_scores_without_a_backward_pass_are_refused(model):
    with TokenGradientRecorder(model) as recorder:
        run(model, images_for(model))
        with pytest.raises(RuntimeError, match="backward"):
            recorder.end_batch()


def test_token_scores_under_no_grad_are_refused(model):
    with TokenGradientRecorder(model), torch.no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        run(model, images_for(model))


def test_the_base_recorder_hands_every_map_to_observe(model):
    seen = []

    class Shapes(AttentionRecorder):
        def observe(self, place, attention):
            seen.append((place, tuple(attention.shape)))

    with Shapes(model, [0, 2]):
        run(model, images_for(model))
    assert seen == [(0, (3, 4, 20, 20)), (1, (3, 4, 20, 20))]
