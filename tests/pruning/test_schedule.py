"""The schedule: arithmetic of cuts and epochs, feasibility, state."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amg_plugin.errors import ConfigError
from amg_plugin.pruning import PruningPlan
from amg_plugin.pruning.plan import Limits
from amg_plugin.pruning.schedule import PruningSchedule, Stage
from amg_plugin.pruning.selection import removal_count

# Hundredths of each target, together below 1.
STAGES = st.lists(
    st.tuples(st.sampled_from(["heads", "tokens"]), st.integers(0, 24), st.integers(1, 7), st.integers(0, 3)),
    max_size=4,
).map(lambda entries: [Stage(target, rate / 100, iterations, epochs) for target, rate, iterations, epochs in entries])


def removals(schedule, totals):
    """How many each cut removes."""
    gone = dict.fromkeys(totals, 0)
    steps = []
    for cut in schedule.cuts:
        after = cut.removed_after(totals[cut.target])
        steps.append((cut.target, after - gone[cut.target]))
        gone[cut.target] = after
    return steps, gone


def test_the_remainder_is_spread_over_the_iterations():
    schedule = PruningSchedule([Stage("heads", 0.25, iterations=7)], 0)
    steps, gone = removals(schedule, {"heads": 144})
    counts = [count for _, count in steps]
    assert sum(counts) == gone["heads"] == 36
    assert set(counts) == {5, 6}


def test_rates_of_one_target_add_up_over_stages_to_the_exact_total():
    # 0.15 of 50 is 7.5: rounding every stage by itself would lose one.
    schedule = PruningSchedule([Stage("heads", 0.15), Stage("tokens", 0.1), Stage("heads", 0.15)], 0)
    steps, gone = removals(schedule, {"heads": 50, "tokens": 100})
    assert steps == [("heads", 7), ("tokens", 10), ("heads", 8)]
    assert gone == {"heads": 15, "tokens": 10}


@given(STAGES, st.integers(1, 200), st.integers(1, 200))
def test_totals_are_exact_and_no_cut_brings_anything_back(stages, heads, tokens):
    schedule = PruningSchedule(stages, 0)
    steps, gone = removals(schedule, {"heads": heads, "tokens": tokens})
    assert all(count >= 0 for _, count in steps)
    for target, total in (("heads", heads), ("tokens", tokens)):
        hundredths = sum(round(stage.rate * 100) for stage in stages if stage.target == target)
        assert gone[target] == hundredths * total // 100


@given(STAGES, st.integers(1, 200))
def test_cuts_of_one_stage_differ_by_one_at_most(stages, total):
    schedule = PruningSchedule(stages, 0)
    steps, _ = removals(schedule, {"heads": total, "tokens": total})
    for number in range(len(stages)):
        counts = [step[1] for step, cut in zip(steps, schedule.cuts, strict=True) if cut.stage == number]
        assert max(counts) - min(counts) <= 1


@given(STAGES, st.integers(0, 3))
def test_epochs_follow_from_the_stages(stages, final_epochs):
    schedule = PruningSchedule(stages, final_epochs)
    assert schedule.final_start == sum(stage.iterations * stage.epochs for stage in stages)
    assert schedule.total_epochs == schedule.final_start + final_epochs
    assert len(schedule.cuts) == sum(stage.iterations for stage in stages)


def test_cuts_lie_before_their_epochs():
    schedule = PruningSchedule([Stage("heads", 0.2, 2, epochs=3), Stage("tokens", 0.2, 1), Stage("heads", 0.1, 1)], 4)
    assert [(cut.epoch, cut.target, cut.stage, cut.iteration) for cut in schedule.cuts] == [
        (0, "heads", 0, 0),
        (3, "heads", 0, 1),
        (6, "tokens", 1, 0),
        (6, "heads", 2, 0),
    ]
    assert schedule.total_epochs == 10


def test_due_gives_each_cut_once_and_in_order():
    schedule = PruningSchedule([Stage("heads", 0.2, 2, epochs=1), Stage("tokens", 0.2)], 2)
    seen = []
    for epoch in range(schedule.total_epochs):
        while (cut := schedule.due(epoch)) is not None:
            seen.append((epoch, cut.target, cut.iteration))
            schedule.advance()
    assert seen == [(0, "heads", 0), (1, "heads", 1), (2, "tokens", 0)]
    assert schedule.finished and schedule.due(99) is None


def test_a_cut_that_was_missed_is_still_due():
    assert PruningSchedule([Stage("heads", 0.2)], 3).due(2).epoch == 0


def test_a_finished_schedule_does_not_advance():
    with pytest.raises(RuntimeError):
        PruningSchedule([], 1).advance()


@pytest.mark.parametrize(
    ("epoch", "phase"), [(0, (0, 3)), (2, (0, 3)), (3, (3, 3)), (6, (6, 4)), (9, (6, 4)), (10, (6, 4))]
)
def test_phases_are_the_stretches_between_cuts(epoch, phase):
    schedule = PruningSchedule([Stage("heads", 0.2, 2, epochs=3), Stage("tokens", 0.2)], 4)
    assert schedule.phase(epoch) == phase


def test_phases_cover_the_run_without_gaps():
    schedule = PruningSchedule([Stage("heads", 0.2, 3, epochs=2), Stage("tokens", 0.2, 2, epochs=1)], 3)
    for epoch in range(schedule.total_epochs):
        start, length = schedule.phase(epoch)
        assert start <= epoch < start + length
        assert all(schedule.phase(other) == (start, length) for other in range(start, start + length))


def test_without_stages_there_is_only_the_final_phase():
    schedule = PruningSchedule([], 5)
    assert (schedule.finished, schedule.total_epochs, schedule.phase(3)) == (True, 5, (0, 5))


def feasibility(stages, plan, min_heads=1, min_tokens=1, blocks=None):
    blocks = range(plan.depth) if blocks is None else blocks
    PruningSchedule(stages, 0).check_feasible(plan, Limits(blocks, min_heads, min_tokens))


def test_a_feasible_schedule_passes():
    feasibility([Stage("heads", 0.75), Stage("tokens", 0.9)], PruningPlan.dense([4, 4], 10))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("heads", 0.8), "asks for 9 of 12 heads.*min_heads_per_block 2 allows 6, a rate of 0.500 at most"),
        (Stage("tokens", 0.8), "asks for 24 of 30 tokens.*min_tokens_per_block 3 allows 21, a rate of 0.700 at most"),
    ],
)
def test_what_the_floors_forbid_is_refused_and_the_feasible_rate_named(stage, message):
    with pytest.raises(ConfigError, match=message):
        feasibility([stage], PruningPlan.dense([4, 4, 4], 10), min_heads=2, min_tokens=3)


@given(st.integers(1, 40), st.integers(2, 40), st.integers(1, 40))
def test_the_rate_that_the_message_names_is_feasible(depth, heads, floor):
    plan = PruningPlan.dense([heads] * depth, 4)
    try:
        feasibility([Stage("heads", 0.999)], plan, min_heads=floor)
    except ConfigError as error:
        rate = float(str(error).split("a rate of ")[1].split()[0])
        feasibility([Stage("heads", rate)], plan, min_heads=floor)


def test_only_the_prunable_blocks_count():
    plan = PruningPlan.dense([4, 4, 4, 4], 10)
    feasibility([Stage("heads", 0.75)], plan, blocks=[0, 1, 2])
    with pytest.raises(ConfigError, match="of 12 heads"):
        feasibility([Stage("heads", 0.95)], plan, blocks=[0, 1, 2])


def test_a_model_pruned_below_the_floor_already_leaves_less_to_remove():
    # Block 0 gave up 5 of its 6 heads; with a floor of 3 only the 3 of block 1 are left to take: 8 of 12, not 6.
    plan = PruningPlan.dense([6, 6], 4).narrow(heads=[[0], range(6)])
    feasibility([Stage("heads", 8 / 12)], plan, min_heads=3)
    with pytest.raises(ConfigError, match=r"asks for 9 of 12 heads.*allows 8"):
        feasibility([Stage("heads", 9 / 12)], plan, min_heads=3)


def test_rates_count_from_the_dense_model_so_that_less_than_what_is_gone_is_refused():
    plan = PruningPlan.dense([4, 4], 10).narrow(heads=[[0, 1], [0, 1]])
    with pytest.raises(ConfigError, match=r"asks for 2 of 8 heads.*lost 4 already; more than 0.500 is needed"):
        feasibility([Stage("heads", 0.25)], plan)
    feasibility([Stage("heads", 0.75)], plan)
    feasibility([Stage("tokens", 0.25)], plan)


def test_a_schedule_that_removes_nothing_more_is_refused_unless_it_is_under_way():
    plan = PruningPlan.dense([4, 4], 10).narrow(heads=[[0, 1], [0, 1]])
    schedule = PruningSchedule([Stage("heads", 0.5, iterations=2)], 0)
    with pytest.raises(ConfigError, match="nothing that the model has not lost already"):
        schedule.check_feasible(plan, Limits([0, 1]))
    schedule.load_state_dict({"done": 2})
    schedule.check_feasible(plan, Limits([0, 1]))


@pytest.mark.parametrize("target", ["heads", "tokens"])
def test_a_rate_that_stands_for_less_than_one_is_refused(target):
    plan = PruningPlan.dense([4, 4], 4)
    with pytest.raises(ConfigError, match=f"removes nothing: 0.12 of 8 {target} is less than one"):
        feasibility([Stage(target, 0.12)], plan)
    feasibility([Stage(target, 0.125)], plan)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_zero_to_one_are_refused(rate):
    with pytest.raises(ConfigError, match="outside"):
        Stage("heads", rate)


def test_other_impossible_stages_are_refused():
    with pytest.raises(ConfigError, match=r"mlp.*heads, tokens, neurons"):
        Stage("mlp", 0.1)
    with pytest.raises(ConfigError, match="iterations"):
        Stage("heads", 0.1, iterations=0)
    with pytest.raises(ConfigError, match="epochs"):
        Stage("heads", 0.1, epochs=-1)
    with pytest.raises(ConfigError, match="final_epochs"):
        PruningSchedule([], -1)


def test_stages_that_remove_everything_together_are_refused():
    with pytest.raises(ConfigError, match="120% of the heads"):
        PruningSchedule([Stage("heads", 0.6), Stage("tokens", 0.3), Stage("heads", 0.6)], 0)


def test_stages_are_read_from_configuration_entries():
    schedule = PruningSchedule.from_config(
        [{"target": "heads", "rate": 0.25, "iterations": 6, "epochs": 1}, {"target": "tokens", "rate": 0.1}], 2
    )
    assert schedule.stages == (Stage("heads", 0.25, 6, 1), Stage("tokens", 0.1, 1, 0))
    assert schedule.total_epochs == 8


def test_the_state_is_plain_data_and_survives_a_round_trip():
    schedule = PruningSchedule([Stage("heads", 0.2, 3, epochs=1)], 1)
    schedule.advance()
    state = json.loads(json.dumps(schedule.state_dict()))
    again = PruningSchedule(schedule.stages, schedule.final_epochs)
    again.load_state_dict(state)
    assert again.due(1) == schedule.due(1) == schedule.cuts[1]


@pytest.mark.parametrize("done", [-1, 4])
def test_the_state_of_another_schedule_is_refused(done):
    with pytest.raises(ConfigError, match="3"):
        PruningSchedule([Stage("heads", 0.2, 3)], 0).load_state_dict({"done": done})


def test_counts_of_a_single_cut_are_those_of_the_rate():
    assert PruningSchedule([Stage("heads", 0.29)], 0).cuts[0].removed_after(100) == removal_count(0.29, 100) == 29
