"""Plans of given rates without data, for measuring what a structure costs.

How a saving is spread decides what it is worth, so the plans follow those that AMG makes of trained networks (the
Market-1501 dev split's, docs/results/): later blocks lose more than early ones, and the kept positions of a block are,
by and large, those in the middle of the image, in every block the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from amg_plugin.errors import InputError
from amg_plugin.pruning.plan import PruningPlan

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
    removed_heads = _spread(dense.num_heads, head_rate, "heads")
    removed_tokens = _spread([dense.num_patches] * dense.depth, token_rate, "tokens")
    middle = sorted(range(dense.num_patches), key=lambda place: (_distance(place, rows, columns), place))
    return dense.narrow(
        heads=[range(total - gone) for total, gone in zip(dense.num_heads, removed_heads, strict=True)],
        tokens=[sorted(middle[: dense.num_patches - gone]) for gone in removed_tokens],
    )


def _distance(place: int, rows: int, columns: int) -> float:
    """From the middle of the image, each direction relative to its extent."""
    row, column = divmod(place, columns)
    return ((row + 0.5) / rows - 0.5) ** 2 + ((column + 0.5) / columns - 0.5) ** 2


def _spread(totals: Sequence[int], rate: float, what: str) -> list[int]:
    """How many go per block: rising with depth, at least one left, exact in total."""
    if not 0 <= rate < 1:
        raise InputError(f"The rate {rate} of {what} is impossible; allowed: at least 0 and less than 1.")
    count, depth = int(rate * sum(totals) + 1e-9), len(totals)
    if count > sum(totals) - depth:
        raise InputError(f"The rate {rate} of {what} would leave a block without any.")
    weights = [FIRST_BLOCK + (LAST_BLOCK - FIRST_BLOCK) * block / max(depth - 1, 1) for block in range(depth)]
    gone = [0] * depth
    for _ in range(count):
        # The block that is furthest behind its share is next.
        behind = [
            (weights[block] * total * rate - gone[block], block)
            for block, total in enumerate(totals)
            if gone[block] < total - 1
        ]
        gone[max(behind)[1]] += 1
    return gone
