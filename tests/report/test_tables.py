# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from ssmis.report import format_table


def test_columns_are_aligned_and_numbers_stand_right():
    text = format_table(["method", "Dice", "n"], [["V-Net", 0.82741, 20], ["a longer name", math.nan, None]], digits=3)
    assert text.splitlines() == [
        "| method        |  Dice |   n |",
        "| :------------ | ----: | --: |",
        "| V-Net         | 0.827 |  20 |",
        "| a longer name |   n/a | n/a |",
    ]


def test_markdown_is_escaped_and_every_line_has_the_same_width():
    lines = format_table(["a|b", "c"], [["x|y\nz", 1.0], ["", -12345.678]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2] == r"| x\|y z |      1.00 |"
    assert lines[0].startswith(r"| a\|b")


def test_a_table_without_rows_has_a_head():
    assert format_table(["x", "y"], []).splitlines() == ["| x   | y   |", "| :-- | :-- |"]


def test_a_column_with_text_stands_left():
    assert format_table(["v"], [["1.5"], [2.0]]).splitlines()[2:] == ["| 1.5  |", "| 2.00 |"]


def test_ragged_rows_are_named():
    with pytest.raises(ValueError, match=r"rows\[1\] has 1 cells; expected 2, one per header"):
        format_table(["a", "b"], [[1, 2], [3]])
