"""The forms of the comparison's table."""

from __future__ import annotations

import csv
import io
import json

import pytest

from amg_plugin.runs.compare import NO_WEIGHTS, Row, render

COUNTED = Row("resnet50", 256, 128, 23_500_000, 2_669_000_000, 94 << 20)
SCORES = {"market1501": {"mAP": 0.5, "rank1": 0.75, "cmc": {}}, "occluded_duke": {"mAP": 0.25, "rank1": 0.3, "cmc": {}}}
TESTED = Row("osnet|x", 256, 128, 2_200_000, 979_000_000, 8 << 20, "a.pth", 16 << 20, SCORES, "fine")
FACTS = {"command": "amg-reid compare", "versions": {"torch": "2"}}
EVALUATED = {**FACTS, "protocol": {"distance": "euclidean"}, "device": "cpu (x)", "threads": 2, "seed": 1}


def markdown_rows(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=False)) for line in lines[2:]]


def test_without_evaluation_there_are_no_columns_of_scores():
    (row,) = markdown_rows(render([COUNTED], "markdown", FACTS))
    assert row == {"model": "resnet50", "input": "256x128", "params M": "23.50", "MACs G": "2.669", "size MiB": "94.0"}


def test_scores_stand_per_target_and_rows_without_weights_are_marked():
    counted, tested = markdown_rows(render([COUNTED, TESTED], "markdown", EVALUATED))
    assert (tested["mAP % market1501"], tested["Rank-1 % occluded_duke"], tested["file MiB"]) == (
        "50.0",
        "30.0",
        "16.0",
    )
    assert counted["weights"] == NO_WEIGHTS
    assert counted["mAP % market1501"].strip() == ""


def test_conditions_stand_with_the_figures():
    for form in ("text", "markdown"):
        text = render([TESTED], form, EVALUATED)
        assert "distance euclidean" in text
        assert "cpu (x), 2 threads, seed 1" in text
        assert "torch 2" in text


def test_text_is_aligned():
    first, second, *rows = render([COUNTED, TESTED], "text", EVALUATED).splitlines()[:4]
    assert len(second) >= len(first) - 1
    assert [row.split()[0] for row in rows] == ["resnet50", "osnet/x"]


def test_csv_and_json_hold_the_same_figures():
    data = json.loads(render([COUNTED, TESTED], "json", EVALUATED))
    rows = list(csv.DictReader(io.StringIO(render([COUNTED, TESTED], "csv", EVALUATED))))
    assert data["device"] == "cpu (x)"
    for row, plain in zip(rows, data["rows"], strict=True):
        assert (row["name"], int(row["macs"]), int(row["size"])) == (plain["name"], plain["macs"], plain["size"])
    assert float(rows[1]["market1501.mAP"]) == data["rows"][1]["scores"]["market1501"]["mAP"] == 0.5
    assert rows[0]["market1501.mAP"] == ""


@pytest.mark.parametrize("form", ["text", "markdown", "csv"])
def test_signs_of_the_form_in_a_name_do_not_break_it(form):
    assert len(render([TESTED], form, EVALUATED).splitlines()) == len(
        render([Row(**{**vars(TESTED), "name": "plain"})], form, EVALUATED).splitlines()
    )
