"""Plans of given rates without data, for measuring what a structure costs.

How a saving is spread decides what it is worth, so the plans follow those that AMG makes of trained networks (the
Market-1501 dev split's, docs/results/): later blocks lose more than early ones, and the kept positions of a block are,
by and large, those in the middle of the image, in every block the same ones. Merged tokens are neighbours.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from amg_plugin.errors import InputError
from amg_plugin.pruning.budget import Goal, Goals, PlanCost, closest, closest_merge
from amg_plugin.pruning.merging import MergeRange, Tokens, choose_pairs, merge_costs
from amg_plugin.pruning.plan import Limits, PruningPlan
from amg_plugin.pruning.selection import removal_count

# Share that the first and the last block lose, relative to the rate; linear in between.
_FIRST_BLOCK, _LAST_BLOCK = 0.3, 1.7


def example_plan(dense: PruningPlan, grid: tuple[int, int], rates: Mapping[str, float]) -> PruningPlan:
    """A plan with exact totals.

    Args:
        dense: The plan of the dense network; its variant counts.
        grid: (rows, columns) of patches.
        rates: Shares of all ``"heads"``, (block, position) pairs (``"tokens"``) and ``"neurons"`` to remove, in [0, 1).

    Raises:
        InputError: If a rate is outside [0, 1), or would empty a block.
    """
    rows, columns = grid
    if rows * columns != dense.num_patches:
        raise InputError(f"A grid of {rows}x{columns} patches does not fit {dense.num_patches} patches.")
    plan, limits = dense, Limits(range(dense.depth))
    for target, rate in rates.items():
        total = limits.dense(dense, target)
        if not 0 <= rate < 1:
            raise InputError(f"The rate {rate} of {target} is impossible; allowed: at least 0 and less than 1.")
        count, most = removal_count(rate, total), total - dense.depth
        if target == "tokens" and dense.variant == "merge":
            most = _most_merged(plan, limits)
        if count > most:
            raise InputError(
                f"The rate {rate} of {target} would leave a block without any; up to {most / total:.3f} can go."
            )
        plan = example_cut(plan, grid, target, limits, count)
    return plan


def example_cut(plan: PruningPlan, grid: tuple[int, int], target: str, limits: Limits, count: int) -> PruningPlan:
    """Take away a number of heads, (block, position) pairs or neurons, spread as in :func:`example_plan`."""
    if target == "tokens" and plan.variant == "merge":
        gone = limits.dense(plan, target) - sum(limits.left(plan, target))
        return _merged(plan, grid, MergeRange(plan, limits).nearest(gone + count))
    left, step = limits.left(plan, target), limits.step(target)
    chosen = []
    for block, total, gone in zip(limits.blocks, left, _spread(left, count, limits.floor(target)), strict=True):
        kept = min(-(-(total - gone) // step) * step, total)
        order = list(range(total))
        if target == "tokens":
            order.sort(key=lambda index, places=plan.tokens[block]: (_distance(places[index], *grid), places[index]))
        chosen.append(sorted(order[:kept]))
    return limits.narrow(plan, target, chosen)


def example_for_budget(
    plan: PruningPlan, grid: tuple[int, int], goals: Goals, limits: Limits, cost: PlanCost
) -> PruningPlan:
    """The plan, spread as in :func:`example_plan`, whose saving of MACs is closest to the last of some goals."""
    for target, saving in goals:
        if target == "tokens" and plan.variant == "merge":
            plan = _merged(plan, grid, closest_merge(MergeRange(plan, limits), Goal(cost, saving)))
            continue
        after = partial(example_cut, plan, grid, target, limits)
        plan = closest(after, limits.removable(plan, target), Goal(cost, saving))
    return plan


def _most_merged(plan: PruningPlan, limits: Limits) -> int:
    """(block, position) pairs that merging can remove, counted from the dense model."""
    room = MergeRange(plan, limits)
    return room.removed(room.most)


def _merged(plan: PruningPlan, grid: tuple[int, int], left: Mapping[int, int]) -> PruningPlan:
    """Merge neighbours: Ward's criterion on the places of the patches in the image."""
    rows, columns = grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    found = [tokens := Tokens.all(plan.num_patches)] * plan.depth
    for block in sorted(left):
        current = Tokens(plan.tokens[block], plan.groups_of(block))
        tokens = current.coarsened(tokens, current.sizes)
        centres = torch.stack([places[list(group)].mean(0) for group in tokens.groups])
        sizes = tokens.sizes
        costs = merge_costs(torch.cdist(centres, centres).square(), sizes, sizes)
        tokens = found[block] = tokens.joined(choose_pairs(costs, sizes, len(tokens.groups) - left[block]))
    return plan.merge([one.positions for one in found], [one.groups for one in found])


def _distance(place: int, rows: int, columns: int) -> float:
    """From the middle of the image, each direction relative to its extent."""
    row, column = divmod(place, columns)
    return ((row + 0.5) / rows - 0.5) ** 2 + ((column + 0.5) / columns - 0.5) ** 2


def _spread(totals: Sequence[int], count: int, floor: int) -> list[int]:
    """How many go per block: rising with depth, exact in total."""
    depth, rate = len(totals), count / sum(totals)
    weights = [_FIRST_BLOCK + (_LAST_BLOCK - _FIRST_BLOCK) * block / max(depth - 1, 1) for block in range(depth)]
    gone = [0] * depth
    # The block that is furthest behind its share is next.
    behind = [(-weights[block] * total * rate, -block) for block, total in enumerate(totals) if total > floor]
    heapq.heapify(behind)
    for _ in range(count):
        block = -behind[0][1]
        gone[block] += 1
        if gone[block] < totals[block] - floor:
            heapq.heapreplace(behind, (gone[block] - weights[block] * totals[block] * rate, -block))
        else:
            heapq.heappop(behind)
    return gone
