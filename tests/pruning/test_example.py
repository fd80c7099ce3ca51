"""Plans of given rates without data."""

from __future__ import annotations

import pytest

from amg_plugin.errors import InputError
from amg_plugin.pruning import PruningPlan
from amg_plugin.pruning.example import example_plan

DENSE = PruningPlan.dense([6] * 12, 128)


@pytest.mark.parametrize("head_rate", [0.0, 0.05, 0.25, 0.6, 0.8])
@pytest.mark.parametrize("token_rate", [0.0, 0.1, 0.25, 0.6, 0.95])
def test_totals_are_exact_and_no_block_is_emptied(head_rate, token_rate):
    plan = example_plan(DENSE, (16, 8), head_rate, token_rate)
    assert 72 - sum(plan.heads_per_block) == int(head_rate * 72 + 1e-9)
    assert 12 * 128 - sum(plan.tokens_per_block) == int(token_rate * 12 * 128 + 1e-9)
    assert min(plan.heads_per_block) >= 1


def test_later_blocks_lose_more():
    plan = example_plan(DENSE, (16, 8), 0.25, 0.25)
    assert plan.tokens_per_block == sorted(plan.tokens_per_block, reverse=True)
    assert plan.tokens_per_block[0] > 0.9 * 128
    assert plan.tokens_per_block[-1] < 0.6 * 128
    assert plan.heads_per_block[0] > plan.heads_per_block[-1]


def test_the_middle_of_the_image_stays():
    plan = example_plan(PruningPlan.dense([1], 15), (5, 3), 0.0, 0.67)
    assert plan.tokens == ((4, 6, 7, 8, 10),)


def test_the_variant_of_the_dense_plan_counts():
    assert example_plan(DENSE.with_variant("kv"), (16, 8), 0.1, 0.1).variant == "kv"


@pytest.mark.parametrize(
    ("rates", "words"), [((1.0, 0), "heads is impossible"), ((0, -0.1), "tokens"), ((0.9, 0), "without")]
)
def test_impossible_rates_are_refused(rates, words):
    with pytest.raises(InputError, match=words):
        example_plan(DENSE, (16, 8), *rates)


def test_the_grid_must_fit():
    with pytest.raises(InputError, match="4x4"):
        example_plan(DENSE, (4, 4), 0.1, 0.1)
