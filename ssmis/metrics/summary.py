# SPDX-License-Identifier: Apache-2.0
"""From scores of cases to numbers with their uncertainty: summaries over cases, and the comparison of two runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf, isnan, nan
from typing import Literal

import numpy as np

from ssmis._checks import check_choice, check_whole
from ssmis.metrics._masks import Array
from ssmis.metrics.cases import DISTANCES, METRICS, CaseScore

Missed = Literal["diagonal", "legacy_zero"]
MISSED = ("diagonal", "legacy_zero")


@dataclass(frozen=True)
class Summary:
    """One metric over cases: how many (`n`), how many not applicable or missed, location, spread, and the bootstrap
    95 % interval of the mean (`low`, `high`). `n_miss` cases are part of `n`, `n_na` cases are not. `unit` is empty
    for what has none.
    """

    metric: str
    n: int
    n_na: int
    n_miss: int
    mean: float
    median: float
    sd: float
    low: float
    high: float
    unit: str = ""
    missed: Missed = "diagonal"


def summarise(
    rows: Sequence[CaseScore],
    *,
    metric: str,
    label: int | None = None,
    missed: Missed = "diagonal",
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Summarise one metric over cases.

    Args:
        rows: scores of all cases.
        metric: one of `METRICS`.
        label: the class; None first averages each case over the classes that apply to it, and counts a case as not
            applicable if no class applies, as missed if any class was.
        missed: the distance of a missed case. "diagonal" is that of the image; "legacy_zero" is the best distance
            there is, as several published codes have it: only to repeat their tables.
        resamples: bootstrap draws over cases.
        seed: of the bootstrap.

    Raises:
        ValueError: an unknown metric, no row of this class, two rows of one case and class, or distances of two units
            (`nsd` of two tolerances); a value is infinite, or `resamples` is no whole number of at least 1.

    Empty case: with no applicable case the numbers are nan; the spread of a single case is nan.
    """
    values, n_miss, unit = case_values(rows, metric=metric, label=label, missed=missed)
    return _summary(metric, list(values.values()), n_miss, unit, missed, resamples, seed)


def summarise_values(values: Sequence[float], *, metric: str, resamples: int = 2000, seed: int = 0) -> Summary:
    """Summarise numbers that are not in a `CaseScore`, such as calibration errors.

    Args:
        values: one a case; nan is not applicable.
        metric: its name, for the summary.
        resamples: bootstrap draws over cases.
        seed: of the bootstrap.

    Raises:
        ValueError: a value is infinite, or `resamples` is no whole number of at least 1.
    """
    return _summary(metric, values, 0, "", "diagonal", resamples, seed)


def bootstrap_interval(values: Array, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap: 95 % interval of the mean of `values` `(N,)`.

    Raises:
        ValueError: there is no value, or `resamples` is no whole number of at least 1.
    """
    check_whole(resamples, 1, name="resamples")
    if not len(values):
        raise ValueError("values is empty; expected at least one")
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `a - b` over the cases both have, its bootstrap 95 % interval, and the p-value of a sign-flip test."""

    n: int
    n_dropped: int
    mean: float
    low: float
    high: float
    p_value: float


def compare_runs(
    a: Sequence[CaseScore],
    b: Sequence[CaseScore],
    *,
    metric: str,
    label: int | None = None,
    missed: Missed = "diagonal",
    resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare the scores of two runs on the same cases, paired by case id; see `paired_difference`.

    Args:
        a: scores of one run.
        b: scores of the other; the order does not matter.
        metric: as in `summarise`, like `label`, `missed`, `resamples` and `seed`.

    Raises:
        ValueError: what `summarise` raises, other cases or classes in `b` than in `a`, another unit or tolerance, or
            another number of voxels in the reference of a case.
    """
    if label is None:
        check_classes(b, a, name="b", other="a")
    ours, _, unit = case_values(a, metric=metric, label=label, missed=missed)
    theirs, _, other = case_values(b, metric=metric, label=label, missed=missed)
    if ours.keys() != theirs.keys():
        alone = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"{len(alone)} cases are in only one of a and b, the first is {alone[0]!r}; expected the same")
    if unit != other:
        raise ValueError(f"{metric} of b is in {other}; expected {unit} to match a")
    check_reference({"a": a, "b": b})
    return paired_difference(list(ours.values()), [theirs[case] for case in ours], resamples=resamples, seed=seed)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Compare two runs case by case.

    The p-value is that of the paired permutation (sign-flip) test, two-sided: how often differences with randomly
    flipped signs have a mean at least as far from 0. It is never below 1 / (`resamples` + 1).

    Args:
        a: one value a case; nan is not applicable.
        b: the other run's values, same cases in the same order.
        resamples: draws of the bootstrap and of the test.
        seed: of both.

    Raises:
        ValueError: the lengths differ, a value is infinite, no case has both values, or `resamples` is no whole number
            of at least 1.
    """
    if len(a) != len(b):
        raise ValueError(f"b has {len(b)} cases; expected {len(a)} to match a, in the same order")
    for name, values in (("a", a), ("b", b)):
        _check_finite(f"a value of {name}", *values)
    differences = np.asarray([x - y for x, y in zip(a, b) if not (isnan(x) or isnan(y))], dtype=np.float64)
    if not len(differences):
        raise ValueError(f"none of the {len(a)} cases has a value in both a and b")
    low, high = bootstrap_interval(differences, resamples=resamples, seed=seed)
    mean = float(differences.mean())
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(resamples, len(differences)))
    as_far = np.abs((signs * differences).mean(axis=1)) >= abs(mean) - 1e-12
    p_value = float((as_far.sum() + 1) / (resamples + 1))
    return PairedDifference(len(differences), len(a) - len(differences), mean, low, high, p_value)


def check_classes(rows: Sequence[CaseScore], others: Sequence[CaseScore], *, name: str, other: str) -> None:
    """Raise ValueError unless two runs were scored on the same classes: the mean over others says something else."""
    own, theirs = (sorted({row.label for row in scores}) for scores in (rows, others))
    if own != theirs:
        raise ValueError(f"{name} has scores of the classes {own}; expected {theirs} to match {other}")


def check_reference(runs: Mapping[str, Sequence[CaseScore]]) -> None:
    """Raise ValueError unless each class of a case has as many voxels in the reference of all runs: name -> scores.

    Cases of two data sets may have the same ids; they hardly have references of the same sizes.
    """
    known: dict[tuple[str, int], tuple[str, int]] = {}
    for run, rows in runs.items():
        for row in rows:
            first, voxels = known.setdefault((row.case, row.label), (run, row.n_reference))
            if row.n_reference != voxels and run != first:
                told = f"case {row.case}, label {row.label} has {voxels} reference voxels in {first}"
                raise ValueError(f"{told} and {row.n_reference} in {run}; expected scores against one reference")


def case_values(
    rows: Sequence[CaseScore], *, metric: str, label: int | None, missed: Missed
) -> tuple[dict[str, float], int, str]:
    """Return case -> value (nan where not applicable), how many cases have a miss, and the unit that all share."""
    check_choice(metric, METRICS, name="metric")
    check_choice(missed, MISSED, name="missed")
    cases: dict[str, list[CaseScore]] = {}
    for row in rows:
        if label is None or row.label == label:
            cases.setdefault(row.case, []).append(row)
    if not cases:
        raise ValueError(f"no score of label {label} among {len(rows)} rows")
    units, values = set(), {}
    for case, own in cases.items():
        if len({row.label for row in own}) < len(own):
            raise ValueError(f"case {case!r} has more than one score of a class; give every case an id of its own")
        units |= {_unit(row, metric) for row in own}
        zero = missed == "legacy_zero"  # what is no distance is 0 in a miss anyway
        applicable = [
            0.0 if zero and row.status == "miss" else float(getattr(row, metric)) for row in own if row.status != "na"
        ]
        values[case] = float(np.mean(applicable)) if applicable else nan
        _check_finite(f"{metric} of case {case!r}", values[case])
    if len(units) > 1:
        raise ValueError(f"{metric} of the rows is in {' and in '.join(sorted(units))}; expected one unit")
    n_miss = sum(any(row.status == "miss" for row in own) for own in cases.values())
    return values, n_miss, units.pop()


def _check_finite(name: str, *values: float) -> None:
    """Raise ValueError if a value is infinite; a mean over it says nothing."""
    for value in values:
        if isinf(value):
            raise ValueError(f"{name} is {value}; expected finite numbers, or nan where a metric is not applicable")


def _unit(row: CaseScore, metric: str) -> str:
    if metric in DISTANCES:
        return row.unit
    return f"share within {row.nsd_tolerance:g} {row.unit}" if metric == "nsd" else ""


def _summary(
    metric: str, values: Sequence[float], n_miss: int, unit: str, missed: Missed, resamples: int, seed: int
) -> Summary:
    _check_finite(metric, *values)
    array = np.asarray([value for value in values if not isnan(value)], dtype=np.float64)
    n_na = len(values) - len(array)
    if not len(array):
        return Summary(metric, 0, n_na, n_miss, nan, nan, nan, nan, nan, unit, missed)
    low, high = bootstrap_interval(array, resamples=resamples, seed=seed)
    sd = float(array.std(ddof=1)) if len(array) > 1 else nan
    return Summary(
        metric, len(array), n_na, n_miss, float(array.mean()), float(np.median(array)), sd, low, high, unit, missed
    )
