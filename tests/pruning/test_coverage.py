"""Attention on covered patches: the share itself, and its recorder on dense and pruned models."""

from __future__ import annotations

import pytest
import timm
import torch
from masked_reference import build_tiny, images_for, random_choice
from naive_merging import random_merges

from amg_plugin.models.vit import pooled_features
from amg_plugin.pruning import AttentionMapRecorder, apply_plan, current_plan
from amg_plugin.pruning.recorder import CoveredAttentionRecorder, attention_share

PATCHES, PREFIX = 15, 5


@pytest.fixture
def model():
    return build_tiny("registers").double()


def covered_for(images, seed=0):
    return torch.rand((len(images), PATCHES), generator=torch.Generator().manual_seed(seed)) < 0.4


def run(model, images):
    with torch.no_grad():
        return pooled_features(model, model.forward_features(images))


def record(model, batches, blocks=None):
    with CoveredAttentionRecorder(model, blocks) as recorder:
        for images, covered in batches:
            recorder.covered = covered
            run(model, images)
    return recorder.mean()


def test_the_share_is_that_of_the_class_token_over_patches():
    attention = torch.zeros(1, 2, 3, 4)
    attention[0, 0, 0] = torch.tensor([0.4, 0.3, 0.2, 0.1])  # first head of the class token
    attention[0, 1, 0] = torch.tensor([0.0, 0.1, 0.2, 0.7])
    attention[0, :, 1:] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # other queries
    share = attention_share(attention, torch.tensor([[True, False, False]]), prefix=1)
    assert share.tolist() == pytest.approx([(0.15 + 0.05) / (0.2 + 0.2 + 0.4)])


def test_without_a_class_token_all_queries_count():
    attention = torch.tensor([[[[0.75, 0.25], [0.25, 0.75]]]])
    assert attention_share(attention, torch.tensor([[True, False]]), 0, class_token=False).tolist() == [0.5]


@pytest.mark.parametrize(("value", "expected"), [(True, 1.0), (False, 0.0)])
def test_everything_and_nothing_are_exact(model, value, expected):
    images = images_for(model)
    for block in record(model, [(images, torch.full((len(images), PATCHES), value))]):
        assert block == {"attention": pytest.approx(expected, abs=1e-12), "keys": expected}


@pytest.mark.parametrize("variant", ["block", "kv"])
@pytest.mark.parametrize("rate", [0.0, 0.6])
def test_shares_are_those_of_the_maps_over_kept_keys(model, variant, rate):
    plan = current_plan(model).with_variant(variant)
    tokens = random_choice([PATCHES] * 3, rate, 0) if rate else None
    apply_plan(model, plan.narrow(heads=[[0, 1], [2], [0, 1, 3]], tokens=tokens))
    images = images_for(model)
    covered = covered_for(images)
    expected = [[0.0, 0.0] for _ in range(3)]
    for image, hidden in zip(images, covered, strict=True):
        with AttentionMapRecorder(model) as maps:
            run(model, image[None])
        for block, mean in enumerate(maps.mean()):
            kept = current_plan(model).tokens[block]
            row = mean.mean(0)[0, PREFIX:]
            hits = [place for place, position in enumerate(kept) if hidden[position]]
            expected[block][0] += float(row[hits].sum() / row.sum()) / len(images)
            expected[block][1] += len(hits) / len(kept) / len(images)
    for found, (attention, keys) in zip(record(model, [(images, covered)]), expected, strict=True):
        assert found == {"attention": pytest.approx(attention), "keys": pytest.approx(keys)}


def test_batches_count_by_their_images(model):
    images = images_for(model, 5)
    covered = covered_for(images)
    whole = record(model, [(images, covered)])
    parts = record(model, [(images[:1], covered[:1]), (images[1:], covered[1:])])
    for one, other in zip(whole, parts, strict=True):
        assert one == {name: pytest.approx(value) for name, value in other.items()}


def test_chosen_blocks_are_recorded_in_their_order(model):
    images = images_for(model)
    batches = [(images, covered_for(images))]
    everything = record(model, batches)
    chosen = record(model, batches, [2, 0])
    for found, expected in zip(chosen, (everything[2], everything[0]), strict=True):
        assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert everything[2]["attention"] != pytest.approx(everything[0]["attention"], rel=1e-4)


def test_models_without_a_class_token_are_recorded_too():
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=(80, 48), depth=2, embed_dim=32, num_heads=4, class_token=False,
        global_pool="avg",
    ).eval()  # fmt: skip
    images = images_for(plain)
    covered = covered_for(images)
    found = record(plain, [(images, covered)])
    with AttentionMapRecorder(plain) as maps:
        run(plain, images[:1])
    first = record(plain, [(images[:1], covered[:1])])
    row = maps.mean()[0].mean((0, 1))
    assert first[0]["attention"] == pytest.approx(float(row[covered[0]].sum() / row.sum()), rel=1e-5)
    assert len(found) == 2


def test_outputs_stay_the_same_and_nothing_stays_behind(model):
    images = images_for(model)
    before = run(model, images)
    with CoveredAttentionRecorder(model) as recorder:
        recorder.covered = covered_for(images)
        assert torch.allclose(run(model, images), before, rtol=1e-12)
    assert all(block.attn.observer is None for block in model.blocks)
    assert torch.equal(run(model, images), before)


@pytest.mark.parametrize("covered", [None, torch.zeros((1, PATCHES), dtype=torch.bool)])
def test_masks_of_another_batch_are_refused(model, covered):
    with CoveredAttentionRecorder(model) as recorder, pytest.raises(ValueError, match="3 images"):
        recorder.covered = covered
        run(model, images_for(model, 3))


def test_a_mean_of_nothing_is_refused(model):
    with pytest.raises(RuntimeError, match="no image"):
        CoveredAttentionRecorder(model).mean()


def test_a_key_of_several_patches_is_covered_in_part(model):
    images = images_for(model)
    plan = current_plan(model).with_variant("merge")
    apply_plan(model, random_merges(plan, range(1, plan.depth), 0.4))
    covered = covered_for(images)
    found = record(model, [(images, covered)], [2])[0]
    with AttentionMapRecorder(model, [2]) as recorder:
        shares = []
        for image, hidden in zip(images, covered.tolist(), strict=True):
            recorder.sums, recorder.images = [], 0
            run(model, image[None])
            row = recorder.mean()[0][:, 0, PREFIX:].mean(0).tolist()
            groups = current_plan(model).groups[2]
            parts = [sum(hidden[n] for n in group) / len(group) for group in groups]
            shares.append(sum(share * part for share, part in zip(row, parts, strict=True)) / sum(row))
    assert found["attention"] == pytest.approx(sum(shares) / len(shares))
    assert found["keys"] == pytest.approx(covered.double().mean().item())
