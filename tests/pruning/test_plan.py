"""Plans: plain, versioned, comparable data."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amg_plugin.errors import PlanError
from amg_plugin.pruning import PruningPlan

SMALL = PruningPlan(
    variant="block",
    num_heads=(3, 2),
    num_patches=4,
    heads=((0, 2), (1,)),
    tokens=((0, 1, 3), (2,)),
)


def kept(size):
    return st.sets(st.integers(0, size - 1), min_size=1).map(lambda values: tuple(sorted(values)))


@st.composite
def plans(draw, num_heads=(3, 4, 2), num_patches=5, variants=("kv", "block")):
    return PruningPlan(
        variant=draw(st.sampled_from(variants)),
        num_heads=num_heads,
        num_patches=num_patches,
        heads=tuple(draw(kept(count)) for count in num_heads),
        tokens=tuple(draw(kept(num_patches)) for _ in num_heads),
    )


def changed(**fields):
    return {**SMALL.to_dict(), **fields}


@given(plans())
def test_json_round_trip_gives_an_equal_plan_with_an_equal_hash(plan):
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan and hash(again) == hash(plan) and again.digest == plan.digest


def test_json_is_human_readable_plain_data():
    assert json.loads(SMALL.to_json(indent=2)) == {
        "version": 2,
        "variant": "block",
        "num_heads": [3, 2],
        "num_patches": 4,
        "heads": [[0, 2], [1]],
        "tokens": [[0, 1, 3], [2]],
        "heads_known": True,
        "num_neurons": [],
        "neurons": [],
        "groups": [],
        "updates": [],
    }


def test_digest_stays_the_same_over_releases():
    assert SMALL.digest == "bbfd858efebc0074651da12f93053396bc3ead61be8e88ca332b53fbd7cc4dc0"


@pytest.mark.parametrize(
    "fields",
    [{"variant": "kv"}, {"heads": [[0, 1], [1]]}, {"tokens": [[0, 1, 3], [3]]}, {"num_patches": 5}],
    ids=lambda fields: next(iter(fields)),
)
def test_plans_that_differ_are_unequal(fields):
    other = PruningPlan.from_dict(changed(**fields))
    assert other != SMALL and other.digest != SMALL.digest


def test_the_dense_plan_keeps_everything():
    plan = PruningPlan.dense([3, 2], 4)
    assert plan.heads == ((0, 1, 2), (0, 1)) and plan.tokens == ((0, 1, 2, 3),) * 2
    assert (plan.heads_per_block, plan.tokens_per_block, plan.depth) == ([3, 2], [4, 4], 2)
    assert not plan.prunes_tokens


def test_counts_per_block():
    assert SMALL.heads_per_block == [2, 1] and SMALL.tokens_per_block == [3, 1] and SMALL.prunes_tokens


def test_choices_count_from_what_is_left():
    plan = SMALL.narrow(heads=[[1], [0]], tokens=[[0, 2], [0]])
    assert plan.heads == ((2,), (1,)) and plan.tokens == ((0, 3), (2,))


def test_narrowing_one_target_leaves_the_other():
    assert SMALL.narrow(heads=[[1], [0]]).tokens == SMALL.tokens
    assert SMALL.narrow(tokens=[[1], [0]]).heads == SMALL.heads


@pytest.mark.parametrize(
    "choice",
    [[[0]], [[0], [1]], [[], [0]], [[0, 0], [0]], [[-1], [0]]],
    ids=["depth", "past", "empty", "twice", "negative"],
)
def test_a_choice_that_does_not_fit_is_refused(choice):
    with pytest.raises(PlanError):
        SMALL.narrow(heads=choice)


def test_a_plan_of_lists_equals_the_same_of_tuples():
    plan = PruningPlan("block", [3, 2], 4, [[0, 2], [1]], [[0, 1, 3], [2]])
    assert plan == SMALL and hash(plan) == hash(SMALL)


def test_the_variant_can_change_until_tokens_are_removed():
    assert PruningPlan.dense([3, 2], 4, "kv").with_variant("block") == PruningPlan.dense([3, 2], 4, "block")
    assert SMALL.with_variant("block") == SMALL
    with pytest.raises(PlanError, match="cannot be mixed"):
        SMALL.with_variant("kv")


def test_containing_is_one_sided():
    dense = PruningPlan.dense([3, 2], 4)
    assert dense.contains(SMALL) and SMALL.contains(SMALL) and not SMALL.contains(dense)


def test_plans_of_version_1_are_read():
    fields = ("variant", "num_heads", "num_patches", "heads", "tokens", "heads_known")
    old = {"version": 1, **{name: SMALL.to_dict()[name] for name in fields}}
    assert PruningPlan.from_dict(old) == SMALL


def test_neurons_are_narrowed_like_heads():
    plan = PruningPlan.dense([3, 2], 4, num_neurons=[4, 4])
    narrow = plan.narrow(neurons=[[0, 3], [1]]).narrow(neurons=[[1], [0]])
    assert narrow.neurons == ((3,), (1,)) and narrow.neurons_per_block == [1, 1] and not narrow.is_dense
    assert plan.contains(narrow) and not narrow.contains(plan)
    assert PruningPlan.from_json(narrow.to_json()) == narrow


def test_plans_that_keep_all_neurons_are_equal_whether_they_know_how_many_or_not():
    known, unknown = PruningPlan.dense([3, 2], 4, num_neurons=[8, 8]), PruningPlan.dense([3, 2], 4)
    assert known == unknown and hash(known) == hash(unknown) and known.digest == unknown.digest
    assert unknown.fitted(known).num_neurons == (8, 8)


def test_unknown_head_numbers_survive_the_round_trip():
    plan = PruningPlan.from_dict(changed(heads_known=False))
    assert not plan.heads_known and PruningPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 3},
        {"version": True},
        {"version": None},
        {"variant": "both"},
        {"variant": ["kv"]},
        {"num_heads": 3},
        {"num_heads": [3]},
        {"num_heads": ["3", 2]},
        {"num_patches": 3},
        {"num_patches": 4.0},
        {"num_patches": -1},
        {"heads": [[0, 2]]},
        {"heads": [[0, 3], [1]]},
        {"heads": [[0, 2], []]},
        {"heads": [[2, 0], [1]]},
        {"heads": [[0, 0], [1]]},
        {"heads": [[-1], [1]]},
        {"heads": [[0, True], [1]]},
        {"heads": [[0.0], [1]]},
        {"heads": ["02", [1]]},
        {"heads": None},
        {"heads_known": "no"},
        {"tokens": [[0, 1, 4], [2]]},
        {"tokens": [[0, 1, 3]]},
        {"colour": "blue"},
        {"neurons": [[0], [0]]},
        {"num_neurons": [4], "neurons": [[0], [0]]},
        {"num_neurons": [4, 4], "neurons": [[0]]},
        {"num_neurons": [4, 4], "neurons": [[0], [4]]},
        {"groups": [[[0, 1, 2, 3]], [[0, 1, 2, 3]]]},
        {"updates": [2]},
        {"updates": [1, 0]},
        {"variant": "kv", "updates": [0]},
    ],
    ids=str,
)
def test_malformed_plans_are_refused(fields):
    with pytest.raises(PlanError):
        PruningPlan.from_json(json.dumps(changed(**fields)))


EVERY = [[0], [1], [2], [3]]
PAIRS = [[0, 3], [1, 2]]


def merged(*blocks, tokens=None):
    """A plan of three blocks and four patches; the first position of each group stays unless ``tokens`` says more."""
    dense = PruningPlan.dense([1, 1, 1], 4, "merge")
    return dense.merge(tokens or [sorted(group[0] for group in block) for block in blocks], blocks)


def test_groups_survive_the_round_trip_and_count():
    plan = merged(EVERY, PAIRS, [[0, 1, 2, 3]])
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert plan.tokens_per_block == [4, 2, 1] and plan.prunes_tokens and not plan.is_dense
    assert plan.groups_of(1) == ((0, 3), (1, 2))


def test_groups_that_hold_one_position_each_are_none():
    assert merged(EVERY, EVERY, EVERY) == PruningPlan.dense([1, 1, 1], 4, "merge")


def test_blocks_at_the_end_may_get_every_position_back():
    assert merged(EVERY, PAIRS, EVERY).tokens_per_block == [4, 2, 4]


def test_coarser_groups_are_contained_in_finer_ones_only():
    fine, coarse = merged(EVERY, PAIRS, PAIRS), merged(EVERY, PAIRS, [[0, 1, 2, 3]])
    other = merged(EVERY, [[0, 1], [2, 3]], [[0, 1], [2, 3]])
    assert fine.contains(coarse) and fine.contains(fine) and not coarse.contains(fine)
    assert not fine.contains(other) and not other.contains(fine)
    assert PruningPlan.dense([1, 1, 1], 4, "merge").contains(coarse)


@pytest.mark.parametrize(
    ("blocks", "tokens", "words"),
    [
        ((EVERY, PAIRS), None, "2 blocks"),
        ((EVERY, PAIRS, [[0, 3], [1]]), None, "each of 4 positions once"),
        ((EVERY, PAIRS, [[0, 3], [1, 2, 3]]), None, "each of 4 positions once"),
        ((EVERY, [[3, 0], [1, 2]], PAIRS), [[0, 1, 2, 3], [0, 1], [0, 1]], "each of 4 positions once"),
        ((EVERY, PAIRS, PAIRS), [[0, 1, 2, 3], [0, 3], [0, 1]], "do not belong to the positions"),
        ((EVERY, PAIRS, PAIRS), [[0, 1, 2, 3], [0, 1], [0]], "do not belong to the positions"),
        ((EVERY, PAIRS, [[0, 1], [2, 3]]), None, "takes groups of tokens apart"),
        ((EVERY, PAIRS, [[0], [1, 2], [3]]), None, "takes groups of tokens apart"),
        ((PAIRS, EVERY, [*PAIRS[:1], [1], [2]]), None, "takes groups of tokens apart"),
    ],
)
def test_impossible_groups_are_refused(blocks, tokens, words):
    with pytest.raises(PlanError, match=words):
        merged(*blocks, tokens=tokens)


def test_merged_tokens_are_not_removed_one_by_one():
    with pytest.raises(PlanError, match="give groups to 'merge'"):
        merged(EVERY, PAIRS, PAIRS).narrow(tokens=[[0, 1, 2, 3], [0], [0]])


@pytest.mark.parametrize("missing", ["version", "variant", "num_heads", "num_patches", "heads", "tokens"])
def test_a_plan_without_one_of_its_fields_is_refused(missing):
    data = {name: value for name, value in SMALL.to_dict().items() if name != missing}
    with pytest.raises(PlanError):
        PruningPlan.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"plan"'])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError):
        PruningPlan.from_json(text)
