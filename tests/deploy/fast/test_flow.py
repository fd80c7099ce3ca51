"""The way of the tokens: checked by moving sets of positions through the steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amg_plugin.deploy.fast.flow import token_flow


def follow(flow, length):
    """Positions that each block works on, that give keys and that leave it, by carrying out the steps."""
    source, seen = list(range(length)), []
    for step in flow.steps:
        gathered = [source[place] for place in step.gather]
        asking = gathered[step.first_query :]
        seen.append((set(gathered), {gathered[place] for place in step.keys}, set(asking)))
        source = asking + [source[place] for place in step.carry]
    return source, seen


@st.composite
def cases(draw):
    length = draw(st.integers(2, 7))
    subsets = st.one_of(st.none(), st.sets(st.integers(1, length - 1)).map(lambda some: [0, *sorted(some)]))
    kept = draw(st.lists(subsets, min_size=1, max_size=5))
    read = draw(st.one_of(st.just([0]), st.just(list(range(length)))))
    return kept, draw(st.sampled_from(["block", "kv"])), length, read


def needed_after(kept, variant, length, read, block):
    """Whether what becomes of a position behind ``block`` matters, from the definition: forwards, one at a time."""

    def matters(position, number):
        if number == len(kept):
            return position in read
        takes_part = kept[number] is None or position in kept[number]
        # Its key is seen by everything that is computed in the block, and the class token always is.
        return takes_part or matters(position, number + 1)

    return {position for position in range(length) if matters(position, block + 1)}


@given(cases())
def test_blocks_work_on_what_matters_and_on_nothing_else(case):
    kept, variant, length, read = case
    flow = token_flow(kept, variant, length, read)
    final, seen = follow(flow, length)
    assert final == list(flow.order)
    assert set(read) <= set(final)
    for block, (gathered, keys, queries) in enumerate(seen):
        takes_part = set(range(length)) if kept[block] is None else set(kept[block])
        matters = needed_after(kept, variant, length, read, block)
        assert keys == takes_part
        assert queries == (matters & takes_part if variant == "block" else matters)
        assert gathered == keys | queries


@given(cases())
def test_carried_tokens_are_those_that_a_block_leaves_out_and_somebody_needs(case):
    kept, variant, length, read = case
    flow = token_flow(kept, variant, length, read)
    source = list(range(length))
    for block, step in enumerate(flow.steps):
        gathered = [source[place] for place in step.gather]
        carried = {source[place] for place in step.carry}
        left_out = set() if variant == "kv" or kept[block] is None else set(range(length)) - set(kept[block])
        assert carried == left_out & needed_after(kept, variant, length, read, block)
        assert step.needs_carried == any(place >= step.incoming for place in (*step.gather, *step.carry))
        source = gathered[step.first_query :] + [source[place] for place in step.carry]


def is_slice(places):
    return list(places) == list(range(places[0], places[0] + len(places)))


def test_nested_choices_need_one_gather_only_and_carry_nothing():
    kept = [[0, 1, 2, 4, 5, 6], [0, 1, 4, 5, 6], [0, 4, 5], [0, 5]]
    flow = token_flow(kept, "block", 8, [0])
    assert all(is_slice(step.gather) for step in flow.steps[1:])
    assert not any(step.carry for step in flow.steps)


@pytest.mark.parametrize("variant", ["block", "kv"])
def test_the_last_block_asks_for_what_the_head_reads_only(variant):
    flow = token_flow([None, [0, 2, 3]], variant, 6, [0])
    assert flow.order == (0,)
    assert [len(step.gather) - step.first_query for step in flow.steps] == [3, 1]


def test_a_token_that_comes_back_is_carried_meanwhile():
    flow = token_flow([[0, 1], [0, 2], [0, 1]], "block", 3, [0])
    assert [len(step.carry) for step in flow.steps] == [1, 1, 0]
    assert [step.needs_carried for step in flow.steps] == [False, True, True]


def test_places_follow_the_final_order():
    flow = token_flow([[0, 2], [0, 1]], "block", 3, range(3))
    assert [flow.order[place] for place in flow.rows_of([2, 0, 1])] == [2, 0, 1]
