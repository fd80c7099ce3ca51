"""Kept tokens rounded to multiples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg_plugin.errors import InputError
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import current_plan, select_tokens
from amg_plugin.pruning.cut import PruningRules, carry_out
from amg_plugin.pruning.schedule import PruningSchedule, Stage
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.selection import rounded_counts


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 8), st.integers(0, 2), st.data())
def test_lengths_are_multiples_unless_nothing_goes_or_the_floor_holds(kept, multiple, prefix, data):
    left = [data.draw(st.integers(count, 40)) for count in kept]
    counts = rounded_counts(kept, left, 1, multiple, prefix)
    for count, exact, most in zip(counts, kept, left, strict=True):
        assert (count + prefix) % multiple == 0 or count in (1, most)
        assert 1 <= count <= most
        assert abs(count - exact) < multiple
        assert count == most or exact < most


@given(st.lists(st.integers(9, 31), min_size=1, max_size=8), st.sampled_from([2, 4, 8]))
def test_the_total_is_as_near_as_can_be_where_no_bound_interferes(kept, multiple):
    counts = rounded_counts(kept, [1000] * len(kept), 1, multiple, 0)
    assert abs(sum(counts) - sum(kept)) <= multiple / 2


def test_blocks_near_the_next_multiple_are_rounded_up():
    assert rounded_counts([9, 15, 12], [40] * 3, 1, 8, 0) == [8, 16, 8]
    assert rounded_counts([10, 14], [40] * 2, 1, 8, 0) == [8, 16]
    assert rounded_counts([9, 13], [40] * 2, 1, 8, 1) == [7, 15]


def test_the_tokens_with_the_largest_scores_stay():
    scores = [torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    exact = select_tokens(scores, 5, 0.0)
    assert sum(map(len, exact)) == 7
    rounded = select_tokens(scores, 5, 0.0, multiple=4, num_prefix_tokens=1)
    assert rounded == [[0, 2, 5], [3, 4, 5]]


def test_multiples_of_one_are_the_exact_choice():
    scores = [torch.rand(20, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert select_tokens(scores, 17, 0.1, multiple=1, num_prefix_tokens=1) == select_tokens(scores, 17, 0.1)


def test_multiples_below_one_are_refused():
    with pytest.raises(InputError, match="multiples of 0"):
        rounded_counts([3], [5], 1, 0, 0)


def test_a_cut_rounds_with_the_prefix_tokens_of_the_network():
    spec = ModelSpec("vit_tiny_patch16_224", (128, 64), 5, overrides={"depth": 4, "embed_dim": 16, "num_heads": 2})
    model = build_network(spec)
    rules = PruningRules(token_scorer="random", round_tokens_to=8)
    nothing = Calibration(batches=list, forward=lambda batch: None, loss=lambda batch: torch.zeros(()))
    (cut,) = PruningSchedule([Stage("tokens", 0.3)], 0).cuts
    carry_out(model, cut, rules, nothing)
    counts = current_plan(model).tokens_per_block
    assert all((count + 1) % 8 == 0 or count == 32 for count in counts)
    assert abs(128 - sum(counts) - int(0.3 * 128)) < 8
