"""One cut: score, select, narrow the plan, operate."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor, nn
from yacs.config import CfgNode

from amg_plugin.errors import RunError
from amg_plugin.pruning.budget import Goal, closest_cut, narrowed
from amg_plugin.pruning.plan import PruningPlan
from amg_plugin.pruning.schedule import Cut
from amg_plugin.pruning.scorers import Calibration
from amg_plugin.pruning.selection import select_heads, select_tokens
from amg_plugin.pruning.surgery import apply_plan, current_plan, prunable_blocks
from amg_plugin.registries import HEAD_SCORERS, TOKEN_SCORERS, ScorerRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningRules:
    """How scores become choices.

    Attributes:
        head_scorer: A registered head scorer.
        token_scorer: A registered token scorer.
        layer_growth: Weight growth per block of head scores (g), for scorers that are weighted.
        layer_decay: Weight decay per block of token scores (d), for scorers that are weighted.
        min_heads: Heads that every block keeps.
        min_tokens: Patch tokens that every block keeps.
    """

    head_scorer: str = "amg"
    token_scorer: str = "amg"
    layer_growth: float = 0.005
    layer_decay: float = 0.015
    min_heads: int = 1
    min_tokens: int = 1

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
        )

    @property
    def floors(self) -> dict[str, int]:
        """What every block keeps."""
        return {"heads": self.min_heads, "tokens": self.min_tokens}

    def scorer(self, target: str) -> ScorerRow:
        """The scorer of ``"heads"`` or ``"tokens"``."""
        return HEAD_SCORERS.row(self.head_scorer) if target == "heads" else TOKEN_SCORERS.row(self.token_scorer)

    def weight(self, target: str) -> float:
        """Growth or decay per block that applies to the scorer of ``"heads"`` or ``"tokens"``."""
        weight = self.layer_growth if target == "heads" else self.layer_decay
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
    plan, blocks, target = current_plan(model), prunable_blocks(model), cut.target
    left = [plan.left(target)[block] for block in blocks]
    dense = sum(plan.num_heads[block] if target == "heads" else plan.num_patches for block in blocks)
    count = cut.removed_after(dense) - (dense - sum(left))
    if (count <= 0) if goal is None else (goal.cost.saving(plan) >= goal.saving):
        return plan
    scores = _scores(model, target, rules, calibration, left, blocks)
    weight, floor = rules.weight(target), rules.floors[target]
    if goal is not None:
        return closest_cut(plan, target, blocks, scores, weight=weight, floor=floor, goal=goal)
    logger.debug("%d %s chosen for removal", count, target)
    select = select_heads if target == "heads" else select_tokens
    return narrowed(plan, target, blocks, select(scores, count, weight, floor))


def _scores(
    model: nn.Module, target: str, rules: PruningRules, calibration: Calibration, sizes: list[int], blocks: list[int]
) -> list[Tensor]:
    """Scores of the heads or tokens that are left, per block; scorers may be a user's."""
    table = HEAD_SCORERS if target == "heads" else TOKEN_SCORERS
    name = rules.scorer(target).name
    scores = table.load(name)(model, calibration, blocks)
    if [getattr(values, "shape", None) for values in scores] != [(size,) for size in sizes]:
        raise RunError(f"The {table.kind} '{name}' must give one tensor per block with {sizes} scores of its {target}.")
    return scores


def carry_out(
    model: nn.Module, cut: Cut, rules: PruningRules, calibration: Calibration, goal: Goal | None = None
) -> PruningPlan:
    """Score, select and prune ``model`` in place; arguments as :func:`plan_cut`; returns the new plan."""
    plan = plan_cut(model, cut, rules, calibration, goal)
    apply_plan(model, plan)
    return plan
