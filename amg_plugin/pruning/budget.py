"""A share of the counted MACs as the goal of pruning, in place of rates."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from amg_plugin.errors import ConfigError
from amg_plugin.models.complexity import BlockCost, count
from amg_plugin.models.vit import backbone_of
from amg_plugin.pruning.merging import MergeRange
from amg_plugin.pruning.plan import Limits, PruningPlan
from amg_plugin.pruning.selection import removals
from amg_plugin.pruning.surgery import current_plan
from amg_plugin.registries import TARGETS
from amg_plugin.utils.tables import shares

#: Largest distance between the saving that was asked for and the counted one, as a share of the dense MACs.
TOLERANCE = 0.005
#: Order of the cuts where no schedule says it: token scores depend on what the rest of the block makes of the tokens.
CUT_ORDER = ("heads", "neurons", "tokens")
#: Balances that a preview shows: shares of heads, tokens and neurons.
PREVIEWED = tuple(
    dict(zip(TARGETS, shares, strict=True))
    for shares in (
        (0.0, 1.0, 0.0), (0.25, 0.75, 0.0), (0.5, 0.5, 0.0), (0.75, 0.25, 0.0), (1.0, 0.0, 0.0),
        (0.0, 0.5, 0.5), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5), (0.5, 0.0, 0.5), (0.0, 0.0, 1.0),
    )
)  # fmt: skip
#: Target of each cut, in order, and the share of the dense network's MACs that is to be saved after it.
Goals = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Budget:
    """What pruning has to save.

    Attributes:
        saving: Share of the dense network's counted MACs, in (0, 1).
        balance: Shares of that saving that cuts of ``"heads"``, ``"tokens"`` and ``"neurons"`` contribute; they add up
            to 1, and what is not named contributes nothing.
    """

    saving: float
    balance: Mapping[str, float]

    @property
    def shares(self) -> str:
        """The balance as text."""
        return shares(self.balance)

    def weight(self, target: str) -> float:
        """The part of the saving that ``"heads"``, ``"tokens"`` or ``"neurons"`` contribute."""
        return self.balance.get(target, 0.0)

    def steps(self, before: float) -> Goals:
        """Goals of one cut per target, in a network that saves ``before`` already."""
        steps, reached = [], 0.0
        for target in CUT_ORDER:
            if self.weight(target) > 0:
                reached += self.weight(target)
                steps.append((target, before + (self.saving - before) * min(reached, 1.0)))
        return steps


@dataclass(frozen=True)
class PlanCost:
    """Counted MACs of a network as a function of its plan, without running it.

    Attributes:
        blocks: Cost of each block.
        prefix: Tokens that are never pruned.
        rest: What does not depend on the plan: patch embedding, further branches.
        dense: MACs of the dense network.
        neurons: Hidden units of each block in the dense network, for plans that do not know them.
    """

    blocks: tuple[BlockCost, ...]
    prefix: int
    rest: int
    dense: int
    neurons: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module) -> PlanCost:
        """Take the sizes of a network, pruned or not, and count its MACs as it is."""
        backbone, plan = backbone_of(model), current_plan(model)
        blocks = tuple(BlockCost.of(block) for block in backbone.blocks)
        bare = cls(blocks, backbone.num_prefix_tokens, 0, 0, plan.num_neurons)
        rest = count(model, *model.spec.image_size)["macs"] - bare.macs(plan)
        dense = PruningPlan.dense(plan.num_heads, plan.num_patches, plan.variant)
        return replace(bare, rest=rest, dense=rest + bare.macs(dense))

    def macs(self, plan: PruningPlan) -> int:
        """MACs of the network pruned to ``plan``."""
        total = self.rest
        everything = self.prefix + plan.num_patches
        sizes = zip(plan.heads_per_block, plan.neurons_per_block or self.neurons, strict=True)
        for cost, size, tokens in zip(self.blocks, sizes, plan.tokens_per_block, strict=True):
            kept = self.prefix + tokens
            others = everything if plan.variant == "kv" else kept
            total += cost.macs(*size, others, kept, others)
        return total

    def saving(self, plan: PruningPlan) -> float:
        """Share of the dense network's MACs that ``plan`` saves."""
        return 1 - self.macs(plan) / self.dense


@dataclass(frozen=True)
class Goal:
    """The share of the dense network's MACs that has to be saved once a cut is done, and what plans cost."""

    cost: PlanCost
    saving: float


@dataclass(frozen=True)
class Choice:
    """Where pruning would end with one balance, if every block lost the same share.

    ``saving`` of the MACs and ``params`` are what the plan saves, ``meets`` says whether that is what was asked for.
    """

    balance: Mapping[str, float]
    plan: PruningPlan
    saving: float
    params: int
    meets: bool

    @classmethod
    def of(cls, plan: PruningPlan, budget: Budget, goals: Goals, limits: Limits, cost: PlanCost) -> Choice:
        """Where the goals of a budget lead from ``plan``."""
        end = expected_plan(plan, goals, limits, cost)
        params = 0
        for target, owned in (("heads", "head_params"), ("neurons", "neuron_params")):
            gone = (before - after for before, after in zip(plan.left(target), end.left(target), strict=True))
            params += sum(count * getattr(block, owned) for count, block in zip(gone, cost.blocks, strict=True))
        reached = cost.saving(end)
        return cls(budget.balance, end, reached, params, abs(reached - budget.saving) <= TOLERANCE)


def choices(plan: PruningPlan, budget: Budget, goals: Goals, limits: Limits, cost: PlanCost) -> list[Choice]:
    """What the budget would take away at several balances, to choose one before any work starts.

    ``goals`` are those of the schedule, for the budget's own balance; other balances are cut once per target.

    Returns:
        One entry per balance, the budget's own first.
    """
    before, own = cost.saving(plan), {target: budget.weight(target) for target in TARGETS}
    rows = [Choice.of(plan, budget, goals, limits, cost)]
    for balance in PREVIEWED:
        if balance != own:
            other = replace(budget, balance=balance)
            rows.append(Choice.of(plan, other, other.steps(before), limits, cost))
    return rows


def closest_cut(
    plan: PruningPlan, target: str, scores: Sequence[torch.Tensor], weight: float, limits: Limits, goal: Goal
) -> PruningPlan:
    """Remove as many heads, tokens or neurons, the first by their scores, as bring the saving closest to a goal.

    Args:
        plan: Where the network stands.
        target: ``"heads"``, ``"tokens"`` or ``"neurons"``.
        scores: Of what is left in each prunable block.
        weight: Layer growth or decay, see :mod:`amg_plugin.pruning.selection`.
        limits: What may go.
        goal: The saving.

    Returns:
        The narrower plan; if even the floors save too little, the one at the floors.
    """
    order = removals(target, scores, weight, limits)

    def after(count: int) -> PruningPlan:
        return limits.narrow(plan, target, order.kept(count))

    return closest(after, limits.removable(plan, target), goal)


def closest(after: Callable[[int], PruningPlan], most: int, goal: Goal) -> PruningPlan:
    """The plan ``after`` 0 to ``most`` removals whose saving is closest to a goal; more removals save more."""
    fewest = bisect_left(range(most), goal.saving, key=lambda count: goal.cost.saving(after(count)))
    candidates = [after(count) for count in (fewest - 1, fewest) if count >= 0]
    return min(candidates, key=lambda one: abs(goal.cost.saving(one) - goal.saving))


def closest_merge(room: MergeRange, goal: Goal) -> dict[int, int]:
    """Patch tokens that merging is to leave per block, so that the saving is closest to a goal.

    Blocks lose the same number up to one, the larger first, wherever that comes within :data:`TOLERANCE`.
    """

    def saving(pairs: int) -> float:
        return goal.cost.saving(room.outline(room.left(pairs)))

    def miss(pairs: int) -> float:
        return abs(saving(pairs) - goal.saving)

    fewest, blocks = bisect_left(range(room.most), goal.saving, key=saving), len(room.blocks)
    around = range(max(fewest - blocks, 0), min(fewest + blocks, room.most) + 1)
    best = min(filter(room.is_orderly, around), key=miss)
    return room.left(best if miss(best) <= TOLERANCE else min(around, key=miss))


def expected_plan(plan: PruningPlan, goals: Goals, limits: Limits, cost: PlanCost) -> PruningPlan:
    """Where pruning would end if every block lost the same share, which is not known before the blocks are scored."""
    for target, saving in goals:
        if target == "tokens" and plan.variant == "merge":
            room = MergeRange(plan, limits)
            plan = room.outline(closest_merge(room, Goal(cost, saving)))
            continue
        # Ranks relative to the size of the block spread removals evenly; heads go from the largest, others from the
        # smallest score.
        scores = [torch.arange(1, left + 1, dtype=torch.float64) / left for left in limits.left(plan, target)]
        plan = closest_cut(plan, target, scores, 0.0, limits, Goal(cost, saving))
    return plan


def check_budget(plan: PruningPlan, budget: Budget, goals: Goals, limits: Limits, cost: PlanCost) -> PruningPlan:
    """Check before any work starts that a budget can be met.

    Returns:
        The plan of :func:`expected_plan`.

    Raises:
        ConfigError: If the network saves as much already, the floors leave too little to remove, or one head or group
            of neurons is too coarse a step.
    """
    before = cost.saving(plan)
    if before >= budget.saving - TOLERANCE:
        raise ConfigError(
            f"amg.target_macs_saving {budget.saving:g} counts from the dense model, of whose MACs this model saves "
            f"{before:.3f} already; a larger target is needed."
        )
    end = expected_plan(plan, goals, limits, cost)
    reached = cost.saving(end)
    if abs(reached - budget.saving) > TOLERANCE:
        raise ConfigError(
            f"amg.target_macs_saving {budget.saving:g} cannot be met with amg.balance {budget.shares}: the nearest is "
            f"{reached:.3f}; 'amg-reid prune --preview' shows what other balances would save."
        )
    return end
