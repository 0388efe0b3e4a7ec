# SPDX-License-Identifier: Apache-2.0
"""Tables as text: aligned for a terminal, and valid Markdown."""

from collections.abc import Sequence
from math import isnan


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, digits: int = 2) -> str:
    """Return an aligned Markdown table; columns of numbers are right-aligned.

    Args:
        headers: one per column.
        rows: cells; a float is written with `digits` decimals, nan and None as "n/a", anything else with `str`.
        digits: decimals of floats.

    Raises:
        ValueError: a row has another number of cells than there are headers.

    >>> print(format_table(["method", "Dice"], [["V-Net", 0.8274], ["dual", 0.8995]], digits=3))
    | method |  Dice |
    | :----- | ----: |
    | V-Net  | 0.827 |
    | dual   | 0.899 |
    """
    for index, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"rows[{index}] has {len(row)} cells; expected {len(headers)}, one per header")
    table = [[header.replace("|", "\\|") for header in headers]]
    table += [[_cell(value, digits) for value in row] for row in rows]
    widths = [max(3, *(len(line[column]) for line in table)) for column in range(len(headers))]
    right = [
        bool(rows) and all(value is None or isinstance(value, (int, float)) for value in column)
        for column in (zip(*rows) if rows else [()] * len(headers))
    ]
    lines = [
        [cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(line, widths, right)]
        for line in table
    ]
    rule = ["-" * (width - 1) + ":" if to_right else ":" + "-" * (width - 1) for width, to_right in zip(widths, right)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _cell(value: object, digits: int) -> str:
    if value is None or (isinstance(value, float) and isnan(value)):
        return "n/a"
    text = f"{value:.{digits}f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
