"""Plans of given rates without data, for measuring what a structure costs.

How a saving is spread decides what it is worth, so the plans follow those that AMG makes of trained networks (the
Market-1501 dev split's, docs/results/): later blocks lose more than early ones, and the kept positions of a block are,
by and large, those in the middle of the image, in every block the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amg_plugin.errors import InputError
from amg_plugin.pruning.budget import FLOORS, Goal, PlanCost, closest, narrowed
from amg_plugin.pruning.plan import PruningPlan
from amg_plugin.pruning.selection import removal_count

#: Share that the first and the last block lose, relative to the rate; linear in between.
FIRST_BLOCK, LAST_BLOCK = 0.3, 1.7


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
    counts = [
        _count(head_rate, sum(dense.num_heads), dense.depth, "heads"),
        _count(token_rate, dense.num_patches * dense.depth, dense.depth, "tokens"),
    ]
    plan, blocks = dense, range(dense.depth)
    for target, count in zip(("heads", "tokens"), counts, strict=True):
        plan = example_cut(plan, grid, target, blocks, count)
    return plan


def example_cut(
    plan: PruningPlan, grid: tuple[int, int], target: str, blocks: Sequence[int], count: int, floor: int = 1
) -> PruningPlan:
    """Take away a number of heads or (block, position) pairs, spread as in :func:`example_plan`.

    Args:
        plan: Where the network stands.
        grid: (rows, columns) of patches.
        target: ``"heads"`` or ``"tokens"``.
        blocks: Numbers of the prunable blocks.
        count: How many go; no more than the floor allows.
        floor: What every block keeps.
    """
    kept = plan.left(target)
    left = [kept[block] for block in blocks]
    chosen = []
    for block, total, gone in zip(blocks, left, _spread(left, count, floor), strict=True):
        order = list(range(total))
        if target == "tokens":
            order.sort(key=lambda index, places=plan.tokens[block]: (_distance(places[index], *grid), places[index]))
        chosen.append(sorted(order[: total - gone]))
    return narrowed(plan, target, blocks, chosen)


def example_for_budget(
    plan: PruningPlan,
    grid: tuple[int, int],
    steps: Sequence[tuple[str, float]],
    blocks: Sequence[int],
    cost: PlanCost,
    floors: Mapping[str, int] = FLOORS,
) -> PruningPlan:
    """A plan that saves a share of the MACs, spread as in :func:`example_plan`.

    Args:
        plan: Where the network stands.
        grid: (rows, columns) of patches.
        steps: Targets, and the share of the dense network's MACs that is to be saved after each.
        blocks: Numbers of the prunable blocks.
        cost: Of the network.
        floors: Heads and patch tokens that every block keeps.

    Returns:
        The plan whose saving is closest to the last step's.
    """
    for target, saving in steps:
        kept, floor = plan.left(target), floors[target]
        most = sum(max(kept[block] - floor, 0) for block in blocks)

        def after(count: int, plan: PruningPlan = plan, target: str = target, floor: int = floor) -> PruningPlan:
            return example_cut(plan, grid, target, blocks, count, floor)

        plan = closest(after, most, Goal(cost, saving))
    return plan


def _distance(place: int, rows: int, columns: int) -> float:
    """From the middle of the image, each direction relative to its extent."""
    row, column = divmod(place, columns)
    return ((row + 0.5) / rows - 0.5) ** 2 + ((column + 0.5) / columns - 0.5) ** 2


def _count(rate: float, total: int, depth: int, what: str) -> int:
    """How many a rate stands for."""
    if not 0 <= rate < 1:
        raise InputError(f"The rate {rate} of {what} is impossible; allowed: at least 0 and less than 1.")
    if (count := removal_count(rate, total)) > total - depth:
        raise InputError(f"The rate {rate} of {what} would leave a block without any.")
    return count


def _spread(totals: Sequence[int], count: int, floor: int) -> list[int]:
    """How many go per block: rising with depth, exact in total."""
    depth, rate = len(totals), count / sum(totals)
    weights = [FIRST_BLOCK + (LAST_BLOCK - FIRST_BLOCK) * block / max(depth - 1, 1) for block in range(depth)]
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
