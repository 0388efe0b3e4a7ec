# SPDX-License-Identifier: Apache-2.0
"""The CSV log of a run: one row a step, continued (not repeated) after a resume."""

import csv
from collections.abc import Mapping
from pathlib import Path


class CsvLog:
    """Appends rows to a CSV file; a row with new columns (a later stage's terms) widens the file.

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
        self._start(rows)

    def write(self, row: Mapping[str, object]) -> None:
        """Append one row; floats are written with six significant digits."""
        new = [name for name in row if name not in self.columns]
        if new:
            self._file.close()
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._start(rows)
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _start(self, rows: list[dict[str, str]]) -> None:
        self._file = self.path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self.columns, restval="")
        if self.columns:
            self._writer.writeheader()
        self._writer.writerows(rows)
        self._file.flush()
