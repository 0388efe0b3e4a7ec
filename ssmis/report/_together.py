# SPDX-License-Identifier: Apache-2.0
"""Which scores may stand in one table, and which runs are seeds of one method, as far as their records tell."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ssmis.metrics.summary import check_reference
from ssmis.report._methods import methods_of
from ssmis.report.runs import ReportRun

# What all rows of a table share, as `entry.entry` of protocol.json; other facts may differ.
SHARED = (
    *("protocol.family", "evaluation.classes", "evaluation.label_names", "evaluation.convention", "evaluation.unit"),
    *("evaluation.nsd_tolerance", "evaluation.missed", "evaluation.foreground_margin", "evaluation.calibration_bins"),
    "checkpoint",
)
# What all seeds of a method share: entries, and those that may follow from lists of cases, in which seeds may differ.
_OF_A_METHOD = ("fit", "method", "recipe", "preset", "coefficients", "nets", "evaluation.nets")
_OF_LISTS = ("protocol", "plan", "norm", "evaluation.windows")
_BY_LISTS = {"method.config.components"}  # of classes that are one piece in the labels
_FREE = {
    "fit.seed",
    *(f"fit.{name}" for name in ("device", "precision", "memory_format", "accumulate", "deterministic")),
    *(f"fit.{name}" for name in ("checkpoint_every", "callback_every", "max_skipped", "patience")),
}


def check_shared(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError unless each entry has one value in all runs that have it: run -> entry -> value."""
    for name, (run, value), (other, first) in _differing(found):
        told = f"{run} has {name} {value!r}, {other} has {first!r}"
        raise ValueError(f"{told}: their numbers do not compare; expected tables of their own")


def check_together(runs: Sequence[ReportRun]) -> None:
    """Raise ValueError unless the scores of these runs may stand in one table, as far as they and their records tell.

    A record without a family is of none, which is another one than any that is named. Scores that were kept without
    a record (`protocol.json`) tell units, classes, tolerance and sizes of the references alone: they may stand beside
    one family, whichever it is. Seeds may have scored other cases, as each may hold out its own; two methods need a
    case that both have scored.
    """
    scored = [run for run in runs if run.scores]
    check_shared({run.name: _kind_of(run) for run in scored})
    check_reference({run.name: run.scores for run in scored})
    methods = methods_of(scored)
    for method, own in methods.items():
        _check_seeds(method, own)
    cases = {method: {score.case for run in own for score in run.scores} for method, own in methods.items()}
    for (first, theirs), (method, ours) in combinations(cases.items(), 2):
        if not ours & theirs:
            told = f"{method} was scored on {len(ours)} cases, such as {min(ours)!r}, and {first} on {len(theirs)}"
            raise ValueError(f"{told} others, such as {min(theirs)!r}; expected two methods to have cases in common")


def _kind_of(run: ReportRun) -> dict[str, Any]:
    """What the scores of runs in one table share."""
    found: dict[str, Any] = {
        "distances in": sorted({score.unit for score in run.scores}),
        "classes": sorted({score.label for score in run.scores}),
        "tolerance of nsd": sorted({score.nsd_tolerance for score in run.scores}),
    }
    if (Path(run.folder) / "protocol.json").is_file():
        record = {"protocol.family": ""} | run.settings("protocol.json")
        found |= {name: record[name] for name in SHARED if name in record}
    return found


def _check_seeds(method: str, runs: Sequence[ReportRun]) -> None:
    """Raise ValueError if runs that are one method by their names were not made as one."""
    records = {run.name: run.settings("protocol.json") for run in runs}
    same_lists = len({str(record.get("labelled.sha256")) for record in records.values() if record}) == 1
    groups = (*_OF_A_METHOD, *(_OF_LISTS if same_lists else ()))
    free = _FREE if same_lists else _FREE | _BY_LISTS
    entries = {
        run: {name: value for name, value in record.items() if name not in free and _is_in(name, groups)}
        for run, record in records.items()
    }
    found = _differing(entries)
    for name in ("labelled.count", "unlabelled.count"):  # folds of a cross-validation are about as large
        counts = {run: {name: record[name]} for run, record in records.items() if type(record.get(name)) is int}
        sizes = [count[name] for count in counts.values()]
        if sizes and max(sizes) - min(sizes) > max(0 if same_lists else 1, max(sizes) / 10):
            found += _differing(counts)
    for name, (run, value), (other, first) in found:
        told = f"{other} and {run} are seeds of {method!r} by their names, and {name} is {first!r} and {value!r}"
        raise ValueError(f"{told}; expected runs that differ in the seed alone: rename one of the folders")


def _is_in(name: str, groups: Sequence[str]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _differing(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, tuple[str, Any], tuple[str, Any]]]:
    """Entries of which a run has another value than the first run that has them: name, (run, value), (first, value)."""
    known: dict[str, tuple[str, Any]] = {}
    differ = []
    for run, entries in found.items():
        for name, value in entries.items():
            first = known.setdefault(name, (run, value))
            if value != first[1]:
                differ.append((name, (run, value), first))
    return differ
