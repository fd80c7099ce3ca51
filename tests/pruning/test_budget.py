"""Budgets: rates found so that a share of the counted MACs is saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amg_plugin.errors import ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.complexity import BlockCost
from amg_plugin.models.spec import JigsawSpec, ModelSpec, SideInformationSpec
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import (
    PREVIEWED,
    TOLERANCE,
    Budget,
    Goal,
    PlanCost,
    check_budget,
    choices,
    closest_cut,
    expected_plan,
)
from amg_plugin.pruning.cut import prunable_blocks
from amg_plugin.pruning.plan import Limits
from amg_plugin.pruning.schedule import PruningSchedule, Stage
from amg_plugin.registries import TARGETS

NETWORKS = {
    "plain": {},
    "registers and qk norm": {"overrides": {"depth": 4, "reg_tokens": 4, "qk_norm": True}},
    "scaled norms": {"overrides": {"depth": 4, "scale_attn_norm": True}},
    "overlapping patches": {"stride": 12},
    "distilled": {"arch": "deit_tiny_distilled_patch16_224"},
    "gated MLP": {
        "arch": "aimv2_large_patch14_224",
        "overrides": {"depth": 4, "num_heads": 3, "embed_dim": 96},
        "stride": 12,
    },
    "norm over hidden units": {"overrides": {"depth": 4, "scale_mlp_norm": True}},
    "narrow MLP": {"overrides": {"depth": 4, "mlp_ratio": 2.5}},
    "parts": {"head": "parts", "parts": 4},
    "jigsaw": {"jigsaw": JigsawSpec(), "side_information": SideInformationSpec(cameras=2)},
}


def shared(heads, neurons=0.0):
    return {"heads": heads, "tokens": 1 - heads - neurons, "neurons": neurons}


def network(name):
    settings = {"arch": "vit_tiny_patch16_224", "overrides": {"depth": 4}, **NETWORKS[name]}
    return build_network(ModelSpec(image_size=(96, 48), num_classes=3, **settings))


def counted(model):
    return complexity.count(model, 96, 48)["macs"]


@pytest.mark.parametrize("variant", ["block", "kv"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_closed_form_equals_what_is_counted(name, variant):
    model = network(name)
    cost = PlanCost.of(model)
    plan = current_plan(model).with_variant(variant)
    assert cost.macs(plan) == cost.dense == counted(model)
    generator = torch.Generator().manual_seed(1)
    blocks = prunable_blocks(model)
    heads = [range(3) if block not in blocks else range(1 + block % 3) for block in range(plan.depth)]
    tokens = [
        sorted(torch.randperm(plan.num_patches, generator=generator)[: 5 + 2 * block].tolist())
        if block in blocks
        else range(plan.num_patches)
        for block in range(plan.depth)
    ]
    hidden = plan.num_neurons[0]
    neurons = [range(hidden if block not in blocks else hidden // (1 + block % 3)) for block in range(plan.depth)]
    pruned = plan.narrow(heads=heads, tokens=tokens, neurons=neurons)
    params = sum(p.numel() for p in model.parameters())
    apply_plan(model, pruned)
    assert cost.macs(pruned) == counted(model)
    assert PlanCost.of(model).dense == cost.dense
    gone = sum((3 - len(kept)) * block.head_params for kept, block in zip(pruned.heads, cost.blocks, strict=True))
    units = zip(pruned.neurons_per_block, cost.blocks, strict=True)
    gone += sum((hidden - kept) * block.neuron_params for kept, block in units)
    assert params - sum(p.numel() for p in model.parameters()) == gone


def synthetic(depth=8, heads=6, patches=100, head_dim=32, variant="block"):
    width = heads * head_dim
    sizes = {"head_params": 4 * width * head_dim, "neuron_params": 2 * width}
    block = BlockCost(width=width, head_dim=head_dim, inward=1, layers=2, **sizes)
    plan = PruningPlan.dense([heads] * depth, patches, variant, [4 * width] * depth)
    bare = PlanCost((block,) * depth, 1, 0, 0, plan.num_neurons)
    return plan, replace(bare, rest=bare.macs(plan) // 50, dense=bare.macs(plan) + bare.macs(plan) // 50)


FORMS = {
    "heads, tokens": [Stage("heads", iterations=3), Stage("tokens")],
    "tokens, heads, tokens": [Stage("tokens", iterations=2), Stage("heads"), Stage("tokens")],
    "heads, neurons, tokens": [Stage("heads"), Stage("neurons", iterations=2), Stage("tokens")],
    "heads, tokens, heads, tokens": [Stage("heads"), Stage("tokens"), Stage("heads", iterations=2), Stage("tokens")],
}


def pruned_by(plan, cost, schedule, generator, concentration):
    """Carries out a schedule with random scores, which favour some blocks."""
    limits = Limits(range(plan.depth))
    for cut in schedule.cuts:
        kept = plan.left(cut.target)
        scores = [
            torch.rand(size, generator=generator) + concentration * torch.rand(1, generator=generator) for size in kept
        ]
        goal = Goal(cost, schedule.goal(cut))
        plan = closest_cut(plan, cut.target, scores, 0.0, limits, goal)
    return plan


@given(
    depth=st.integers(6, 12),
    heads=st.sampled_from([3, 6, 12]),
    patches=st.integers(72, 210),
    variant=st.sampled_from(["block", "kv"]),
    form=st.sampled_from(sorted(FORMS)),
    balance=st.sampled_from([0.1, 0.25, 0.5, 0.7]),
    share=st.floats(0.1, 0.95),
    concentration=st.sampled_from([0.0, 0.5, 3.0]),
    seed=st.integers(0, 1000),
)
def test_whatever_the_scores_the_saving_ends_within_half_a_point(
    depth, heads, patches, variant, form, balance, share, concentration, seed
):
    plan, cost = synthetic(depth, heads, patches, variant=variant)
    # What floors of a third would save, which random scores can reach as well.
    floors = [("heads", 1.0), ("tokens", 1.0)]
    third = Limits(range(depth), heads - heads // 3, patches * 2 // 3)
    limit = cost.saving(expected_plan(plan, floors, third, cost))
    neurons = 0.2 if "neurons" in form else 0.0
    budget = Budget(share * min(limit, 0.3 if variant == "block" else 0.12), shared(balance, neurons))
    schedule = PruningSchedule(FORMS[form], 0, budget)
    end = pruned_by(plan, cost, schedule, torch.Generator().manual_seed(seed), concentration)
    assert abs(cost.saving(end) - budget.saving) <= TOLERANCE
    assert plan.contains(end)


@pytest.mark.parametrize("balance", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_balance_is_the_share_of_the_saving_that_heads_contribute(balance):
    plan, cost = synthetic(12, 12, 128)
    stages = [stage for stage, weight in ((Stage("heads"), balance), (Stage("tokens"), 1 - balance)) if weight]
    schedule = PruningSchedule(stages, 0, Budget(0.2, shared(balance)))
    end = pruned_by(plan, cost, schedule, torch.Generator().manual_seed(0), 0.5)
    heads_alone = PruningPlan(plan.variant, plan.num_heads, plan.num_patches, end.heads, plan.tokens)
    assert cost.saving(heads_alone) == pytest.approx(0.2 * balance, abs=TOLERANCE)


def test_every_cut_brings_its_part_of_the_saving():
    schedule = PruningSchedule(FORMS["heads, tokens, heads, tokens"], 0, Budget(0.4, shared(0.5)))
    assert [target for target, _ in schedule.goals()] == ["heads", "tokens", "heads", "heads", "tokens"]
    assert [goal for _, goal in schedule.goals()] == pytest.approx([0.1, 0.2, 0.25, 0.3, 0.4])


def test_goals_start_from_what_the_model_saves_already():
    schedule = PruningSchedule([Stage("heads"), Stage("tokens")], 0, Budget(0.4, shared(0.5)))
    schedule.start_saving = 0.2
    assert [goal for _, goal in schedule.goals()] == pytest.approx([0.3, 0.4])


def test_the_state_of_a_budget_survives_a_round_trip():
    schedule = PruningSchedule([Stage("heads"), Stage("tokens")], 0, Budget(0.4, shared(0.5)))
    schedule.start_saving = 0.2
    schedule.advance()
    again = PruningSchedule([Stage("heads"), Stage("tokens")], 0, Budget(0.4, shared(0.5)))
    again.load_state_dict(schedule.state_dict())
    assert (again.done, again.goals()) == (schedule.done, schedule.goals())


@pytest.mark.parametrize(
    ("stages", "budget"),
    [
        ([Stage("heads", 0.2)], Budget(0.2, shared(1.0))),
        ([Stage("heads")], None),
        ([Stage("heads"), Stage("tokens", 0.1)], Budget(0.2, shared(0.5))),
    ],
)
def test_rates_and_a_budget_exclude_each_other(stages, budget):
    with pytest.raises(ConfigError, match="one of both"):
        PruningSchedule(stages, 0, budget)


@pytest.mark.parametrize(("target", "missing"), [("heads", "tokens"), ("tokens", "heads")])
def test_a_stage_that_the_balance_needs_must_be_there(target, missing):
    with pytest.raises(ConfigError, match=f"from the {missing}, but amg.schedule has no stage"):
        PruningSchedule([Stage(target)], 0, Budget(0.2, shared(0.5)))


def budget_check(plan, cost, saving, balance, **floors):
    stages = [stage for stage, weight in ((Stage("heads"), balance), (Stage("tokens"), 1 - balance)) if weight]
    budget = Budget(saving, shared(balance))
    limits = Limits(range(plan.depth), **floors)
    return check_budget(plan, budget, PruningSchedule(stages, 0, budget).goals(), limits, cost)


def test_a_feasible_budget_passes_and_gives_the_expected_plan():
    plan, cost = synthetic()
    assert cost.saving(budget_check(plan, cost, 0.3, 0.4)) == pytest.approx(0.3, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("saving", "balance", "floors"), [(0.6, 1.0, {}), (0.3, 1.0, {"heads": 5}), (0.3, 0.0, {"tokens": 90})]
)
def test_what_the_floors_forbid_is_refused_with_the_nearest(saving, balance, floors):
    plan, cost = synthetic()
    with pytest.raises(ConfigError, match=r"cannot be met with amg.balance .* nearest is 0\.\d{3}"):
        budget_check(plan, cost, saving, balance, **floors)


def test_one_head_may_be_too_coarse_a_step():
    plan, cost = synthetic(depth=2, heads=2, patches=20)
    with pytest.raises(ConfigError, match="cannot be met"):
        budget_check(plan, cost, 0.05, 1.0)


def test_a_model_that_saves_as_much_already_is_refused():
    plan, cost = synthetic()
    pruned = budget_check(plan, cost, 0.3, 0.5)
    with pytest.raises(ConfigError, match=r"saves 0\.\d+ already"):
        budget_check(pruned, cost, 0.25, 0.5)


def test_the_expected_plan_takes_the_same_share_of_every_block():
    plan, cost = synthetic()
    end = budget_check(plan, cost, 0.3, 0.4)
    for counts in (end.heads_per_block, end.tokens_per_block):
        assert max(counts) - min(counts) <= 1


def test_the_preview_shows_every_balance_and_what_it_saves():
    plan, cost = synthetic()
    budget = Budget(0.3, shared(0.4))
    goals = PruningSchedule([Stage("heads", iterations=2), Stage("tokens")], 0, budget).goals()
    rows = choices(plan, budget, goals, Limits(range(plan.depth)), cost)
    assert [row.balance for row in rows] == [shared(0.4), *PREVIEWED]
    dense = {target: sum(plan.left(target)) for target in TARGETS}
    for row in rows:
        assert all((sum(row.plan.left(target)) < dense[target]) == (row.balance[target] > 0) for target in TARGETS)
        params = (dense["heads"] - sum(row.plan.heads_per_block)) * cost.blocks[0].head_params
        params += (dense["neurons"] - sum(row.plan.neurons_per_block)) * cost.blocks[0].neuron_params
        assert row.params == params
    for row in rows:
        assert row.saving == cost.saving(row.plan)
        assert row.meets == (abs(row.saving - 0.3) <= TOLERANCE)
    assert [row.meets for row in rows][:3] == [True] * 3


def test_blocks_that_may_not_be_pruned_stay_as_they_are():
    plan, cost = synthetic()
    goals = [("heads", 0.05), ("tokens", 0.2)]
    end = expected_plan(plan, goals, Limits(range(plan.depth - 1)), cost)
    assert (end.heads[-1], end.tokens[-1]) == (plan.heads[-1], plan.tokens[-1])
    assert cost.saving(end) == pytest.approx(0.2, abs=TOLERANCE)
