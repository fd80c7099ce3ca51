"""Paths of what is kept, merged and attended to."""

import numpy as np
import pytest

from amg_plugin.pruning import PruningPlan
from amg_plugin.report import grids

GRID = (4, 2)
PRUNED = PruningPlan("block", [3, 3], 8, [[0], [1]], [range(8), [2, 3, 4]])
MERGED = PruningPlan.dense([3, 3], 8, "merge").merge(
    [range(8), [0, 3, 4]], [[[n] for n in range(8)], [[0, 1, 2], [3], [4, 5, 6, 7]]]
)


def test_neighbours_in_a_row_are_one_shape():
    cells = np.array([[True, True, False, True], [False, True, True, False]])
    assert grids.area(cells) == "M0 0h2v1h-2zM3 0h1v1h-1zM1 1h2v1h-2z"
    assert grids.area(~np.ones((2, 2), dtype=bool)) == ""


def test_merged_positions_are_kept_and_their_groups_outlined():
    assert grids.kept_cells(PRUNED, 1, GRID).astype(int).tolist() == [[0, 0], [1, 1], [1, 0], [0, 0]]
    assert grids.kept_cells(MERGED, 1, GRID).all()
    assert [grids.outlines(plan, 1, GRID) for plan in (PRUNED, MERGED)] == ["", "M1 1v1M1 1h1M0 2h1M1 2h1"]
    assert grids.outlines(MERGED, 0, GRID) == ""  # nothing is merged yet


def test_a_map_has_a_path_for_each_colour_and_none_where_there_is_no_key():
    values = [0.0, 1.0, None, 0.0, 0.25, 0.25, None, None]
    found = dict(grids.heat(values, GRID, 1.0))
    assert list(found.values()) == ["M0 0h1v1h-1zM1 1h1v1h-1z", "M0 2h2v1h-2z", "M1 0h1v1h-1z"]
    assert list(found)[-1] == grids.shades()[-1]
    assert grids.largest([values, [0.5, None]]) == pytest.approx(1.0)
