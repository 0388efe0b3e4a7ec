# SPDX-License-Identifier: Apache-2.0
"""Several trainings of one method: means over seeds, their spread, and whether two methods differ by more than it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np

from ssmis._checks import check_whole
from ssmis._optional import require
from ssmis.metrics._masks import Array
from ssmis.metrics.cases import CaseScore
from ssmis.metrics.summary import Missed, case_values, check_classes, check_reference, paired_difference


@dataclass(frozen=True)
class SeedSummary:
    """One metric over seeds and cases.

    Attributes:
        metric: its name.
        seeds: trainings.
        n: cases, those included that apply in some of the trainings only.
        n_miss: cases with a missed class, added up over the trainings.
        mean: over seeds of the mean over cases.
        sd: of the means over cases from seed to seed (n - 1); nan for one seed.
        low: of the 95 % interval of the mean, over seeds and cases.
        high: likewise.
        unit: empty for what has none.
    """

    metric: str
    seeds: int
    n: int
    n_miss: int
    mean: float
    sd: float
    low: float
    high: float
    unit: str = ""


def summarise_seeds(
    runs: Sequence[Sequence[CaseScore]],
    *,
    metric: str,
    label: int | None = None,
    missed: Missed = "diagonal",
    resamples: int = 2000,
    seed: int = 0,
) -> SeedSummary:
    """Summarise one metric over trainings that differ in the seed and were scored on the same cases.

    The interval is the percentile bootstrap over both: seeds and cases are drawn independently, and a draw is the mean
    over their crossing. It covers other cases and other seeds; with few seeds, or few cases, it is too narrow. With one
    seed it is that of `summarise`.

    Args:
        runs: scores of each training.
        metric: as in `summarise`, like `label`, `missed`, `resamples` and `seed`.

    Raises:
        ValueError: what `summarise` raises, no run, other cases, classes, references or another unit in one of them.

    Paper: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007 (arXiv 0712.1111), for the crossing.
    """
    check_whole(resamples, 1, name="resamples")
    table, n_miss, unit = _table(runs, metric=metric, label=label, missed=missed)
    means = _means(table)
    n = int((~np.isnan(table)).any(axis=0).sum())
    if isnan(float(np.mean(means))):
        return SeedSummary(metric, len(runs), n, n_miss, nan, nan, nan, nan, unit)
    low, high = _crossed_interval(table, resamples=resamples, seed=seed)
    sd = float(means.std(ddof=1)) if len(means) > 1 else nan
    return SeedSummary(metric, len(runs), n, n_miss, float(means.mean()), sd, low, high, unit)


@dataclass(frozen=True)
class SeedDifference:
    """Mean of a minus mean of b over seeds, and its 95 % interval by the spread from seed to seed.

    `within_spread` is true where the interval holds 0, and None where there are too few seeds to tell.
    """

    mean: float
    low: float
    high: float

    @property
    def within_spread(self) -> bool | None:
        """Whether seeds alone explain the difference."""
        return None if isnan(self.low) else self.low <= 0 <= self.high


def compare_seeds(
    a: Sequence[Sequence[CaseScore]],
    b: Sequence[Sequence[CaseScore]],
    *,
    metric: str,
    label: int | None = None,
    missed: Missed = "diagonal",
) -> SeedDifference:
    """Compare two methods, each trained with several seeds, by their means over the same cases.

    Student's interval of a difference of two means with the pooled spread over seeds: it asks whether other seeds
    might turn the difference around, on these cases. Other cases are not its matter.

    Args:
        a: scores of each training of one method.
        b: of the other; the numbers of seeds may differ.
        metric: as in `summarise`, like `label` and `missed`.

    Raises:
        ValueError: what `summarise_seeds` raises, or other cases, references or another unit in `b`.

    Empty case: with a single seed on either side the interval is nan.
    """
    _table([*a, *b], metric=metric, label=label, missed=missed)  # the same cases and one unit throughout
    return _student(*(_means(_table(runs, metric=metric, label=label, missed=missed)[0]) for runs in (a, b)))


def _student(ours: Array, theirs: Array) -> SeedDifference:
    """Of means, one a seed."""
    mean = float(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return SeedDifference(mean, nan, nan)
    freedom = len(ours) + len(theirs) - 2
    variance = (ours.var(ddof=1) * (len(ours) - 1) + theirs.var(ddof=1) * (len(theirs) - 1)) / freedom
    special = require("scipy.special", extra="medical", purpose="intervals over seeds")
    reach = special.stdtrit(freedom, 0.975) * sqrt(variance * (1 / len(ours) + 1 / len(theirs)))
    return SeedDifference(mean, float(mean - reach), float(mean + reach))


@dataclass(frozen=True)
class MethodDifference:
    """Mean of a minus mean of b over seeds and cases, and what else it might have been.

    Attributes:
        seeds: trainings of each method, of those that share a case.
        n: cases with a value in both trainings of some seed; nothing else counts.
        mean: of the differences.
        over_seeds: 95 % interval for other seeds on these cases (`compare_seeds`); nan for one seed.
        over_cases: 95 % interval for other cases with these trainings, each case a mean over the seeds.
        p_value: of the sign-flip test over the cases (`paired_difference`).
        over_both: 95 % interval for other seeds and other cases.
    """

    seeds: int
    n: int
    mean: float
    over_seeds: tuple[float, float]
    over_cases: tuple[float, float]
    p_value: float
    over_both: tuple[float, float]


def compare_methods(
    a: Sequence[Sequence[CaseScore]],
    b: Sequence[Sequence[CaseScore]],
    *,
    metric: str,
    label: int | None = None,
    missed: Missed = "diagonal",
    resamples: int = 2000,
    seed: int = 0,
) -> MethodDifference:
    """Compare two methods, trained with the same seeds and scored on the same cases.

    The interval over both is the percentile bootstrap of `summarise_seeds`, of the differences of the two trainings of
    a seed: seeds and cases are drawn independently. With few seeds, or few cases, it is too narrow. A case that does
    not apply in one of the two trainings of a seed is left out of both.

    Args:
        a: scores of each training of one method.
        b: of the other, with the same seeds in the same order.
        metric: as in `summarise`, like `label`, `missed`, `resamples` and `seed`.

    Raises:
        ValueError: what `compare_seeds` raises, or another number of trainings in `b`.

    Empty case: without a value in both the numbers are nan.
    """
    check_whole(resamples, 1, name="resamples")
    if len(a) != len(b):
        raise ValueError(f"b has {len(b)} trainings; expected {len(a)} to match a, the same seeds in the same order")
    table = _table([*a, *b], metric=metric, label=label, missed=missed)[0]  # in one order of the cases
    gaps = table[: len(a)] - table[len(a) :]
    there = ~np.isnan(gaps)
    ours, theirs = (_means(np.where(there, own, nan)[there.any(axis=1)]) for own in (table[: len(a)], table[len(a) :]))
    gaps = gaps[there.any(axis=1)]
    if not len(gaps):
        return MethodDifference(0, 0, nan, (nan, nan), (nan, nan), nan, (nan, nan))
    spread = _student(ours, theirs)
    pair = paired_difference([*_means(gaps.T)], [0.0] * gaps.shape[1], resamples=resamples, seed=seed)
    both = _crossed_interval(gaps, resamples=resamples, seed=seed)
    ends = (spread.low, spread.high), (pair.low, pair.high)
    return MethodDifference(len(gaps), pair.n, spread.mean, *ends, pair.p_value, both)


def _crossed_interval(table: Array, *, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of `(seeds, cases)` by a bootstrap that draws rows and columns independently."""
    random = np.random.default_rng(seed)
    cases = random.integers(table.shape[1], size=(resamples, 1, table.shape[1]))
    trainings = random.integers(len(table), size=(resamples, len(table), 1))
    draws = _means(table[trainings, cases]).mean(axis=-1)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _table(
    runs: Sequence[Sequence[CaseScore]], *, metric: str, label: int | None, missed: Missed
) -> tuple[Array, int, str]:
    """Values `(seeds, cases)` with nan where not applicable, misses over all runs, and the unit."""
    if not runs:
        raise ValueError("runs is empty; expected the scores of at least one training")
    rows, n_miss, units = [], 0, []
    for index, run in enumerate(runs):
        if label is None:
            check_classes(run, runs[0], name=f"runs[{index}]", other="runs[0]")
        values, misses, unit = case_values(run, metric=metric, label=label, missed=missed)
        rows.append(values)
        n_miss += misses
        units.append(unit)
    for index, (row, unit) in enumerate(zip(rows, units)):
        if row.keys() != rows[0].keys():
            alone = sorted(row.keys() ^ rows[0].keys())
            raise ValueError(f"case {alone[0]!r} is in only one of runs[0] and runs[{index}]; expected the same cases")
        if unit != units[0]:
            raise ValueError(f"{metric} of runs[{index}] is in {unit}; expected {units[0]} to match runs[0]")
    check_reference({f"runs[{index}]": run for index, run in enumerate(runs)})
    return np.array([[row[case] for case in rows[0]] for row in rows], dtype=np.float64), n_miss, units[0]


def _means(table: Array) -> Array:
    """Mean over the last axis, nan left out; nan where there is nothing."""
    there = ~np.isnan(table)
    count = there.sum(axis=-1)
    return np.where(count > 0, np.where(there, table, 0).sum(axis=-1) / np.maximum(count, 1), nan)
