# SPDX-License-Identifier: Apache-2.0
"""The difference of two rows of a study, as a row of a table."""

from dataclasses import dataclass
from math import isnan

from ssmis.metrics import MethodDifference


@dataclass(frozen=True)
class RowDifference:
    """A row minus another one, over these seeds, in some metric."""

    row: str
    against: str
    seeds: tuple[int, ...]
    metric: str
    found: MethodDifference

    def cells(self) -> list[str]:
        """Of a table: overlap in points of 100, distances in their unit."""
        factor = 100 if self.metric in ("dice", "jaccard", "nsd") else 1

        def interval(bounds: tuple[float, float]) -> str:
            return "n/a" if isnan(bounds[0]) else " to ".join(f"{factor * value:+.2f}" for value in bounds)

        f = self.found
        seeds, p_value = " ".join(map(str, self.seeds)), "n/a" if isnan(f.p_value) else f"{f.p_value:.2g}"
        ends = [interval(f.over_seeds), interval(f.over_cases), p_value, interval(f.over_both)]
        return [self.row, self.against, seeds, "n/a" if isnan(f.mean) else f"{factor * f.mean:+.2f}", *ends]
