"""Tables over several targets."""

import pytest

from amg_plugin.runs.result import ATTENTION, as_markdown, as_text, further_tables, targets_table


def section(**targets):
    return {"targets": {name: {"rank1": rank1, "mAP": mean} for name, (rank1, mean) in targets.items()}}


RESULT = {
    "dense": section(market1501=(0.9, 0.8), occluded_market1501=(0.6, 0.5), other=(0.3, 0.2)),
    "finetuned": section(market1501=(0.88, 0.79), occluded_market1501=(0.5, 0.4), other=(0.31, 0.21)),
}


def test_models_are_rows_and_targets_columns_with_the_loss_by_occlusion():
    _, header, rows = targets_table(RESULT)
    assert header == ["model", "market1501", "occluded_market1501", "other", "occluded_market1501 - market1501"]
    assert rows[0] == ["dense", "90.0 / 80.0", "60.0 / 50.0", "30.0 / 20.0", "-30.0 / -30.0"]
    assert rows[1] == ["finetuned", "88.0 / 79.0", "50.0 / 40.0", "31.0 / 21.0", "-38.0 / -39.0"]


def test_own_data_has_the_difference_by_occlusion_too():
    _, header, rows = targets_table(
        {"dense": section(**{"folder:shop": (0.9, 0.8), "folder:occluded_shop": (0.6, 0.5)})}
    )
    assert header[-1] == "folder:occluded_shop - folder:shop"
    assert rows[0][-1] == "-30.0 / -30.0"


def test_targets_without_their_counterpart_get_no_difference():
    _, header, _ = targets_table({"dense": section(occluded_duke=(0.5, 0.4), market1501=(0.9, 0.8))})
    assert header == ["model", "occluded_duke", "market1501"]


def test_one_target_needs_no_table():
    assert targets_table({"dense": section(market1501=(0.9, 0.8))}) is None
    assert further_tables({"dense": section(market1501=(0.9, 0.8))}) == []


ATTENTION_OF = {
    "images": 7,
    "patches": 0.3,
    "threshold": 0.5,
    "models": {
        "dense": [{"attention": 0.2, "keys": 0.3}, {"attention": 0.1, "keys": 0.3}],
        "finetuned": [{"attention": 0.15, "keys": 0.25}, {"attention": 0.05, "keys": 0.3}],
    },
}


def test_attention_stands_per_block_beside_the_keys_that_are_left():
    (table,) = further_tables({"dense": section(a=(1, 1)), ATTENTION: {"a": ATTENTION_OF}})
    heading, header, rows = table
    assert "7 images" in heading and "30.0 %" in heading
    # The dense model keeps all keys: what of them is covered is in the heading.
    assert header == ["block", "dense: attention %", "finetuned: attention %", "finetuned: kept keys %"]
    assert rows == [["0", "20.0", "15.0", "25.0"], ["1", "10.0", "5.0", "30.0"], ["mean", "15.0", "10.0", "27.5"]]


@pytest.mark.parametrize("render", [as_text, as_markdown])
def test_every_cell_is_rendered(render):
    table = targets_table(RESULT)
    lines = render(table).splitlines()
    assert lines[0] == "Rank-1 / mAP in %."
    for cells, line in zip([table[1], *table[2]], [lines[2], *lines[4:]], strict=True):
        assert all(cell in line for cell in cells)
