# SPDX-License-Identifier: Apache-2.0
"""Runs that differ in their seed alone are one method: their means, and two methods paired by case."""

import re
from collections.abc import Sequence
from itertools import combinations
from math import nan

import numpy as np

from ssmis.metrics import CaseScore, paired_difference, summarise
from ssmis.report.runs import ReportRun

SEED = re.compile(r"(?:^|(?<=/)|[_-])seed_?-?\d+(?=/|$)")  # at the end of a folder's name, or all of it


def method_of(run: ReportRun) -> str:
    """Name of a run without `_seedN`; of the folder, where the run is `seedN` in it."""
    return re.sub("/+", "/", SEED.sub("", run.name)).strip("/") or "seeds"


def methods_of(runs: Sequence[ReportRun]) -> dict[str, list[ReportRun]]:
    """Method -> its runs, in the order of the runs."""
    methods: dict[str, list[ReportRun]] = {}
    for run in runs:
        methods.setdefault(method_of(run), []).append(run)
    return methods


def unit_of(runs: Sequence[ReportRun]) -> str:
    """Unit of the distances; empty without scores."""
    return next((score.unit for run in runs for score in run.scores), "")


def over_seeds(runs: Sequence[ReportRun], metric: str) -> tuple[float, float]:
    """Mean over runs of the mean over cases, and its standard deviation (n - 1), nan for one run; 0 to 1, or mm.

    `summarise_seeds` has an interval too, and needs the same cases in all runs; here each seed may hold out its own.
    """
    means = [summarise(run.scores, metric=metric, resamples=1).mean for run in runs]
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else nan


def differences(runs: Sequence[ReportRun]) -> list[tuple[str, str, str]]:
    """Every two methods that have a `difference`: name of the later one, name of the earlier one, what it is."""
    pairs = combinations(methods_of(runs).items(), 2)
    found = [(own, base, difference(theirs, ours)) for (base, theirs), (own, ours) in pairs]
    return [(own, base, told) for own, base, told in found if told]


def difference(base: Sequence[ReportRun], own: Sequence[ReportRun]) -> str:
    """Dice of a method minus that of a baseline, paired by case; empty if no case was scored by both.

    The Dice of a case is its mean over the seeds that scored it, so that a case counts once however many seeds there
    are; seeds may hold different cases out.
    """
    theirs, ours = (case_means([score for run in runs for score in run.scores], "dice") for runs in (base, own))
    cases = [case for case in ours if case in theirs]
    if not cases:
        return ""
    pair = paired_difference([ours[case] for case in cases], [theirs[case] for case in cases])
    seeds = f", means over {len(own)} and {len(base)} runs" if max(len(own), len(base)) > 1 else ""
    if pair.n == 1:
        return f"Dice {100 * pair.mean:+.2f} points, one case{seeds}"
    return (
        f"Dice {100 * pair.mean:+.2f} points, 95 % interval {100 * pair.low:+.2f} to {100 * pair.high:+.2f}, "
        f"p = {pair.p_value:.3g} (sign flips, {pair.n} cases{seeds})"
    )


def case_means(scores: Sequence[CaseScore], metric: str) -> dict[str, float]:
    """Case -> mean over the classes that apply to it; cases without any are left out."""
    cases: dict[str, list[float]] = {}
    for score in scores:
        if score.status != "na":
            cases.setdefault(score.case, []).append(getattr(score, metric))
    return {case: float(np.mean(values)) for case, values in cases.items()}
