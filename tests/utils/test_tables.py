"""Tables as text, Markdown and CSV."""

import csv
import io

import pytest

from amg_plugin.utils.tables import csv_table, markdown_table, per_cent, text_table

HEADER = ["model", "mAP"]
ROWS = [["dense", "82.6"], ["head25+token25", "9.9"]]


def test_text_has_its_first_column_left_and_the_others_right_aligned():
    assert text_table(HEADER, ROWS).splitlines() == [
        "model            mAP",
        "--------------  ----",
        "dense           82.6",
        "head25+token25   9.9",
    ]


def test_lines_of_text_do_not_end_in_spaces():
    lines = text_table(["a", "b"], [["x", ""]]).splitlines()
    assert lines == [line.rstrip() for line in lines]


def test_markdown_has_its_first_column_left_and_the_others_right_aligned():
    assert markdown_table(HEADER, ROWS).splitlines() == [
        "| model | mAP |",
        "| --- | ---: |",
        "| dense | 82.6 |",
        "| head25+token25 | 9.9 |",
    ]


def test_markdown_has_as_many_left_columns_as_told():
    assert markdown_table(["a", "b", "c"], [], left=(0, 1)).splitlines()[1] == "| --- | --- | ---: |"


def test_a_row_of_another_length_is_refused_by_text():
    with pytest.raises(ValueError, match="shorter"):
        text_table(HEADER, [["dense", "1", "2"]])


def test_csv_can_be_read_back():
    rows = [["a, b", 'said "x"'], ["two\nlines", "1"]]
    assert list(csv.reader(io.StringIO(csv_table(HEADER, rows)))) == [HEADER, *rows]


def test_csv_ends_each_line_with_a_newline_alone():
    assert csv_table(HEADER, ROWS[:1]) == "model,mAP\ndense,82.6\n"


@pytest.mark.parametrize(
    ("fractions", "sign", "text"),
    [
        ([0.8264], "", "82.6"),
        ([0.8, 0.9, 1.0], "", "90.0 ± 10.0"),
        ([0.012], "+", "+1.2"),
        ([-0.012], "+", "-1.2"),
    ],
)
def test_fractions_in_per_cent(fractions, sign, text):
    assert per_cent(fractions, sign) == text
