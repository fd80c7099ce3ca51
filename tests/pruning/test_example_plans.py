"""Plans of given rates without data."""

from __future__ import annotations

import pytest

from amg_plugin.errors import InputError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import PruningPlan, current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.example_plans import example_cut, example_for_budget, example_plan
from amg_plugin.pruning.plan import Limits

DENSE = PruningPlan.dense([6] * 12, 128)


@pytest.mark.parametrize("head_rate", [0.0, 0.05, 0.25, 0.6, 0.8])
@pytest.mark.parametrize("token_rate", [0.0, 0.1, 0.25, 0.6, 0.95])
def test_totals_are_exact_and_no_block_is_emptied(head_rate, token_rate):
    plan = example_plan(DENSE, (16, 8), {"heads": head_rate, "tokens": token_rate})
    assert 72 - sum(plan.heads_per_block) == int(head_rate * 72 + 1e-9)
    assert 12 * 128 - sum(plan.tokens_per_block) == int(token_rate * 12 * 128 + 1e-9)
    assert min(plan.heads_per_block) >= 1


def test_neurons_go_like_heads():
    dense = PruningPlan.dense([6] * 12, 128, num_neurons=[64] * 12)
    plan = example_plan(dense, (16, 8), {"neurons": 0.25})
    assert sum(plan.neurons_per_block) == 12 * 64 - 192
    assert plan.neurons_per_block == sorted(plan.neurons_per_block, reverse=True)
    rounded = example_cut(dense, (16, 8), "neurons", Limits(range(12), neurons=20, multiple=16), 300)
    assert all(count % 16 == 0 and count >= 32 for count in rounded.neurons_per_block)


def test_later_blocks_lose_more():
    plan = example_plan(DENSE, (16, 8), {"heads": 0.25, "tokens": 0.25})
    assert plan.tokens_per_block == sorted(plan.tokens_per_block, reverse=True)
    assert plan.tokens_per_block[0] > 0.9 * 128
    assert plan.tokens_per_block[-1] < 0.6 * 128
    assert plan.heads_per_block[0] > plan.heads_per_block[-1]


def test_the_middle_of_the_image_stays():
    plan = example_plan(PruningPlan.dense([1], 15), (5, 3), {"heads": 0.0, "tokens": 0.67})
    assert plan.tokens == ((4, 6, 7, 8, 10),)


def test_the_variant_of_the_dense_plan_counts():
    assert example_plan(DENSE.with_variant("kv"), (16, 8), {"heads": 0.1, "tokens": 0.1}).variant == "kv"


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_merged_tokens_are_neighbours(rate):
    plan = example_plan(DENSE.with_variant("merge"), (16, 8), {"heads": 0.25, "tokens": rate})
    assert 12 * 128 - sum(plan.tokens_per_block) == int(rate * 12 * 128 + 1e-9)
    assert plan.tokens_per_block[0] == 128
    for group in plan.groups_of(11):
        rows, columns = {place // 8 for place in group}, {place % 8 for place in group}
        assert max(rows) - min(rows) < 5 and max(columns) - min(columns) < 5


def test_more_than_can_be_merged_is_refused():
    with pytest.raises(InputError, match=r"up to 0\.\d+ can go"):
        example_plan(DENSE.with_variant("merge"), (16, 8), {"tokens": 0.95})


@pytest.mark.parametrize(
    ("rates", "words"), [((1.0, 0), "heads is impossible"), ((0, -0.1), "tokens"), ((0.9, 0), "without")]
)
def test_impossible_rates_are_refused(rates, words):
    with pytest.raises(InputError, match=words):
        example_plan(DENSE, (16, 8), dict(zip(("heads", "tokens"), rates, strict=True)))


def test_the_grid_must_fit():
    with pytest.raises(InputError, match="4x4"):
        example_plan(DENSE, (4, 4), {"heads": 0.1, "tokens": 0.1})


def test_a_cut_takes_no_block_below_its_floor():
    plan = example_cut(DENSE, (16, 8), "heads", Limits(range(12), heads=3), 36)
    assert plan.heads_per_block == [3] * 12


def test_a_cut_leaves_other_blocks_alone():
    plan = example_cut(DENSE, (16, 8), "tokens", Limits(range(11)), 300)
    assert plan.tokens_per_block[11] == 128
    assert sum(plan.tokens_per_block) == 12 * 128 - 300


def test_a_cut_goes_on_from_a_pruned_plan():
    start = example_plan(DENSE, (16, 8), {"heads": 0.25, "tokens": 0.25})
    again = example_cut(start, (16, 8), "tokens", Limits(range(12)), 100)
    assert all(set(after) <= set(before) for before, after in zip(start.tokens, again.tokens, strict=True))


@pytest.mark.parametrize(("variant", "saving"), [("block", 0.1), ("block", 0.35), ("kv", 0.1), ("merge", 0.3)])
def test_a_saving_is_met_by_heads_and_tokens(variant, saving):
    model = build_network(ModelSpec("vit_tiny_patch16_224", (256, 128), 3, overrides={"depth": 4}))
    cost = PlanCost.of(model)
    start = current_plan(model).with_variant(variant)
    steps = [("heads", 0.05), ("tokens", saving)]
    plan = example_for_budget(start, (16, 8), steps, Limits(range(4)), cost)
    assert cost.saving(plan) == pytest.approx(saving, abs=5e-3)
    assert sum(plan.heads_per_block) < sum(start.heads_per_block)
