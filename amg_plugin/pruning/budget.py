"""A share of the counted MACs as the goal of pruning, in place of rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from amg_plugin.errors import ConfigError
from amg_plugin.models.complexity import BlockCost
from amg_plugin.models.vit import backbone_of
from amg_plugin.pruning.plan import PruningPlan
from amg_plugin.pruning.selection import select_heads, select_tokens
from amg_plugin.pruning.surgery import current_plan

#: Largest distance between the saving that was asked for and the counted one, as a share of the dense MACs.
TOLERANCE = 0.005
#: What every block keeps, where nobody asks for more.
FLOORS = {"heads": 1, "tokens": 1}
#: Balances that a preview shows.
PREVIEWED = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Budget:
    """What pruning has to save.

    Attributes:
        saving: Share of the dense network's counted MACs, in (0, 1).
        balance: Share of that saving that cuts of heads contribute, in [0, 1]; cuts of tokens contribute the rest.
    """

    saving: float
    balance: float

    def weight(self, target: str) -> float:
        """The part of the saving that ``"heads"`` or ``"tokens"`` contribute."""
        return self.balance if target == "heads" else 1 - self.balance


@dataclass(frozen=True)
class PlanCost:
    """Counted MACs of a network as a function of its plan, without running it.

    Attributes:
        blocks: Cost of each block.
        prefix: Tokens that are never pruned.
        rest: What does not depend on the plan: patch embedding, further branches.
        dense: MACs of the dense network.
    """

    blocks: tuple[BlockCost, ...]
    prefix: int
    rest: int
    dense: int

    @classmethod
    def of(cls, model: nn.Module, counted: int) -> PlanCost:
        """Take the sizes of a network.

        Args:
            model: The network, pruned or not.
            counted: Its MACs as it is, by :func:`amg_plugin.models.complexity.count`.
        """
        backbone, plan = backbone_of(model), current_plan(model)
        blocks = tuple(BlockCost.of(block) for block in backbone.blocks)
        bare = cls(blocks, backbone.num_prefix_tokens, 0, 0)
        rest = counted - bare.macs(plan)
        dense = PruningPlan.dense(plan.num_heads, plan.num_patches, plan.variant)
        return replace(bare, rest=rest, dense=rest + bare.macs(dense))

    def macs(self, plan: PruningPlan) -> int:
        """MACs of the network pruned to ``plan``."""
        total = self.rest
        everything = self.prefix + plan.num_patches
        for cost, heads, tokens in zip(self.blocks, plan.heads_per_block, plan.tokens_per_block, strict=True):
            kept = self.prefix + tokens
            others = kept if plan.variant == "block" else everything
            total += cost.macs(heads, others, kept, others)
        return total

    def saving(self, plan: PruningPlan) -> float:
        """Share of the dense network's MACs that ``plan`` saves."""
        return 1 - self.macs(plan) / self.dense


@dataclass(frozen=True)
class Goal:
    """What one cut has to reach.

    Attributes:
        cost: Of the network.
        saving: Share of the dense network's MACs that has to be saved once the cut is done.
    """

    cost: PlanCost
    saving: float


@dataclass(frozen=True)
class Choice:
    """What one balance would come to, if every block lost the same share.

    Attributes:
        balance: Share of the saving that heads contribute.
        plan: Where pruning would end.
        saving: Share of the MACs that it saves.
        params: Parameters that it saves.
        meets: Whether the saving is the one that was asked for.
    """

    balance: float
    plan: PruningPlan
    saving: float
    params: int
    meets: bool


def choices(
    plan: PruningPlan,
    budget: Budget,
    goals: Sequence[tuple[str, float]],
    blocks: Sequence[int],
    cost: PlanCost,
    floors: Mapping[str, int] = FLOORS,
) -> list[Choice]:
    """What the budget would take away at several balances, to choose one before any work starts.

    Args:
        plan: Where the network stands.
        budget: What was asked for.
        goals: Target and saving after each cut of the schedule, for the budget's own balance; other balances are cut
            once per target.
        blocks: Numbers of the prunable blocks.
        cost: Of the network.
        floors: Heads and patch tokens that every block keeps.

    Returns:
        One entry per balance, ascending, the budget's own among them.
    """
    before, rows = cost.saving(plan), []
    for balance in sorted({*PREVIEWED, budget.balance}):
        steps = [("heads", before + (budget.saving - before) * balance), ("tokens", budget.saving)]
        steps = [step for step, weight in zip(steps, (balance, 1 - balance), strict=True) if weight > 0]
        chosen = goals if balance == budget.balance else steps
        end = expected_plan(plan, chosen, blocks, cost, floors)
        gone = [a - b for a, b in zip(plan.heads_per_block, end.heads_per_block, strict=True)]
        params = sum(count * block.head_params for count, block in zip(gone, cost.blocks, strict=True))
        reached = cost.saving(end)
        rows.append(Choice(balance, end, reached, params, abs(reached - budget.saving) <= TOLERANCE))
    return rows


def closest_cut(
    plan: PruningPlan,
    target: str,
    blocks: Sequence[int],
    scores: Sequence[torch.Tensor],
    *,
    weight: float,
    floor: int,
    goal: Goal,
) -> PruningPlan:
    """Remove as many heads or tokens, the first by their scores, as bring the saving closest to a goal.

    Args:
        plan: Where the network stands.
        target: ``"heads"`` or ``"tokens"``.
        blocks: Numbers of the prunable blocks.
        scores: Of what is left in each of them.
        weight: Layer growth or decay, see :mod:`amg_plugin.pruning.selection`.
        floor: Heads or tokens that every block keeps.
        goal: The saving.

    Returns:
        The narrower plan; if even the floors save too little, the one at the floors.
    """

    def after(count: int) -> PruningPlan:
        select = select_heads if target == "heads" else select_tokens
        return narrowed(plan, target, blocks, select(scores, count, weight, floor))

    kept = plan.left(target)
    return closest(after, sum(max(kept[block] - floor, 0) for block in blocks), goal)


def closest(after: Callable[[int], PruningPlan], most: int, goal: Goal) -> PruningPlan:
    """The plan whose saving is closest to a goal, of those that a number of removals leads to.

    Args:
        after: Gives the plan after so many removals; more of them save more.
        most: Largest number.
        goal: The saving.
    """
    low, high = 0, most
    while low < high:  # the fewest removals that reach the goal
        middle = (low + high) // 2
        if goal.cost.saving(after(middle)) < goal.saving:
            low = middle + 1
        else:
            high = middle
    candidates = [after(count) for count in (low - 1, low) if count >= 0]
    return min(candidates, key=lambda one: abs(goal.cost.saving(one) - goal.saving))


def narrowed(plan: PruningPlan, target: str, blocks: Sequence[int], chosen: Sequence[Sequence[int]]) -> PruningPlan:
    """``plan`` with a choice for some of the blocks.

    Args:
        plan: Where the network stands.
        target: ``"heads"`` or ``"tokens"``.
        blocks: The blocks that were chosen for.
        chosen: Per entry of ``blocks``, what to keep, as indices into what is left.
    """
    complete: list[Sequence[int]] = [range(size) for size in plan.left(target)]
    for block, choice in zip(blocks, chosen, strict=True):
        complete[block] = choice
    return plan.narrow(**{target: complete})


def expected_plan(
    plan: PruningPlan,
    goals: Sequence[tuple[str, float]],
    blocks: Sequence[int],
    cost: PlanCost,
    floors: Mapping[str, int] = FLOORS,
) -> PruningPlan:
    """Where pruning would end if every block lost the same share, which is not known before the blocks are scored.

    Args:
        plan: Where the network stands.
        goals: Target and saving after each cut, in order.
        blocks: Numbers of the prunable blocks.
        cost: Of the network.
        floors: Heads and patch tokens that every block keeps.
    """
    for target, saving in goals:
        kept = plan.left(target)
        # Ranks relative to the size of the block spread removals evenly; heads go from the largest, tokens from the
        # smallest score.
        scores = [torch.arange(1, kept[block] + 1, dtype=torch.float64) / kept[block] for block in blocks]
        plan = closest_cut(plan, target, blocks, scores, weight=0.0, floor=floors[target], goal=Goal(cost, saving))
    return plan


def check_budget(
    plan: PruningPlan,
    budget: Budget,
    goals: Sequence[tuple[str, float]],
    blocks: Sequence[int],
    cost: PlanCost,
    floors: Mapping[str, int] = FLOORS,
) -> PruningPlan:
    """Check before any work starts that a budget can be met.

    Returns:
        The plan of :func:`expected_plan`.

    Raises:
        ConfigError: If the network saves as much already, the floors leave too little to remove, or one head is too
            coarse a step.
    """
    before = cost.saving(plan)
    if before >= budget.saving - TOLERANCE:
        raise ConfigError(
            f"amg.target_macs_saving {budget.saving:g} counts from the dense model, of whose MACs this model saves "
            f"{before:.3f} already; a larger target is needed."
        )
    end = expected_plan(plan, goals, blocks, cost, floors)
    reached = cost.saving(end)
    if abs(reached - budget.saving) > TOLERANCE:
        raise ConfigError(
            f"amg.target_macs_saving {budget.saving:g} cannot be met with amg.head_token_balance {budget.balance:g}: "
            f"the nearest is {reached:.3f}; 'amg-reid prune --preview' shows what other balances would save."
        )
    return end
