# SPDX-License-Identifier: Apache-2.0
"""What a report reads from run folders."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from ssmis.data.texts import read_json
from ssmis.metrics import CaseScore, Reliability, read_cases_csv, summarise
from ssmis.report._cuts import Array, ArrayLike

NEVER, ALWAYS = 1e-4, 0.99  # shares of foreground at which pseudo-labels teach nothing
STREAK = 100  # steps of training after which that is no accident of the crops


@dataclass(frozen=True)
class ReportRun:
    """A run in a report.

    Attributes:
        name: row of the tables, and what `CaseView` calls its prediction.
        folder: run folder as `fit` wrote it, and `cases.csv` beside; without one the run has curves but no scores.
        minutes: of training; None takes the last `seconds` of `metrics.csv`, or what a study's `result.json` has.
        peak_memory_mb: of training; None takes the last `peak_mb` of `metrics.csv`, or that of `result.json`.
        reliability: bins over all cases (`pool_reliability`), for the reliability diagram; None takes those of
            `reliability.csv`.
    """

    name: str
    folder: Path | str
    minutes: float | None = None
    peak_memory_mb: float | None = None
    reliability: Reliability | None = None

    @cached_property
    def metrics(self) -> dict[str, Array]:
        """Columns of `metrics.csv`; none where scores were kept without it."""
        path = Path(self.folder) / "metrics.csv"
        return read_log(path) if path.exists() or not self.scores else {}

    @cached_property
    def quality(self) -> dict[str, Array]:
        """Columns of `quality.csv`; none without callbacks."""
        path = Path(self.folder) / "quality.csv"
        return read_log(path) if path.exists() else {}

    @cached_property
    def scores(self) -> list[CaseScore]:
        """Lines of `cases.csv`; none if there is no such file."""
        path = Path(self.folder) / "cases.csv"
        return read_cases_csv(path) if path.exists() else []

    @cached_property
    def scores_largest(self) -> list[CaseScore]:
        """Lines of `cases_largest.csv`, with only the largest component of each class; none without such a file."""
        path = Path(self.folder) / "cases_largest.csv"
        return read_cases_csv(path) if path.exists() else []

    @cached_property
    def bins(self) -> Reliability | None:
        """As given, else the lines of `reliability.csv`; none without such a file."""
        path = Path(self.folder) / "reliability.csv"
        return read_reliability(path) if self.reliability is None and path.exists() else self.reliability

    def settings(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, flat: `outer.inner` -> value; none where scores were kept without it."""
        path = Path(self.folder) / name
        return flat(read_json(path)) if path.exists() or not self.scores else {}

    @property
    def training_minutes(self) -> float:
        """As given, else by the log, else as kept; nan without any."""
        return self.minutes if self.minutes is not None else self._last("seconds", "minutes", 60)

    @property
    def training_peak_mb(self) -> float:
        """As given, else by the log, else as kept; nan without any."""
        return self.peak_memory_mb if self.peak_memory_mb is not None else self._last("peak_mb", "peak_memory_mb")

    def _last(self, column: str, kept: str, parts: float = 1) -> float:
        values = self.metrics.get(column, np.array([]))
        return float(values[-1]) / parts if len(values) else float(read_result(self.folder).get(kept, nan))


@dataclass(frozen=True, eq=False)
class CaseView:
    """A case that a report shows.

    Attributes:
        case: its id, as in `cases.csv`.
        image: `(*S)`, 2-D or 3-D, one channel.
        predictions: name of a run -> labels `(*S)`.
        reference: labels `(*S)`.
        uncertainty: name of a run -> `(*S)` in [0, 1].
        spacing_mm: voxel size, for the shape of the panels; None is isotropic.
        note: why it is shown, such as "worst".
    """

    case: str
    image: ArrayLike
    predictions: Mapping[str, ArrayLike]
    reference: ArrayLike | None = None
    uncertainty: Mapping[str, ArrayLike] | None = None
    spacing_mm: Sequence[float] | None = None
    note: str = ""


def read_result(folder: Path | str) -> dict[str, Any]:
    """What `result.json` of a study's run holds: minutes, peak memory, best step; empty without such a file.

    Raises:
        ValueError: minutes or peak memory is no number.
    """
    path = Path(folder) / "result.json"
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    for name in ("minutes", "peak_memory_mb") if found else ():
        if type(found.get(name)) not in (int, float):
            raise ValueError(f"{path}: {name} is {str(found.get(name))[:200]!r}; expected a number")
    return found


def pick_cases(scores: Sequence[CaseScore], *, metric: str = "dice") -> dict[str, str]:
    """Return "worst", "median" and "best" -> case id, by a metric that grows with quality.

    With fewer than three cases "best" and then "median" are left out; of an even number, the lower middle one is the
    median. Each case is averaged over its classes first, and cases without any are not picked.

    Raises:
        ValueError: no score, or an unknown metric.

    >>> from ssmis.metrics import evaluate_case
    >>> truth = np.array([1, 1, 1, 0])
    >>> scores = []
    >>> for case, guess in {"a": [1, 0, 0, 0], "b": [1, 1, 1, 0], "c": [1, 1, 0, 0]}.items():
    ...     scores += evaluate_case(np.array(guess), truth, classes=(1,), spacing_mm=(1,), case=case)
    >>> pick_cases(scores)
    {'worst': 'a', 'median': 'c', 'best': 'b'}
    """
    means = {
        case: summarise([score for score in scores if score.case == case], metric=metric, resamples=1).mean
        for case in dict.fromkeys(score.case for score in scores)
    }
    order = sorted((case for case, mean in means.items() if mean == mean), key=lambda case: means[case])
    if not order:
        raise ValueError(f"none of {len(scores)} scores has a {metric}; expected at least one case")
    places = {"worst": 0, "median": (len(order) - 1) // 2, "best": len(order) - 1}
    picked: dict[str, str] = {}
    for name, place in places.items():
        if order[place] not in picked.values():
            picked[name] = order[place]
    return picked


def read_log(path: Path) -> dict[str, Array]:
    """Read a log of `fit`: column -> float64 `(steps,)`, nan where a cell is empty.

    A last line that was cut off while it was written is left out, as it is when the training goes on.

    Raises:
        ValueError: the file is missing, a cell is no number, or a row has no step.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected a run folder as `fit` writes it")
    try:
        whole = path.read_bytes().rstrip(b"\0").decode()
        reader = csv.DictReader(io.StringIO(whole[: whole.rfind("\n") + 1], newline=""), restval="")
        names, rows = list(reader.fieldnames or ()), list(reader)
        found = {name: np.array([float(row[name] or nan) for row in rows]) for name in names}
        if rows and not (np.abs(found.get("step", np.array([nan]))) < 2**53).all():
            raise ValueError("there is no column 'step', or it holds other than numbers of steps")
        return found
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def read_reliability(path: Path) -> Reliability:
    """Read the bins of a reliability diagram.

    Raises:
        ValueError: the columns are others, there is no bin, or a line holds what no bin can: a word where a number
            belongs, fewer than 0 voxels, a share outside [0, 1].
    """
    names = [field.name for field in fields(Reliability)]
    bins = []
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
        if (head := next(reader, None)) != names:
            raise ValueError(f"it has the columns {head}; expected {names}")
        for line in reader:
            try:
                bins.append(_bin(line))
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from error
        if not bins:
            raise ValueError("there is no bin; expected a line for each")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error
    return Reliability(*np.array(bins, dtype=np.float64).T)


def _bin(line: Sequence[str]) -> list[float]:
    """Voxels, mean confidence and frequency of a bin; the shares are nan where it has no voxel."""
    if len(line) != 3:
        raise ValueError(f"it has {len(line)} cells; expected 3")
    count, *shares = map(float, line)
    if not 0 <= count < inf:
        raise ValueError(f"count is {count:g}; expected a number of voxels")
    for name, share in zip(("confidence", "frequency"), shares):
        if not 0 <= share <= 1.02 and not (count == 0 and isnan(share)):  # as far as half precision is off 1
            raise ValueError(f"{name} is {share:g}; expected a share in [0, 1]")
    return [count, *shares]


def warnings_of(run: ReportRun) -> list[str]:
    """What a reader must know before the numbers: collapse, skipped steps, an early end."""
    found = []
    steps = run.quality.get("step", np.array([]))
    settings = run.settings("protocol.json")
    what = "predictions" if settings.get("unlabelled.count") == 0 else "pseudo-labels"
    for column, share in run.quality.items():
        kind, _, net = column.partition("/")
        flags = (share < NEVER) | (share > ALWAYS)
        if kind != "foreground" or not flags.any():
            continue
        who = f"{what} of {net}" if net else what
        if flags[-1]:
            since = steps[len(flags) - int(np.argmin(flags[::-1])) if not flags.all() else 0]
            found.append(
                f"{who} have collapsed: foreground is {100 * share[-1]:.3g} % of the voxels at the last measurement, "
                f"and beyond {100 * NEVER:g} or {100 * ALWAYS:g} % since step {since:.0f}"
            )
        else:
            last = steps[np.flatnonzero(flags)[-1]]
            found.append(
                f"{who} were collapsed in {flags.sum()} of {len(flags)} measurements (foreground below "
                f"{100 * NEVER:g} or above {100 * ALWAYS:g} % of the voxels), the last at step {last:.0f}"
            )
    if not any(column.startswith("foreground/") for column in run.quality):
        found += _collapsed_in_training(run)
    norms = run.metrics.get("grad_norm", np.array([]))
    if skipped := int((~np.isfinite(norms)).sum()):
        found.append(f"{skipped} of {len(norms)} steps were skipped: loss or gradient was not finite")
    planned, done = settings.get("fit.steps"), len(run.metrics.get("step", ()))
    if run.metrics and isinstance(planned, int) and done < planned:
        found.append(f"training is at step {done} of {planned}")
    return found


def _collapsed_in_training(run: ReportRun) -> list[str]:
    """Nets whose training batches had no foreground, or nothing else, for the last `STREAK` steps and longer."""
    found = []
    for column, share in run.metrics.items():
        kind, _, net = column.partition("/")
        fine = np.flatnonzero((share >= NEVER) & (share <= ALWAYS))
        since = int(fine[-1]) + 1 if len(fine) else 0
        if kind == "foreground" and len(share) - since >= STREAK:
            found.append(
                f"predictions of {net} have collapsed: foreground is {100 * share[-1]:.3g} % of the voxels of the last "
                f"training batch, and beyond {100 * NEVER:g} or {100 * ALWAYS:g} % since step "
                f"{run.metrics['step'][since]:.0f}"
            )
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner` -> value."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
