"""Static merging: the same groups of patches for every image."""

from __future__ import annotations

import copy
from itertools import combinations, pairwise

import pytest
import torch
from naive_merging import naive_choice, naive_outputs, random_merges
from networks import KINDS, build, inputs, relative_error
from torch.nn import functional as F

from amg_plugin.errors import ConfigError, PlanError, RunError
from amg_plugin.models.complexity import count, explicit_attention
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.cut import PruningRules, carry_out, plan_cut, prunable_blocks
from amg_plugin.pruning.merge_pass import merged_plan
from amg_plugin.pruning.merging import (
    MergeRange,
    TokenDistances,
    Tokens,
    choose_pairs,
    even_numbers,
    merge_costs,
    tokens_left,
    transition,
)
from amg_plugin.pruning.plan import Limits
from amg_plugin.pruning.schedule import PruningSchedule, Stage
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.registries import TOKEN_SCORERS

LIMIT = 1e-5
COMPARED = [
    "vit", "distilled", "registers", "layer_scale", "mean_of_patches", "norm_of_queries_and_keys", "transreid_cameras",
    "transreid_jigsaw", "transreid_jigsaw_before", "la_transformer",
]  # fmt: skip


def merged(dense, keep=0.5, seed=0):
    """A copy of ``dense`` merged at random."""
    plan = current_plan(dense).with_variant("merge")
    return apply_plan(copy.deepcopy(dense), random_merges(plan, prunable_blocks(dense)[1:], keep, seed))


def calibration_of(model, images, batch=2):
    def loss(images):
        logits = model.logits(images.clone().requires_grad_())
        outputs = logits if isinstance(logits, list) else [logits]
        return sum(F.cross_entropy(output, torch.arange(len(images)) % 5) for output in outputs)

    return Calibration(lambda: images.split(batch), model.embed, loss)


def cut(rate):
    return PruningSchedule([Stage("tokens", rate)], 0).cuts[0]


@pytest.mark.parametrize("kind", COMPARED)
def test_a_merged_network_computes_what_the_reference_does_for_each_image(kind):
    dense = build(kind)
    model = merged(dense)
    images, *labels = inputs(dense, 2)
    expected = naive_outputs(dense, current_plan(model), images, labels)
    with torch.no_grad():
        assert relative_error(model.embed(images, *labels), expected) < LIMIT
        assert relative_error(dense.embed(images, *labels), expected) > 0.01  # merging mattered
        with explicit_attention(model):
            assert relative_error(model.embed(images, *labels), expected) < LIMIT


def test_merging_together_with_removed_heads_equals_the_reference():
    dense = build("vit")
    heads = current_plan(dense).narrow(heads=[[0, 2], [1], [0, 1, 3], [2, 3]])
    fewer = apply_plan(copy.deepcopy(dense), heads)
    model = merged(fewer)
    images = inputs(dense)[0]
    with torch.no_grad():
        assert relative_error(model.embed(images), naive_outputs(fewer, current_plan(model), images)) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_every_position_comes_back_behind_the_last_block(kind):
    model = build(kind, "merge")
    with torch.no_grad():
        tokens = model.backbone.forward_features(inputs(model)[0])
    assert tokens.shape[1] == model.backbone.num_prefix_tokens + model.backbone.patch_embed.num_patches


@pytest.mark.parametrize("kind", KINDS)
def test_counted_macs_are_those_of_the_closed_form(kind):
    dense, model = build(kind), build(kind, "heads_merge_neurons")
    cost, size = PlanCost.of(dense), model.spec.image_size
    counted = count(model, *size)["macs"]
    assert counted == cost.macs(current_plan(model)) == PlanCost.of(model).macs(current_plan(model))
    assert counted < count(dense, *size)["macs"]


def test_gradients_reach_every_parameter_and_the_state_dict_stays_the_same():
    dense = build("vit")
    model = merged(dense).train()
    F.cross_entropy(model(inputs(dense)[0]), torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.state_dict().keys() == dense.state_dict().keys()


def test_merging_in_two_steps_is_merging_at_once():
    dense = build("vit")
    once, step = merged(dense, keep=0.3), merged(dense, keep=0.7)
    plan = current_plan(once)
    coarser = [
        Tokens(mine, groups).coarsened(Tokens(other, others), torch.ones(len(mine)))
        for mine, groups, other, others in zip(
            current_plan(step).tokens, current_plan(step).groups, plan.tokens, plan.groups, strict=True
        )
    ]
    plan = plan.merge([tokens.positions for tokens in coarser], [tokens.groups for tokens in coarser])
    images = inputs(dense)[0]
    with torch.no_grad():
        expected = apply_plan(dense, plan).embed(images)
        assert relative_error(apply_plan(step, plan).embed(images), expected) < 1e-6


def test_a_plan_that_takes_groups_apart_cannot_be_applied():
    model = merged(build("vit"), keep=0.5)
    finer = current_plan(merged(build("vit"), keep=0.9))
    with pytest.raises(PlanError, match="pruning can only remove"):
        apply_plan(model, finer)


@pytest.mark.parametrize("variant", ["block", "kv"])
def test_merging_and_another_variant_in_one_network_are_refused(variant):
    model = merged(build("vit"))
    with pytest.raises(PlanError, match="'merge'"):
        current_plan(model).with_variant(variant)
    removed = PruningPlan.dense([4] * 4, 15, variant).narrow(tokens=[[0, 1]] * 4)
    with pytest.raises(PlanError):
        apply_plan(model, removed)
    with pytest.raises(PlanError, match="cannot be mixed"):
        current_plan(apply_plan(build("vit"), removed)).with_variant("merge")


# Which tokens are merged


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [("vit", (0, 4, 3, 3)), ("vit", (0, 7, 0, 4)), ("registers", (0, 5, 5, 1)), ("mean_of_patches", (0, 6, 2, 2))],
)
def test_groups_are_those_of_the_reference(kind, numbers):
    model = build(kind).double()
    images = torch.randn(3, 3, *model.spec.image_size, dtype=torch.float64)
    importance = torch.rand(4, 15, dtype=torch.float64)
    expected = naive_choice(model, images, importance, numbers)
    left = {block: 15 - sum(numbers[: block + 1]) for block in (1, 2, 3)}
    apply_plan(model, current_plan(model).with_variant("merge"))
    plan = merged_plan(model, calibration_of(model, images), dict(enumerate(importance)), left)
    for block, groups in enumerate(expected):
        assert dict(zip(plan.tokens[block], map(list, plan.groups_of(block)), strict=True)) == groups


def test_choosing_leaves_the_network_as_it_was():
    model = merged(build("vit"), keep=0.8)
    images = inputs(model)[0]
    before = model(images)
    plan = plan_cut(model, cut(0.5), PruningRules(), calibration_of(model, images))
    assert plan != current_plan(model)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("scorer", TOKEN_SCORERS)
def test_the_total_is_exact_and_the_first_block_keeps_everything(scorer):
    model = apply_plan(build("vit"), PruningPlan.dense([4] * 4, 15, "merge"))
    calibration = calibration_of(model, inputs(model, 4)[0])
    for rate in (0.2, 0.35):
        plan = carry_out(model, cut(rate), PruningRules(token_scorer=scorer), calibration)
        assert sum(plan.tokens_per_block) == 60 - int(rate * 60)
        assert plan.tokens_per_block[0] == 15
        gone = [a - b for a, b in pairwise(plan.tokens_per_block)]
        assert max(gone) - min(gone) <= 1


def test_merging_again_makes_groups_coarser_and_gives_the_network_of_the_plan():
    dense = build("vit")
    model = apply_plan(copy.deepcopy(dense), PruningPlan.dense([4] * 4, 15, "merge"))
    images = inputs(model, 4)[0]
    before = carry_out(model, cut(0.2), PruningRules(), calibration_of(model, images))
    after = carry_out(model, cut(0.5), PruningRules(), calibration_of(model, images))
    assert before.contains(after) and not after.contains(before)
    with torch.no_grad():
        assert relative_error(model.embed(images), naive_outputs(dense, after, images)) < LIMIT


def test_merging_again_weighs_a_token_as_its_patches_together():
    dense = build("vit").double()
    images = torch.randn(2, 3, *dense.spec.image_size, dtype=torch.float64)
    plan = current_plan(dense).with_variant("merge")
    first = Tokens.all(15).joined([(1, 0), (2, 0), (9, 8)])
    plan = plan.merge([range(15), *[first.positions] * 3], [Tokens.all(15).groups, *[first.groups] * 3])
    importance = torch.rand(4, 15, dtype=torch.float64)
    start = dict(zip(first.positions, first.groups, strict=True))
    expected = naive_choice(dense, images, importance, (0, 2, 3, 1), start)
    scores = {block: first.sums(importance[block]) for block in (1, 2, 3)}
    model = apply_plan(dense, plan)
    again = merged_plan(model, calibration_of(model, images), scores, {1: 10, 2: 7, 3: 6})
    for block, groups in enumerate(expected):
        assert dict(zip(again.tokens[block], map(list, again.groups_of(block)), strict=True)) == groups


def test_blocks_behind_the_jigsaw_modules_are_left_alone():
    model = build("transreid_jigsaw_before")
    apply_plan(model, current_plan(model).with_variant("merge"))
    plan = carry_out(model, cut(0.3), PruningRules(), calibration_of(model, inputs(model, 4)[0]))
    assert plan.tokens_per_block[0] == plan.tokens_per_block[-1] == 15
    assert plan.tokens_per_block[1] > plan.tokens_per_block[2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_scores_that_no_token_can_have_are_refused(bad):
    model = apply_plan(build("vit"), PruningPlan.dense([4] * 4, 15, "merge"))
    scores = {block: torch.ones(15) for block in range(4)}
    scores[2][3] = bad
    with pytest.raises(RunError, match="finite and at least 0; those of block 2"):
        merged_plan(model, calibration_of(model, inputs(model)[0]), scores, {1: 12, 2: 10, 3: 9})


def test_tokens_that_are_not_finite_are_refused():
    model = apply_plan(build("vit"), PruningPlan.dense([4] * 4, 15, "merge"))
    images = inputs(model)[0].fill_(float("nan"))
    scores = {block: torch.ones(15) for block in range(4)}
    with pytest.raises(RunError, match="enter block 1 are not finite"):
        merged_plan(model, calibration_of(model, images), scores, {1: 12, 2: 10, 3: 9})


# Pure functions


def test_distances_are_means_over_images():
    images = torch.randn(7, 5, 3)
    distances = TokenDistances()
    for batch in images.split(3):
        distances.add(batch)
    expected = (images[:, :, None] - images[:, None]).square().sum(-1).mean(0)
    assert torch.allclose(distances.mean().float(), expected, atol=1e-5)


def test_distances_of_processes_add_up():
    images = torch.randn(4, 5, 3)
    parts = [TokenDistances(), TokenDistances()]
    for part, batch in zip(parts, images.split(2), strict=True):
        part.add(batch)
    sums = iter([parts[0].products + parts[1].products, torch.tensor(4)])
    expected = TokenDistances()
    expected.add(images)
    assert torch.allclose(parts[0].mean(lambda _: next(sums)), expected.mean())


def test_costs_without_importance_are_wards():
    """Ward's criterion is the growth of the squared distances from the centres."""
    points = torch.randn(6, 2, dtype=torch.float64)
    groups = [[0], [1, 2], [3, 4, 5]]
    centres = torch.stack([points[group].mean(0) for group in groups])
    sizes = torch.tensor([1.0, 2.0, 3.0])
    costs = merge_costs(torch.cdist(centres, centres).square(), sizes, sizes)
    for i, j in combinations(range(3), 2):
        spread = [(points[group] - points[group].mean(0)).square().sum() for group in (groups[i], groups[j])]
        both = points[groups[i] + groups[j]]
        assert costs[i, j] == pytest.approx(float((both - both.mean(0)).square().sum() - sum(spread)))


def test_costs_are_the_weighted_distances_from_the_mean():
    costs = merge_costs(torch.tensor([[0.0, 16.0], [16.0, 0.0]]), torch.tensor([1, 3]), torch.tensor([5.0, 2.0]))
    # The mean is 3 of 4 from the smaller and 1 of 4 from the larger.
    assert costs[0, 1] == 5 * 9 + 2 * 1


EQUAL = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("costs", "weights", "number", "pairs"),
    [
        (EQUAL, [1, 1, 1, 1], 1, [(1, 0)]),  # all the same: the higher position of the first pair leaves
        (EQUAL, [1, 1, 1, 1], 3, [(1, 0), (2, 0), (3, 0)]),  # one token may take in several
        (EQUAL, [1, 2, 1, 1], 1, [(0, 1)]),  # the smaller weight leaves
        (EQUAL, [1, 2, 3, 4], 2, [(0, 1), (2, 3)]),  # one that has taken in stays
        (EQUAL, [1, 2, 3, 4], 3, [(0, 1), (2, 3)]),  # and then there may be no more pairs
        (torch.tensor([[0, 3, 2, 3], [3, 0, 1, 3], [2, 1, 0, 3], [3, 3, 3, 0.0]]), [1, 2, 3, 4], 2, [(1, 2), (0, 2)]),
    ],
)
def test_ties_and_turns_of_pairs(costs, weights, number, pairs):
    assert choose_pairs(costs, torch.tensor(weights), number) == pairs


@pytest.mark.parametrize("seed", range(20))
def test_half_of_the_tokens_can_always_leave(seed):
    torch.manual_seed(seed)
    count = 3 + seed
    assert len(choose_pairs(torch.rand(count, count), torch.rand(count), count // 2)) == count // 2


def test_means_are_weighted_by_positions_and_taken_apart_as_copies():
    groups = ((0,), (1, 3), (2,))
    assert transition(groups, ((0, 2), (1, 3))) == (((0, 0.5), (2, 0.5)), ((1, 1.0),))
    assert transition(groups, ((0, 1, 3), (2,))) == (((0, 1 / 3), (1, 2 / 3)), ((2, 1.0),))
    assert transition(groups, ((0,), (1,), (2,), (3,))) == (((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((1, 1.0),))


@pytest.mark.parametrize("blocks", [1, 2, 3, 11])
def test_numbers_per_block_are_equal_up_to_one_and_exact(blocks):
    for pairs in range(2 * blocks * (blocks + 1)):
        numbers = even_numbers(pairs, blocks)
        assert sum((blocks - place) * number for place, number in enumerate(numbers)) == pairs
        assert max(numbers) - min(numbers) <= 1


def test_larger_numbers_come_first():
    assert even_numbers(11 + 10 + 9, 11) == [1] * 3 + [0] * 8


@pytest.mark.parametrize(
    ("numbers", "floor", "now", "left"),
    [
        ([3, 3, 2], 1, [20, 20, 20], [17, 14, 12]),
        ([15, 5, 5], 1, [20, 20, 20], [10, 5, 3]),  # no more than half at once
        ([8, 8, 8], 6, [20, 20, 20], [12, 6, 6]),
        ([1, 1, 1], 1, [20, 15, 15], [19, 15, 14]),  # nothing comes back
    ],
)
def test_tokens_that_are_left(numbers, floor, now, left):
    assert tokens_left(numbers, 20, floor, now) == left


@pytest.mark.parametrize("blocks", [[0], [2], [0, 2], []])
def test_networks_without_two_prunable_blocks_in_a_row_are_refused(blocks):
    room = MergeRange(PruningPlan.dense([4] * 4, 15, "merge"), Limits(blocks))
    with pytest.raises(ConfigError, match="needs two or more prunable blocks"):
        room.check()


def test_networks_without_patch_tokens_left_are_refused():
    plan = random_merges(PruningPlan.dense([4] * 4, 15, "merge"), [1, 2, 3], 0.1)
    with pytest.raises(ConfigError, match="no patch tokens left to merge"):
        MergeRange(plan, Limits(range(4), tokens=15)).check()
