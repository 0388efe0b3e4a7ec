# SPDX-License-Identifier: Apache-2.0
"""The CSV log of a run: one row a step, continued (not repeated) after a resume."""

import csv
from collections.abc import Mapping
from pathlib import Path


class CsvLog:
    """Appends rows to a CSV file whose columns are those of the first row.

    Args:
        path: the file; an existing one is continued.
        keep_below: rows whose `step` is at or beyond this are dropped first (steps that a resumed run will repeat).
    """

    def __init__(self, path: Path, *, keep_below: int = 0) -> None:
        self.path = path
        self.columns: list[str] = []
        rows: list[dict[str, str]] = []
        if keep_below > 0 and path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or [])
                # a row cut short by a crash has no readable step; it is dropped with the rest
                rows = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < keep_below]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer: csv.DictWriter[str] | None = None
        if self.columns:
            self._start(self.columns)
            for row in rows:
                self._writer_row(row)
            self._file.flush()

    def write(self, row: Mapping[str, object]) -> None:
        """Append one row; floats are written with six significant digits."""
        if self._writer is None:
            self._start(list(row))
        unknown = set(row) - set(self.columns)
        if unknown:
            raise ValueError(f"{self.path.name} has columns {self.columns}; the row adds {sorted(unknown)}")
        self._writer_row({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _start(self, columns: list[str]) -> None:
        self.columns = columns
        self._writer = csv.DictWriter(self._file, columns, restval="")
        self._writer.writeheader()

    def _writer_row(self, row: Mapping[str, object]) -> None:
        if self._writer is not None:
            self._writer.writerow(row)
