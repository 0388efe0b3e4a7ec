# SPDX-License-Identifier: Apache-2.0
"""Look a data set through: what it holds, and every problem by the name of its file."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssmis._optional import require
from ssmis.data.layouts import Dataset, find_dataset
from ssmis.data.survey import CaseFacts, Issue, survey
from ssmis.options import InspectOptions, gathered


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect_data` found.

    Attributes:
        dataset: layout and cases.
        facts: of every case that can be read.
        issues: every finding.
        limit: findings of one kind that the text shows.
    """

    dataset: Dataset
    facts: tuple[CaseFacts, ...]
    issues: tuple[Issue, ...]
    limit: int = 10

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would break a training."""
        return not any(issue.serious for issue in self.issues)

    def of_kind(self, kind: str) -> tuple[Issue, ...]:
        """The findings of one kind."""
        return tuple(issue for issue in self.issues if issue.kind == kind)

    def __str__(self) -> str:
        own = self.dataset
        lines = [f"{own.layout} in {own.root}: {len(own.labelled)} labelled, {len(own.unlabelled)} unlabelled cases"]
        if own.roles:
            lines.append(f"declared: {_counted(Counter(own.role(case) for case in own.cases))}")
        if self.facts:
            lines += _described(self.facts, own)
        for serious, title in ((True, "problems, training would stop or learn wrongly"), (False, "notes")):
            found = [issue for issue in self.issues if issue.serious is serious]
            if found:
                lines.append(f"{title}: {len(found)}")
                lines += _listed(found, self.limit)
        if self.ok:
            lines.append("nothing stands in the way of a training")
        return "\n".join(lines)


def inspect_data(data: str | Path | InspectOptions, **options: Any) -> Inspection:
    """Read every file of a data set and change nothing; `ssmis inspect` is this function.

    Args:
        data: folder or table, or all options in one object.
        options: of `InspectOptions`.

    Raises:
        DataError: no layout fits, or the one that fits is not what it says.
    """
    chosen = gathered(InspectOptions, data, options)
    dataset = find_dataset(chosen.data)
    show: Callable[[Any], Any] | None = None
    if chosen.progress:
        tqdm = require("tqdm", extra="medical", purpose="the progress bar (or --progress=false)").tqdm
        show = lambda cases: tqdm(cases, desc="inspect", unit="case", dynamic_ncols=True, leave=False)  # noqa: E731
    facts, issues = survey(dataset, progress=show)
    return Inspection(dataset, tuple(facts), tuple(issues), chosen.limit)


def _described(facts: Sequence[CaseFacts], dataset: Dataset) -> list[str]:
    shapes = np.array([own.shape for own in facts if len(own.shape) == len(facts[0].shape)])
    spacings = np.array([own.spacing_mm for own in facts if len(own.shape) == len(facts[0].shape)])
    lines = [
        f"shape: median {_by(np.median(shapes, 0))}, from {_by(shapes.min(0))} to {_by(shapes.max(0))}",
        f"spacing mm: median {_by(np.median(spacings, 0))}, from {_by(spacings.min(0))} to {_by(spacings.max(0))}",
        f"orientation: {_counted(Counter(own.orientation for own in facts))}",
        f"stored as: {_counted(Counter(own.kind for own in facts))}; channels: "
        + _counted(Counter(own.channels for own in facts)),
    ]
    low, high = (np.array([getattr(own, name)[0] for own in facts]) for name in ("low", "high"))
    lines.append(
        f"intensity: {np.median(low):.4g} to {np.median(high):.4g} in the median case, {low.min():.4g} to "
        f"{high.max():.4g} over all (0.5 % and 99.5 % quantiles)"
    )
    labelled = [own for own in facts if own.volumes is not None]
    values = sorted({value for own in labelled for value in own.volumes or {} if value > 0})
    unit, factor = ("ml", 1e-3) if len(facts[0].shape) == 3 else ("mm2", 1.0)
    for value in values[:20]:
        own = [f for f in labelled if f.volumes and value in f.volumes]
        sizes = [factor * f.volumes[value] * float(np.prod(f.spacing_mm)) for f in own if f.volumes]
        name = f"label {value} {dataset.label_names.get(value, '')}".rstrip()
        extent = f"median {np.median(sizes):.3g} {unit}, {min(sizes):.3g} to {max(sizes):.3g}"
        lines.append(f"{name}: in {len(sizes)} of {len(labelled)} labels, {extent}")
    if len(values) > 20:
        lines.append(f"and {len(values) - 20} more label values")
    return lines


def _listed(issues: Sequence[Issue], limit: int) -> list[str]:
    lines, shown = [], Counter[str]()
    for issue in issues:
        shown[issue.kind] += 1
        if shown[issue.kind] <= limit:
            lines.append(f"  {issue.kind}: {issue}")
    return lines + [f"  {kind}: and {count - limit} more" for kind, count in shown.items() if count > limit]


def _by(values: Any) -> str:
    return " x ".join(f"{value:.4g}" for value in np.atleast_1d(values))


def _counted(counter: Counter[Any]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counter.most_common(6))
