"""Plans of given rates without data, for measuring what a structure costs.

How a saving is spread decides what it is worth, so the plans follow those that AMG makes of trained networks (the
Market-1501 dev split's, docs/results/): later blocks lose more than early ones, and the kept positions of a block are,
by and large, those in the middle of the image, in every block the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from amg_plugin.errors import InputError
from amg_plugin.pruning.budget import Goal, Goals, PlanCost, closest
from amg_plugin.pruning.plan import Limits, PruningPlan
from amg_plugin.pruning.selection import removal_count

# Share that the first and the last block lose, relative to the rate; linear in between.
_FIRST_BLOCK, _LAST_BLOCK = 0.3, 1.7


def example_plan(dense: PruningPlan, grid: tuple[int, int], head_rate: float, token_rate: float) -> PruningPlan:
    """A plan with exact totals.

    Args:
        dense: The plan of the dense network; its variant counts.
        grid: (rows, columns) of patches.
        head_rate: Share of all heads to remove, in [0, 1).
        token_rate: Share of all (block, position) pairs to remove, in [0, 1).

    Raises:
        InputError: If a rate is outside [0, 1), or would empty a block.
    """
    rows, columns = grid
    if rows * columns != dense.num_patches:
        raise InputError(f"A grid of {rows}x{columns} patches does not fit {dense.num_patches} patches.")
    plan, limits = dense, Limits(range(dense.depth))
    for target, rate in (("heads", head_rate), ("tokens", token_rate)):
        total = limits.dense(dense, target)
        if not 0 <= rate < 1:
            raise InputError(f"The rate {rate} of {target} is impossible; allowed: at least 0 and less than 1.")
        if (count := removal_count(rate, total)) > total - dense.depth:
            raise InputError(f"The rate {rate} of {target} would leave a block without any.")
        plan = example_cut(plan, grid, target, limits, count)
    return plan


def example_cut(plan: PruningPlan, grid: tuple[int, int], target: str, limits: Limits, count: int) -> PruningPlan:
    """Take away a number of heads or (block, position) pairs, spread as in :func:`example_plan`."""
    left = limits.left(plan, target)
    chosen = []
    for block, total, gone in zip(limits.blocks, left, _spread(left, count, limits.floor(target)), strict=True):
        order = list(range(total))
        if target == "tokens":
            order.sort(key=lambda index, places=plan.tokens[block]: (_distance(places[index], *grid), places[index]))
        chosen.append(sorted(order[: total - gone]))
    return limits.narrow(plan, target, chosen)


def example_for_budget(
    plan: PruningPlan, grid: tuple[int, int], goals: Goals, limits: Limits, cost: PlanCost
) -> PruningPlan:
    """The plan, spread as in :func:`example_plan`, whose saving of MACs is closest to the last of some goals."""
    for target, saving in goals:
        after = partial(example_cut, plan, grid, target, limits)
        plan = closest(after, limits.removable(plan, target), Goal(cost, saving))
    return plan


def _distance(place: int, rows: int, columns: int) -> float:
    """From the middle of the image, each direction relative to its extent."""
    row, column = divmod(place, columns)
    return ((row + 0.5) / rows - 0.5) ** 2 + ((column + 0.5) / columns - 0.5) ** 2


def _spread(totals: Sequence[int], count: int, floor: int) -> list[int]:
    """How many go per block: rising with depth, exact in total."""
    depth, rate = len(totals), count / sum(totals)
    weights = [_FIRST_BLOCK + (_LAST_BLOCK - _FIRST_BLOCK) * block / max(depth - 1, 1) for block in range(depth)]
    gone = [0] * depth
    for _ in range(count):
        # The block that is furthest behind its share is next.
        behind = [
            (weights[block] * total * rate - gone[block], block)
            for block, total in enumerate(totals)
            if gone[block] < total - floor
        ]
        gone[max(behind)[1]] += 1
    return gone
