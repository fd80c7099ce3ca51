"""One cut: score, select, narrow, operate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from amg_plugin.errors import RunError
from amg_plugin.models.reid import ReIDModel
from amg_plugin.models.spec import ModelSpec
from amg_plugin.pruning import current_plan
from amg_plugin.pruning.cut import PruningRules, carry_out, plan_cut, prunable_blocks
from amg_plugin.pruning.schedule import PruningSchedule, Stage
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.registries import HEAD_SCORERS, NEURON_SCORERS, TOKEN_SCORERS


@pytest.fixture
def model():
    torch.manual_seed(0)
    overrides = {"depth": 3, "embed_dim": 32, "num_heads": 4}
    return ReIDModel(ModelSpec("vit_tiny_patch16_224", (64, 32), 4, overrides=overrides)).eval()


@pytest.fixture
def calibration(model):
    images = torch.randn(2, 3, 64, 32)

    def loss(batch):
        return F.cross_entropy(model.logits(batch.clone().requires_grad_()), torch.tensor([0, 1]))

    return Calibration(lambda: [images], model, loss)


def cuts(*stages):
    return PruningSchedule(stages, 0).cuts


def carry_out_all(model, calibration, *stages, rules=None):
    for cut in cuts(*stages):
        carry_out(model, cut, rules or PruningRules(), calibration)
    plan = current_plan(model)
    return sum(plan.heads_per_block), sum(plan.tokens_per_block)


def test_planning_a_cut_leaves_the_model_as_it_is(model, calibration):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = plan_cut(model, cuts(Stage("heads", 0.5))[0], PruningRules(), calibration)
    assert sum(plan.heads_per_block) == 6
    assert current_plan(model).heads_per_block == [4, 4, 4]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_carrying_out_a_cut_prunes_to_the_planned_structure(model, calibration):
    cut = cuts(Stage("tokens", 0.25))[0]
    plan = plan_cut(model, cut, PruningRules(), calibration)
    assert carry_out(model, cut, PruningRules(), calibration) == plan == current_plan(model)


@pytest.mark.parametrize("head_scorer", HEAD_SCORERS)
@pytest.mark.parametrize("token_scorer", TOKEN_SCORERS)
def test_totals_over_stages_are_exact_for_every_scorer(model, calibration, head_scorer, token_scorer):
    rules = PruningRules(head_scorer=head_scorer, token_scorer=token_scorer)
    stages = [Stage("heads", 0.15), Stage("tokens", 0.3, iterations=2), Stage("heads", 0.35, iterations=3)]
    # 50 % of 12 heads and 30 % of 24 tokens, rounded down.
    assert carry_out_all(model, calibration, *stages, rules=rules) == (12 - 6, 24 - 7)


@pytest.mark.parametrize("scorer", NEURON_SCORERS)
def test_cuts_of_neurons_are_exact_for_every_scorer(model, calibration, scorer):
    rules = PruningRules(neuron_scorer=scorer)
    carry_out_all(
        model, calibration, Stage("neurons", 0.25), Stage("heads", 0.5), Stage("neurons", 0.25, 2), rules=rules
    )
    plan = current_plan(model)
    assert sum(plan.neurons_per_block) == 384 - 192
    assert [block.mlp.fc2.in_features for block in model.backbone.blocks] == plan.neurons_per_block


def test_blocks_keep_multiples_of_neurons(model, calibration):
    rules = PruningRules(min_neurons=20, neuron_multiple=16)
    carry_out_all(model, calibration, Stage("neurons", 0.7), rules=rules)
    kept = current_plan(model).neurons_per_block
    assert all(count % 16 == 0 and count >= 32 for count in kept)
    assert 384 - 0.7 * 384 <= sum(kept) < 384 - 0.7 * 384 + 16


def test_a_cut_with_nothing_left_to_remove_does_not_score(model, calibration):
    cut = cuts(Stage("heads", 0.05))[0]  # 5 % of 12 heads is none
    unusable = Calibration(lambda: pytest.fail("scored"), model, model)
    assert plan_cut(model, cut, PruningRules(), unusable) == current_plan(model)


def test_a_cut_that_was_carried_out_already_removes_nothing_more(model, calibration):
    cut = cuts(Stage("heads", 0.5))[0]
    plan = carry_out(model, cut, PruningRules(), calibration)
    assert carry_out(model, cut, PruningRules(), calibration) == plan


def test_floors_hold(model, calibration):
    rules = PruningRules(min_heads=2, min_tokens=5)
    carry_out_all(model, calibration, Stage("heads", 0.5), Stage("tokens", 0.37), rules=rules)
    plan = current_plan(model)
    assert plan.heads_per_block == [2, 2, 2]
    assert min(plan.tokens_per_block) >= 5


def test_only_prunable_blocks_lose_anything_and_only_they_count(model, calibration):
    model.prunable_blocks = [0, 2]
    assert prunable_blocks(model) == [0, 2]
    carry_out_all(model, calibration, Stage("heads", 0.5), Stage("tokens", 0.5))
    plan = current_plan(model)
    assert plan.heads_per_block[1] == 4 and plan.tokens_per_block[1] == 8
    assert sum(plan.heads_per_block) == 12 - 4 and sum(plan.tokens_per_block) == 24 - 8


def test_every_block_is_prunable_by_default(model):
    assert prunable_blocks(model) == [0, 1, 2]


@pytest.mark.parametrize(("scorer", "counts"), [("amg", True), ("random", False), ("magnitude", False)])
def test_the_weight_per_block_belongs_to_amg_only(model, calibration, scorer, counts):
    def planned(growth):
        rules = PruningRules(head_scorer=scorer, layer_growth=growth)
        return plan_cut(model, cuts(Stage("heads", 0.25))[0], rules, calibration)

    assert (planned(10.0) != planned(0.0)) == counts


def test_later_blocks_lose_more_heads_with_growing_weights(model, calibration):
    rules = PruningRules(layer_growth=10.0)
    carry_out(model, cuts(Stage("heads", 0.25))[0], rules, calibration)
    assert current_plan(model).heads_per_block == [4, 4, 1]


def test_rules_are_read_from_the_configuration():
    node = SimpleNamespace(
        head_scorer="random",
        token_scorer="cls_attention",
        layer_growth=0.02,
        layer_decay=0.03,
        min_heads_per_block=2,
        min_tokens_per_block=3,
        neuron_scorer="variance",
        min_neurons_per_block=4,
        neuron_multiple=8,
    )
    expected = PruningRules("random", "cls_attention", 0.02, 0.03, 2, 3, "variance", 4, 8)
    assert PruningRules.from_config(node) == expected
    limits = expected.limits(ReIDModel(ModelSpec("vit_tiny_patch16_224", (64, 32), 4, overrides={"depth": 2})))
    assert [limits.floor(target) for target in ("heads", "tokens", "neurons")] == [2, 3, 8]


@pytest.fixture
def open_tables(monkeypatch):
    for table in (HEAD_SCORERS, TOKEN_SCORERS):
        monkeypatch.setattr(table, "rows", dict(table.rows))


@pytest.mark.parametrize(("weighted", "kept"), [(True, [4, 3, 2]), (False, [3, 3, 3])])
def test_a_scorer_of_the_user_says_itself_whether_blocks_weigh(open_tables, model, calibration, weighted, kept):
    # With a growth of 1 per block, the best head of an upper block outweighs those below.
    equal = [torch.tensor([1.0, 0.9, 0.2, 0.1])] * 3
    HEAD_SCORERS.register("equal", lambda *_: equal, weighted=weighted)
    carry_out(model, cuts(Stage("heads", 0.25))[0], PruningRules("equal", layer_growth=1.0), calibration)
    assert current_plan(model).heads_per_block == kept


@pytest.mark.parametrize(
    "scores", [[], [torch.rand(4)] * 2, [torch.rand(5)] * 3, [torch.rand(4, 1)] * 3, [[1.0] * 4] * 3]
)
def test_scores_of_another_shape_are_refused(open_tables, model, calibration, scores):
    HEAD_SCORERS.register("odd", lambda *_: scores)
    with pytest.raises(RunError, match=r"head scorer 'odd' must give one tensor per block with \[4, 4, 4\] scores"):
        plan_cut(model, cuts(Stage("heads", 0.5))[0], PruningRules(head_scorer="odd"), calibration)
