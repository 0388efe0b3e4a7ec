# SPDX-License-Identifier: Apache-2.0
"""`compare.json`: what the runs of a comparison were made with, and how long the baseline trains at equal time."""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmis._compare_methods import by_method
from ssmis.data import DataError
from ssmis.data.texts import read_json
from ssmis.engine.atomic import replace_text
from ssmis.engine.lock import locked
from ssmis.options import TrainOptions
from ssmis.report import ReportRun

_EQUAL_TIME = "steps at equal time"  # baseline -> other method -> steps of the baseline
_WORTH_IT = 1.05  # times the steps of the baseline, below which another training of it tells nothing new

Record = dict[str, dict[str, Any]]


def read_record(out: Path) -> Record:
    """The record in a folder of runs; empty where none was begun.

    Raises:
        DataError: it is missing beside runs, or holds something else.
    """
    path = out / "compare.json"
    if not path.is_file():
        if run := next(out.glob("*_seed*/protocol.json"), None):
            told = f"there is no such file beside {run.parent.name}; expected what that run was made with"
            raise DataError(f"{path}: {told}: choose another folder with --out")
        return {}
    record: Record = read_json(path)
    if missing := [kind for kind in ("options", "data") if kind not in record]:
        raise DataError(f"{path}: there are no {missing[0]}; expected a file that ssmis compare wrote")
    for kind, entry in record.items():
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {kind!r} is {str(entry)[:200]!r}; expected an object")
    for baseline, steps in record.get(_EQUAL_TIME, {}).items():
        where = f"{path}: {_EQUAL_TIME!r} of {baseline}"
        if not isinstance(steps, dict):
            raise DataError(f"{where} is {str(steps)[:200]!r}; expected an object")
        for method, count in steps.items():
            if type(count) is not int or count < 1:
                raise DataError(f"{where}, {method} is {str(count)[:200]!r}; expected a whole number of at least 1")
    return record


def write_record(out: Path, record: Record) -> None:
    """Write the record, whole or not at all."""
    replace_text(out / "compare.json", json.dumps(record, indent=1))


def check_made_with(out: Path, record: Record, now: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what differs from what the runs were made with.

    Raises:
        ValueError: other options or data.
    """
    for kind, own in now.items():
        before = record.get(kind, own)
        if changed := [name for name in {**before, **own} if before.get(name) != own.get(name)]:
            told = ", ".join(f"{name} was {before.get(name)} and is {own.get(name)}" for name in changed)
            raise ValueError(f"{out} was made with other {kind}: {told}; choose another folder with --out")


def as_long(out: Path, runs: Mapping[Path, TrainOptions], tell: Callable[[str], object]) -> dict[Path, TrainOptions]:
    """Runs of the baseline, the first method, that take as long as those of the slowest other one; none if it is as
    slow as they are.

    Raises:
        DataError: a log of finished runs that tells no time.
        FileExistsError: another process writes the record.
    """
    (name, baseline), *others = by_method(runs).items()
    own_steps = next(iter(baseline.values())).steps or 1
    with locked(out):
        record = read_record(out)
        known = record.setdefault(_EQUAL_TIME, {}).setdefault(name, {})
        for method, own in others:
            if method not in known:
                ours, theirs = (statistics.median(map(_minutes, folders)) for folders in (baseline, own))
                known[method] = max(1, round(own_steps * theirs / ours))
                told = f"{known[method]} steps of {name} take as long as {method}"
                tell(
                    f"equal time: {told}, whose runs took {theirs:.2f} minutes, where {own_steps} steps took {ours:.2f}"
                )
        write_record(out, record)
    slowest = max((method for method, _ in others), key=lambda method: known[method])
    steps = known[slowest]
    if steps < _WORTH_IT * own_steps:
        tell(f"equal time: {name} takes as long as {slowest} or longer, so its row is that at equal time, too")
        return {}
    tell(f"equal time: {name}_{steps} is {name} for as long as {slowest}")
    longer = {out / f"{name}_{steps}_seed{run.seed}": run for run in baseline.values()}
    return {folder: replace(run, steps=steps, out=str(folder)) for folder, run in longer.items()}


def _minutes(folder: Path) -> float:
    minutes = ReportRun(folder.name, folder).training_minutes
    if not 0 < minutes < math.inf:
        raise DataError(f"{folder / 'metrics.csv'}: its last seconds are {60 * minutes:g}; expected more than 0")
    return minutes
