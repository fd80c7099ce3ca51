"""Static merging inside one ``engine.run(...)``."""

import copy
import re
from itertools import pairwise

import pytest
import torch
from naive_merging import random_merges
from tiny_run import PATCHES

from amg_plugin.engine import AMGPruningHook, DistillationHook
from amg_plugin.errors import ConfigError, PlanError
from amg_plugin.pruning import PruningPlan, apply_plan, current_plan
from amg_plugin.pruning.budget import TOLERANCE

DEPTH = 4
TOKENS = {"target": "tokens", "rate": 0.3, "iterations": 2, "epochs": 0}
HEADS = {"target": "heads", "rate": 0.25, "iterations": 1, "epochs": 0}


@pytest.fixture
def merge(make_engine, run):
    """Runs stages with merging on a network of four blocks; gives the engine and the pruning hook."""

    def merge(stages, model=None, hooks=(), **changes):
        changes = {"amg__override__depth": DEPTH, "amg__schedule": stages, "amg__token_variant": "merge", **changes}
        engine = make_engine(model=model, **changes)
        pruning = AMGPruningHook.from_config(engine.cfg)
        engine.hooks = [pruning, *(make(engine) for make in hooks)]
        run(engine, pruning.schedule.total_epochs)
        return engine, pruning

    return merge


@pytest.mark.parametrize("stages", [[TOKENS], [HEADS, TOKENS], [TOKENS, HEADS]])
def test_tokens_are_merged_in_several_cuts(merge, stages):
    engine, _ = merge(stages)
    plan = current_plan(engine.model)
    assert plan.variant == "merge" and plan.groups
    assert sum(plan.tokens_per_block) == DEPTH * PATCHES - int(0.3 * DEPTH * PATCHES)
    assert sum(plan.heads_per_block) == (16 if len(stages) == 1 else 12)
    first, second = (event["tokens_per_block"] for event in engine.history if event.get("target") == "tokens")
    assert all(a >= b for a, b in zip(first, second, strict=True)) and first != second


def test_one_set_of_statistics_gives_one_plan(merge):
    assert current_plan(merge([TOKENS])[0].model) == current_plan(merge([TOKENS])[0].model)


def test_a_merged_network_is_fine_tuned_with_distillation(merge):
    engine, _ = merge(
        [TOKENS],
        hooks=[lambda engine: DistillationHook(alpha=1.0, tau=2.0)],
        amg__final_epochs=1,
        amg__distill__features=1.0,
    )
    assert engine.first_result["mAP"] > 0


@pytest.mark.parametrize("target", ["heads", "neurons"])
@pytest.mark.parametrize("order", [1, -1])
def test_heads_and_neurons_are_repaired_before_and_after_merging(merge, caplog, target, order):
    caplog.set_level("INFO", logger="amg_plugin")
    stages = [{**HEADS, "target": target}, {**TOKENS, "iterations": 1}][::order]
    engine, _ = merge(stages, amg__repair="least_squares", amg__override__embed_dim=16, amg__override__mlp_ratio=1.0)
    lines = [line for line in caplog.messages if "as cut" in line]
    assert len(lines) == 2  # merged tokens are repaired as well
    for line in lines:
        as_cut, repaired = (float(value) for value in re.findall(r"[\d.e-]+(?= as cut| repaired)", line))
        assert repaired < as_cut
    assert current_plan(engine.model).groups


@pytest.mark.parametrize("saving", [0.15, 0.3])
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_a_share_of_the_macs_is_met(merge, saving, balance):
    stages = [{"target": "heads"}] * (balance > 0) + [{"target": "tokens", "iterations": 2}]
    size = {"data__height": 96, "data__width": 48}
    shares = {"heads": balance, "tokens": 1 - balance}
    engine, pruning = merge(stages, amg__target_macs_saving=saving, amg__balance=shares, **size)
    plan = current_plan(engine.model)
    assert pruning.cost.saving(plan) == pytest.approx(saving, abs=TOLERANCE)
    gone = [a - b for a, b in pairwise(plan.tokens_per_block)]
    assert plan.tokens_per_block[0] == plan.num_patches and max(gone) - min(gone) <= 1


@pytest.mark.parametrize("variant", ["kv", "block"])
def test_merging_beside_another_variant_is_refused(merge, make_engine, variant):
    model = make_engine(amg__override__depth=DEPTH).model
    apply_plan(model, current_plan(model).with_variant(variant).narrow(tokens=[[0, 1, 2]] * DEPTH))
    with pytest.raises(PlanError, match="cannot be mixed"):
        merge([TOKENS], model=model)
    other = make_engine(amg__override__depth=DEPTH).model
    apply_plan(other, random_merges(current_plan(other).with_variant("merge"), [1, 2, 3], 0.5))
    with pytest.raises(PlanError, match="cannot be mixed"):
        merge([TOKENS], model=other, amg__token_variant=variant)


def test_a_network_without_patch_tokens_left_is_refused(merge, make_engine):
    model = make_engine(amg__override__depth=DEPTH).model
    plan = PruningPlan.dense([4] * DEPTH, PATCHES, "merge", current_plan(model).num_neurons)
    everything, one = [[n] for n in range(PATCHES)], [list(range(PATCHES))]
    apply_plan(model, plan.merge([range(PATCHES), [0], [0], [0]], [everything, one, one, one]))
    with pytest.raises(ConfigError, match="no patch tokens left to merge"):
        merge([TOKENS], model=copy.deepcopy(model))


def test_rates_beyond_what_merging_can_do_are_refused(merge):
    with pytest.raises(ConfigError, match=r"merging .* allows 17, a rate of 0.532 at most"):
        merge([{**TOKENS, "rate": 0.7}])


def test_a_network_with_a_single_prunable_block_is_refused(merge):
    with pytest.raises(ConfigError, match="two or more prunable blocks"):
        merge([TOKENS], amg__override__depth=2, amg__jpm__enabled=True, model=None)


def test_scores_are_not_asked_for_the_weight_per_block(merge):
    engine, _ = merge([TOKENS], amg__layer_decay=0.5)  # too much where blocks are compared
    assert torch.is_tensor(engine.model.backbone.blocks[-1].attn.key_bias)
