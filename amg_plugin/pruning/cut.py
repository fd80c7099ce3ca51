"""One cut: score, select, narrow the plan, operate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode

from amg_plugin.errors import RunError
from amg_plugin.pruning.budget import Goal, closest_cut, closest_merge
from amg_plugin.pruning.merge_pass import merged_plan
from amg_plugin.pruning.merging import MergeRange
from amg_plugin.pruning.plan import Limits, PruningPlan
from amg_plugin.pruning.schedule import Cut
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.selection import removals
from amg_plugin.pruning.streams import Repair, prune_and_repair
from amg_plugin.pruning.surgery import apply_plan, current_plan, prunable_blocks
from amg_plugin.registries import HEAD_SCORERS, NEURON_SCORERS, TOKEN_SCORERS, ScorerRow

_SCORERS = {"heads": HEAD_SCORERS, "tokens": TOKEN_SCORERS, "neurons": NEURON_SCORERS}


@dataclass(frozen=True)
class PruningRules:
    """How scores become choices.

    Attributes:
        head_scorer, token_scorer, neuron_scorer: Names of registered scorers.
        layer_growth, layer_decay: Growth of head scores (g) and decay of token scores (d) per block, for scorers that
            are weighted.
        min_heads, min_tokens, min_neurons: What every block keeps.
        neuron_multiple: A block that loses neurons keeps a multiple of this many.
    """

    head_scorer: str = "amg"
    token_scorer: str = "amg"
    layer_growth: float = 0.005
    layer_decay: float = 0.015
    min_heads: int = 1
    min_tokens: int = 1
    neuron_scorer: str = "taylor"
    min_neurons: int = 1
    neuron_multiple: int = 1

    @classmethod
    def from_config(cls, amg: CfgNode) -> PruningRules:
        """Read the ``amg`` configuration node."""
        return cls(
            head_scorer=amg.head_scorer,
            token_scorer=amg.token_scorer,
            layer_growth=amg.layer_growth,
            layer_decay=amg.layer_decay,
            min_heads=amg.min_heads_per_block,
            min_tokens=amg.min_tokens_per_block,
            neuron_scorer=amg.neuron_scorer,
            min_neurons=amg.min_neurons_per_block,
            neuron_multiple=amg.neuron_multiple,
        )

    def limits(self, model: nn.Module) -> Limits:
        """What may go from a network."""
        floors = (self.min_heads, self.min_tokens, self.min_neurons)
        return Limits(prunable_blocks(model), *floors, self.neuron_multiple)

    def scorer(self, target: str) -> ScorerRow:
        """The scorer of ``"heads"``, ``"tokens"`` or ``"neurons"``."""
        return _SCORERS[target].row(getattr(self, f"{target.removesuffix('s')}_scorer"))

    def weight(self, target: str) -> float:
        """Growth or decay per block that applies to the scorer of ``"heads"``, ``"tokens"`` or ``"neurons"``."""
        weight = {"heads": self.layer_growth, "tokens": self.layer_decay}.get(target, 0.0)
        return weight if self.scorer(target).weighted else 0.0


def plan_cut(
    model: nn.Module, cut: Cut, rules: PruningRules, calibration: Calibration, goal: Goal | None = None
) -> PruningPlan:
    """Score the model and choose what ``cut`` removes; the model stays as it is.

    Args:
        model: The network.
        cut: What is removed.
        rules: How scores become choices.
        calibration: What a scorer may run.
        goal: The saving to reach, where a budget decides and not the rates of ``cut``.

    Returns:
        The narrower plan; the same plan if nothing is left to remove.
    """
    plan, limits, target = current_plan(model), rules.limits(model), cut.target
    left, dense = limits.left(plan, target), limits.dense(plan, target)
    count = cut.removed_after(dense) - (dense - sum(left))
    if (count <= 0) if goal is None else (goal.cost.saving(plan) >= goal.saving):
        return plan
    table, weight = _SCORERS[target], rules.weight(target)
    name = rules.scorer(target).name
    scores = table.load(name)(model, calibration, limits.blocks)
    if [getattr(values, "shape", None) for values in scores] != [(size,) for size in left]:  # of a user, perhaps
        raise RunError(f"The {table.kind} '{name}' must give one tensor per block with {left} scores of its {target}.")
    for block, values in zip(limits.blocks, scores, strict=True):
        if not torch.isfinite(values).all():
            raise RunError(f"The {table.kind} '{name}' gave NaN or infinity for the {target} of block {block}.")
    if target == "tokens" and plan.variant == "merge":
        room = MergeRange(plan, limits)
        kept = room.nearest(cut.removed_after(dense)) if goal is None else closest_merge(room, goal)
        return merged_plan(model, calibration, dict(zip(limits.blocks, scores, strict=True)), kept)
    if goal is not None:
        return closest_cut(plan, target, scores, weight, limits, goal)
    return limits.narrow(plan, target, removals(target, scores, weight, limits).kept(count))


def carry_out(
    model: nn.Module,
    cut: Cut,
    rules: PruningRules,
    calibration: Calibration,
    goal: Goal | None = None,
    repair: Repair | None = None,
    plain: Calibration | None = None,
) -> PruningPlan:
    """Score, select, prune ``model`` in place and repair it.

    Arguments as :func:`plan_cut`; ``repair`` says how to repair, None: not at all, with the images of ``plain``
    (``calibration`` if omitted). Returns the new plan.
    """
    plan = plan_cut(model, cut, rules, calibration, goal)
    if repair is None or repair.kind == "none" or plan == current_plan(model):
        apply_plan(model, plan)
    else:
        plain = plain or calibration
        prune_and_repair(model, plan, repair, plain.batches(), plain.forward, plain.reduce)
    return current_plan(model)
