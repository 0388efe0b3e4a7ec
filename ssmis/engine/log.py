# SPDX-License-Identifier: Apache-2.0
"""The CSV log of a run: one row a step, continued (not repeated) after a resume."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ssmis.engine.atomic import replace_text


class CsvLog:
    """Appends rows to a CSV file; a row with new columns (a later stage's terms) widens the file.

    A process that dies, or a disk that is full, leaves whole rows: a row is one write, and what the disk took of a
    row that did not fit is cut off again.

    Args:
        path: the file; an existing one is continued.
        keep_below: rows whose `step` is at or beyond this are dropped first (steps that a resumed run will repeat).
    """

    def __init__(self, path: Path, *, keep_below: int = 0) -> None:
        self.path = path
        self.columns: list[str] = []
        rows: list[dict[str, str]] = []
        if keep_below > 0 and path.exists():
            self.columns, rows = _whole_rows(path)
            rows = [row for row in rows if int(row["step"]) < keep_below]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: io.FileIO | None = None
        self._start(rows)

    def write(self, row: Mapping[str, object]) -> None:
        """Append one row; floats are written with six significant digits.

        Raises:
            OSError: the disk is full; the message names the file, which holds the rows before this one.
        """
        new = [name for name in row if name not in self.columns]
        if new:
            rows = _whole_rows(self.path)[1]
            self.columns += new
            self._start(rows)
        cells = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        self._append(_lines(self.columns, [cells]))

    def sync(self) -> None:
        """Wait until the rows are on disk, and not only with the system."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _start(self, rows: Iterable[Mapping[str, str]]) -> None:
        self.close()
        header = _lines(self.columns, [dict(zip(self.columns, self.columns))]) if self.columns else ""
        replace_text(self.path, header + _lines(self.columns, rows))
        self._file = self.path.open("ab", buffering=0)

    def _append(self, text: str) -> None:
        if self._file is None or self._file.closed:
            raise ValueError(f"{self.path} is closed")
        line = text.encode()
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            while written < len(line):  # the second try says why the first one stopped
                written += self._file.write(line[written:])
        except OSError as error:
            self._file.truncate(before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _lines(columns: list[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="").writerows(rows)
    return text.getvalue()


def _whole_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a log up to the first row that is torn: too short, without its line end, or out of order."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole, newline=""))
    try:
        columns = list(reader.fieldnames or [])
        rows: list[dict[str, str]] = []
        for row in reader:
            step = row.get("step") or ""
            if None in row.values() or None in row or not (step.isascii() and step.isdigit() and len(step) < 19):
                break
            if rows and int(step) < int(rows[-1]["step"]):
                break
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from error
    return columns, rows
