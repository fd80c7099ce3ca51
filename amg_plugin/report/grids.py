"""What blocks keep and look at, on the grid of patches: paths of small drawings, which the page puts into SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from amg_plugin.plots.attention import group_edges, group_numbers, kept_tokens
from amg_plugin.pruning import PruningPlan

#: Colours of a map, each one path: what lies between two is not told apart on a page.
LEVELS = 24


def shades() -> list[str]:
    """Colours of growing values (viridis), readable with any colour vision."""
    return [to_hex(colour) for colour in mpl.colormaps["viridis"](np.linspace(0, 1, LEVELS))]


def area(cells: np.ndarray) -> str:
    """A path around the true cells of a bool ``[rows, columns]``, a cell being 1 x 1."""
    parts = []
    for row, line in enumerate(cells):
        ends = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
        parts += [
            f"M{start} {row}h{end - start}v1h{start - end}z" for start, end in zip(*[iter(ends)] * 2, strict=True)
        ]
    return "".join(parts)


def borders(numbers: np.ndarray) -> str:
    """A path around the groups of several patches; ``numbers`` ``[rows, columns]`` are those of the tokens."""
    beside, below = group_edges(numbers)
    down = [f"M{x + 1} {y}v1" for y, x in np.argwhere(beside)]
    return "".join(down + [f"M{x} {y + 1}h1" for y, x in np.argwhere(below)])


def heat(values: Sequence[float | None], grid: Sequence[int], maximum: float) -> list[tuple[str, str]]:
    """Colours and paths of a map; cells without a value get none.

    Attention spreads over orders of magnitude, so colours follow the square root of the value.
    """
    laid_out = np.array([math.nan if value is None else float(value) for value in values]).reshape(*grid)
    there = np.isfinite(laid_out)
    shares = np.sqrt(np.clip(np.nan_to_num(laid_out) / max(maximum, 1e-12), 0, 1))
    levels = np.where(there, np.minimum((shares * LEVELS).astype(int), LEVELS - 1), -1)
    return [(colour, area(levels == level)) for level, colour in enumerate(shades()) if (levels == level).any()]


def largest(maps: Iterable[Sequence[float | None]]) -> float:
    """The largest value of some maps."""
    return max((value for values in maps for value in values if value is not None), default=0.0)


def kept_cells(plan: PruningPlan, block: int, grid: Sequence[int]) -> np.ndarray:
    """Positions that a block keeps, bool ``[rows, columns]``; merged ones count, a token stands for them."""
    kept = group_numbers(plan)[block] >= 0 if plan.groups else kept_tokens(plan)[block]
    return kept.numpy().reshape(*grid)


def outlines(plan: PruningPlan, block: int, grid: Sequence[int]) -> str:
    """A path around the patches that one token stands for; empty where nothing is merged."""
    return borders(group_numbers(plan)[block].numpy().reshape(*grid)) if plan.groups else ""
