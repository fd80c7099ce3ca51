"""A share of the latency as the goal: example plans, the MACs that bring it, the measuring."""

from __future__ import annotations

import pytest
import torch

from amg_plugin.bench import latency
from amg_plugin.bench.latency import Timing
from amg_plugin.bench.run import Settings
from amg_plugin.errors import ConfigError
from amg_plugin.models import complexity
from amg_plugin.models.build import build_network
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import apply_plan, current_plan
from amg_plugin.pruning.budget import PlanCost
from amg_plugin.pruning.cut import PruningRules

SPEC = ModelSpec("vit_tiny_patch16_224", (128, 64), 5, overrides={"depth": 4, "embed_dim": 32, "num_heads": 4})
BALANCE = {"heads": 0.3, "tokens": 0.7}


def timing(macs, time):
    return Timing(macs, time, (time, time))


def dense_plan(variant="block"):
    return current_plan(build_network(SPEC)).with_variant(variant)


def saving_of(plan):
    model = build_network(SPEC).eval()
    return PlanCost.of(model).saving(plan)


@pytest.mark.parametrize(
    ("measured", "target", "expected"),
    [
        ([(0.2, 0.1), (0.4, 0.3)], 0.2, 0.3),  # between two
        ([(0.2, 0.1), (0.4, 0.3)], 0.05, 0.1),  # between nothing and the first
        ([(0.4, 0.3), (0.2, 0.1)], 0.3, 0.4),  # at one, in any order
        ([(0.1, -0.05), (0.2, 0.1)], 0.05, 0.15),  # slower than dense counts as nothing saved
        ([(0.2, 0.1), (0.3, 0.3), (0.4, 0.2), (0.5, 0.4)], 0.25, 0.3),  # neighbours in the wrong order are averaged
    ],
)
def test_the_share_of_macs_lies_between_what_was_measured(measured, target, expected):
    assert latency.macs_saving_for(target, [timing(*pair) for pair in measured]) == pytest.approx(expected)


def test_a_target_above_all_that_was_measured_is_refused():
    with pytest.raises(ConfigError, match=r"0\.5 cannot be met: .* is 40\.0% of the time, with 60\.0%"):
        latency.macs_saving_for(0.5, [timing(0.3, 0.2), timing(0.6, 0.4)])


@pytest.mark.parametrize("balance", [{"tokens": 1.0}, BALANCE, {"tokens": 0.5, "neurons": 0.5}])
def test_candidates_save_shares_around_the_target_and_what_the_floors_allow(balance):
    found = latency.candidates(SPEC, dense_plan(), 0.1, balance, PruningRules())
    savings = [saving_of(plan) for plan in found]
    expected = [0.1 * factor for factor in latency.LADDER[:-1]]
    assert savings[:-1] == pytest.approx(expected, abs=0.005)
    assert found[-1].tokens_per_block == [1] * 4
    assert savings[-1] > savings[-2]


def test_candidates_of_heads_alone_keep_every_token():
    found = latency.candidates(SPEC, dense_plan(), 0.1, {"heads": 1.0}, PruningRules())
    savings = [saving_of(plan) for plan in found]
    assert savings == sorted(set(savings))
    assert all(plan.tokens_per_block == [32] * 4 for plan in found)
    assert found[-1].heads_per_block == [1] * 4


@pytest.mark.parametrize("variant", ["kv", "merge"])
def test_candidates_keep_the_token_variant(variant):
    assert {plan.variant for plan in latency.candidates(SPEC, dense_plan(variant), 0.1, BALANCE, PruningRules())} == {
        variant
    }


def test_candidates_stop_at_the_floors():
    rules = PruningRules(min_heads=3, min_tokens=20, min_neurons=50, neuron_multiple=16)
    found = latency.candidates(SPEC, dense_plan(), 0.6, {"heads": 0.3, "tokens": 0.4, "neurons": 0.3}, rules)
    assert min(min(plan.heads_per_block) for plan in found) == 3
    assert min(min(plan.tokens_per_block) for plan in found) == 20
    assert min(min(plan.neurons_per_block) for plan in found) == 64
    assert len(found) == len(set(found))


def test_candidates_go_on_from_a_pruned_network():
    start = dense_plan().narrow(tokens=[range(24)] * 4)
    before = saving_of(start)
    found = latency.candidates(SPEC, start, 0.3, BALANCE, PruningRules())
    assert all(saving_of(plan) > before for plan in found)
    assert all(set(kept) <= set(range(24)) for plan in found for kept in plan.tokens)


def test_floors_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"0\.1 cannot be met: amg\.min_heads_per_block 4, .* leave nothing to prune"):
        latency.candidates(SPEC, dense_plan(), 0.1, BALANCE, PruningRules(min_heads=4, min_tokens=32))


def test_every_plan_is_measured_against_the_dense_network():
    plan = dense_plan()
    plans = [plan.narrow(tokens=[range(16)] * 4), plan.narrow(heads=[range(2)] * 4)]
    progress = []
    settings = Settings(forms=("fast",), rounds=2, warmup=1, memory=False)
    found, environment = latency.timings(SPEC, plans, settings, lambda what, done: progress.append(done))
    dense = complexity.count(build_network(SPEC).eval(), *SPEC.image_size)["macs"]
    counted = [complexity.count(apply_plan(build_network(SPEC).eval(), one), *SPEC.image_size)["macs"] for one in plans]
    assert [one.macs_saved for one in found] == pytest.approx([1 - macs / dense for macs in counted])
    assert all(one.quartiles[0] <= one.time_saved <= one.quartiles[1] for one in found)
    assert sum(progress) == settings.total_rounds
    assert environment["rounds"] == 2


def test_measuring_leaves_the_random_numbers_of_the_run_alone():
    plan, state = dense_plan(), torch.random.get_rng_state()
    found = latency.candidates(SPEC, plan, 0.1, BALANCE, PruningRules())
    latency.timings(SPEC, found[:1], Settings(("fast",), rounds=1, warmup=1, memory=False), lambda what, done: None)
    assert torch.equal(state, torch.random.get_rng_state())
