"""Selection: exact totals, floors, order and ties."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg_plugin.errors import InputError
from amg_plugin.pruning import select_heads, select_neurons, select_tokens
from amg_plugin.pruning.selection import removal_count

# Few different values, so that ties are frequent.
VALUES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])
BLOCKS = st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=1, max_size=6)


@st.composite
def tasks(draw):
    scores = [torch.tensor(block, dtype=torch.float64) for block in draw(BLOCKS)]
    floor = draw(st.integers(1, 3))
    feasible = sum(max(len(block) - floor, 0) for block in scores)
    return scores, draw(st.integers(0, feasible)), floor, draw(st.sampled_from([0.0, 0.015, 0.5]))


def one_at_a_time(weighted, count, floor, worst):
    """The removal written as a game: take the worst candidate left, first block and first index on a tie."""
    left = [dict(enumerate(block)) for block in weighted]
    for _ in range(count):
        candidates = [(block, index) for block, kept in enumerate(left) for index in kept if len(kept) > floor]
        extreme = worst(left[block][index] for block, index in candidates)
        block, index = next((b, i) for b, i in candidates if left[b][i] == extreme)
        del left[block][index]
    return [sorted(kept) for kept in left]


def weighted_heads(scores, growth):
    several = [index for index, block in enumerate(scores) if len(block) > 1]
    return [
        [value * (1 + growth * several.index(index)) if index in several else value for value in block.tolist()]
        for index, block in enumerate(scores)
    ]


def weighted_tokens(scores, decay):
    norms = [math.sqrt(sum(value**2 for value in block.tolist())) for block in scores]
    return [
        [value / norm * (1 - decay * index) if norm else 0.0 for value in block.tolist()]
        for index, (block, norm) in enumerate(zip(scores, norms, strict=True))
    ]


def clear(weighted):
    """Whether values are either equal or well apart; an order that hangs on rounding proves nothing."""
    return all(b - a > 1e-12 for a, b in pairwise(sorted({value for block in weighted for value in block})))


@given(tasks())
def test_totals_are_exact_floors_hold_and_indices_ascend(task):
    scores, count, floor, weight = task
    for kept in (select_heads(scores, count, weight, floor), select_tokens(scores, count, weight, floor)):
        assert sum(map(len, scores)) - sum(map(len, kept)) == count
        for block, indices in zip(scores, kept, strict=True):
            assert len(indices) >= min(floor, len(block))
            assert indices == sorted(set(indices)) and set(indices) <= set(range(len(block)))


@given(tasks())
def test_neurons_equal_taking_the_smallest_one_at_a_time(task):
    scores, count, floor, _ = task
    expected = one_at_a_time([block.tolist() for block in scores], count, floor, min)
    assert select_neurons(scores, count, floor) == expected


@given(tasks(), st.integers(2, 4))
def test_kept_neurons_are_multiples_and_the_smallest_go_first(task, multiple):
    scores, count, floor, _ = task
    least = -(-floor // multiple) * multiple
    feasible = sum(len(block) - least for block in scores if len(block) > least)
    count = min(count, feasible)
    kept = select_neurons(scores, count, floor, multiple)
    assert 0 <= count - (sum(map(len, scores)) - sum(map(len, kept))) < multiple
    for block, indices in zip(scores, kept, strict=True):
        gone = sorted(set(range(len(block))) - set(indices))
        assert not gone or (len(indices) % multiple == 0 and len(indices) >= floor)
        assert not gone or max((block[i], i) for i in gone) < min((block[i], i) for i in indices)


def test_a_group_of_neurons_counts_as_much_as_its_largest():
    scores = [torch.tensor([0.0, 0.0, 9.0, 9.0]), torch.tensor([0.0, 3.0, 9.0, 9.0]), torch.tensor([1.0, 1.0, 8.0])]
    # The third block goes down to two of its three first.
    assert select_neurons(scores, 5, 1, 2) == [[2, 3], [2, 3], [1, 2]]
    assert select_neurons(scores, 4, 1, 2) == [[2, 3], [0, 1, 2, 3], [1, 2]]


@given(tasks())
def test_heads_equal_taking_the_largest_one_at_a_time(task):
    scores, count, floor, growth = task
    weighted = weighted_heads(scores, growth)
    if clear(weighted):
        assert select_heads(scores, count, growth, floor) == one_at_a_time(weighted, count, floor, max)


@given(tasks())
def test_tokens_equal_taking_the_smallest_one_at_a_time(task):
    scores, count, floor, decay = task
    weighted = weighted_tokens(scores, decay)
    if clear(weighted):
        assert select_tokens(scores, count, decay, floor) == one_at_a_time(weighted, count, floor, min)


def test_the_heads_with_the_largest_entropy_go():
    assert select_heads([torch.tensor([1.0, 5.0]), torch.tensor([4.0, 2.0])], 2, 0.0) == [[0], [1]]


def test_the_tokens_with_the_smallest_share_of_their_block_go():
    # Relative to its norm, 3 of (3, 4) is less than 1 of (1, 1).
    assert select_tokens([torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0])], 1, 0.0) == [[0, 1], [1]]


def test_later_blocks_are_weighted_up_for_heads_and_down_for_tokens():
    equal = [torch.tensor([1.0, 1.0])] * 3
    assert select_heads(equal, 1, 0.01) == [[0, 1], [0, 1], [1]]
    assert select_tokens(equal, 1, 0.01) == [[0, 1], [0, 1], [1]]


def test_blocks_with_a_single_head_do_not_count_for_the_weight():
    # If the middle block counted, the last one would weigh 1.2 and its 1.0 would beat 1.15.
    entropy = [torch.tensor([1.15, 0.1]), torch.tensor([9.0]), torch.tensor([1.0, 0.1])]
    assert select_heads(entropy, 1, 0.1) == [[1], [0], [0, 1]]


def test_blocks_at_a_higher_floor_still_count_for_the_weight():
    entropy = [torch.tensor([1.15, 0.1, 0.1]), torch.tensor([9.0, 9.0]), torch.tensor([1.0, 0.1, 0.1])]
    assert select_heads(entropy, 1, 0.1, min_heads=2) == [[0, 1, 2], [0, 1], [1, 2]]


def test_every_block_counts_for_the_weight_of_tokens():
    scores = [torch.tensor([1.0, 1.0]), torch.tensor([2.0]), torch.tensor([1.0, 1.0])]
    assert select_tokens(scores, 1, 0.1) == [[0, 1], [0], [1]]


@pytest.mark.parametrize("select", [select_heads, select_tokens])
def test_ties_go_to_the_lower_block_then_to_the_lower_index(select):
    equal = [torch.ones(3) for _ in range(3)]
    assert select(equal, 1, 0.0) == [[1, 2], [0, 1, 2], [0, 1, 2]]
    assert select(equal, 3, 0.0) == [[2], [1, 2], [0, 1, 2]]


def test_the_next_candidate_is_taken_where_a_block_would_be_emptied():
    entropy = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0])]
    assert select_heads(entropy, 3, 0.0) == [[2], [0]]
    assert select_heads(entropy, 1, 0.0, min_heads=2) == [[1, 2], [0, 1]]


def test_a_block_smaller_than_the_floor_is_left_alone():
    assert select_heads([torch.tensor([9.0]), torch.tensor([1.0, 2.0, 3.0])], 1, 0.0, min_heads=2) == [[0], [0, 1]]


def test_removing_nothing_keeps_everything():
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    assert select_heads(scores, 0, 0.1) == select_tokens(scores, 0, 0.1) == [[0, 1], [0]]


def test_tokens_without_any_importance_are_a_tie_and_not_a_division_by_zero():
    assert select_tokens([torch.zeros(3), torch.ones(3)], 2, 0.0) == [[2], [0, 1, 2]]


@pytest.mark.parametrize("select", [select_heads, select_tokens])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(select, value):
    with pytest.raises(InputError, match="not finite"):
        select([torch.tensor([1.0, value]), torch.tensor([1.0, 2.0])], 1, 0.1)


@pytest.mark.parametrize("select", [select_heads, select_tokens])
@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_that_is_not_feasible_is_refused_and_the_feasible_range_named(select, count):
    with pytest.raises(InputError, match="0 to 3 can go"):
        select([torch.ones(3), torch.ones(2)], count, 0.0)


@pytest.mark.parametrize("select", [select_heads, select_tokens])
def test_a_floor_below_one_is_refused(select):
    with pytest.raises(InputError, match="at least 1"):
        select([torch.ones(3)], 1, 0.0, 0)


@pytest.mark.parametrize("select", [select_heads, select_tokens])
def test_scores_are_not_changed(select):
    scores = [torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)]
    select(scores, 1, 0.5)
    assert scores[0].tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("rate", "total", "count"), [(0.25, 72, 18), (0.29, 100, 29), (0.1, 7, 0), (0, 5, 0), (0.7, 10, 7), (1 / 3, 9, 3)]
)
def test_counts_are_rounded_down_but_not_by_float_noise(rate, total, count):
    assert removal_count(rate, total) == count
