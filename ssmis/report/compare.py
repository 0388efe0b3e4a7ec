# SPDX-License-Identifier: Apache-2.0
"""One table from several run folders, if their numbers may stand beside each other."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmis.data import DataError
from ssmis.data.texts import read_json, read_text
from ssmis.metrics import CaseScore, read_cases_csv, summarise, summarise_values
from ssmis.metrics.summary import check_reference
from ssmis.report._together import SHARED, check_shared
from ssmis.report.tables import format_table

# Everything that must be beside a number, as `entry.entry` of protocol.json.
FACTS = (
    *(f"protocol.{name}" for name in ("name", "family", "patch", "scale")),
    *(f"{group}.{name}" for group in ("labelled", "evaluation.scored") for name in ("sha256", "count", "patients")),
    *("fit.seed", "fit.steps", "checkpoint", "nets", "versions"),
    *(f"evaluation.windows.{name}" for name in ("patch", "stride", "blending", "flips", "scale")),
    *(f"evaluation.{name}" for name in ("nets", "classes", "convention", "unit", "nsd_tolerance", "missed")),
    *(f"evaluation.{name}" for name in ("post_processing", "foreground_margin", "calibration_bins", "versions")),
)


@dataclass(frozen=True)
class Run:
    """A scored run: its folder, `protocol.json`, post-processing -> scores, and case -> (ECE, Brier)."""

    folder: Path
    record: Mapping[str, Any]
    scores: Mapping[str, Sequence[CaseScore]]
    calibration: Mapping[str, tuple[float, float]]

    def fact(self, name: str) -> Any:
        """The entry `outer.inner` of the record."""
        return _fact(self.record, name)


def read_run(folder: Path | str) -> Run:
    """Read a scored run, from its folder or the path of its `protocol.json`.

    Raises:
        ValueError: there is no `protocol.json`, or it lacks a fact that belongs beside every number.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == "protocol.json" else folder
    path = folder / "protocol.json"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected the folder of a run")
    record = read_json(path)
    if missing := [name for name in FACTS if _fact(record, name) is _NONE]:
        told = "the run was not scored yet" if "evaluation" not in record else ", ".join(missing)
        raise ValueError(f"{path} is not complete: {told}; `Protocol.score` writes what an evaluation depends on")
    files = {"none": "cases.csv", "largest_component": "cases_largest.csv"}
    processed = _fact(record, "evaluation.post_processing")
    if not isinstance(processed, list) or not processed or any(name not in [*files] for name in processed):
        raise ValueError(f"{path}: evaluation.post_processing is {processed!r}; expected some of {', '.join(files)}")
    for name in processed:
        if not (folder / files[name]).is_file():
            raise ValueError(f"{folder / files[name]}: there is no such file; expected the scores that {path} tells of")
    scores = {name: read_cases_csv(folder / files[name]) for name in processed}
    return Run(folder, record, scores, _calibration(folder / "calibration.csv"))


def _calibration(path: Path) -> dict[str, tuple[float, float]]:
    try:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
        return {row["case"]: (float(row["ece"]), float(row["brier"])) for row in rows}
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as case, ece and brier ({error!r})") from error


def runs_table(folders: Sequence[Path | str]) -> str:
    """Return a Markdown table of scored runs, two rows each: as predicted, and with the largest component alone.

    Under the convention "medpy" the last distance is its `asd`, else `assd`.

    Args:
        folders: of runs, or their `protocol.json` files.

    Raises:
        ValueError: the runs are of different families, scored on other cases, other references or by other
            conventions, or a record is not complete; the message says which two and how they differ.
    """
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise ValueError("folders is empty; expected at least one run")
    check_comparable(runs)
    unit = runs[0].fact("evaluation.unit")
    distance = "asd" if runs[0].fact("evaluation.convention") == "medpy" else "assd"
    windows = {run.folder: _windows(run) for run in runs}
    differ = len(set(windows.values())) > 1
    headers = ["run", "protocol", "seed", "steps", "labels", "nets"] + ["windows"] * differ
    headers += ["post-processing", "Dice %", "95 % interval", "Jaccard %"]
    headers += [f"HD95 {unit}", f"{distance.upper()} {unit}", "missed", "ECE %", "Brier"]
    rows = [
        _row(run, name, scores, distance, windows=windows[run.folder] if differ else None)
        for run in runs
        for name, scores in run.scores.items()
    ]
    return format_table(headers, rows)


def check_comparable(runs: Sequence[Run], *, checkpoints: bool = False) -> None:
    """Raise ValueError if the numbers of runs must not stand in one table.

    Args:
        runs: of which each record is complete.
        checkpoints: the table has a column for the rule of the checkpoint, so that it may differ.
    """
    names = [name for name in (*SHARED, "evaluation.scored.sha256") if not (checkpoints and name == "checkpoint")]
    facts = {str(run.folder): {name: run.fact(name) for name in names} for run in runs}
    check_shared({run: {name: fact for name, fact in own.items() if fact is not _NONE} for run, own in facts.items()})
    check_reference({str(run.folder): next(iter(run.scores.values())) for run in runs})


def _windows(run: Run) -> str:
    """How a run was predicted, in a cell."""
    patch, stride, blending, flips, scale = (
        run.fact(f"evaluation.windows.{name}") for name in ("patch", "stride", "blending", "flips", "scale")
    )
    sizes = " by ".join("x".join(map(str, sizes)) for sizes in (patch, stride))
    return f"{sizes}, {blending}, scale {scale}" + (", flips" if flips else "")


def _row(run: Run, name: str, scores: Sequence[CaseScore], distance: str, *, windows: str | None) -> list[object]:
    dice, jaccard, hd95, mean = (summarise(scores, metric=metric) for metric in ("dice", "jaccard", "hd95", distance))
    ece, brier = (
        summarise_values(values, metric="calibration").mean for values in zip(*run.calibration.values(), strict=True)
    )
    calibrated: list[object] = [100 * ece, brier] if name == "none" else [None, None]  # of probabilities, not of masks
    return [
        run.folder.name,
        run.fact("protocol.name"),
        run.fact("fit.seed"),
        run.fact("fit.steps"),
        run.fact("labelled.patients"),
        " + ".join(run.fact("evaluation.nets")),
        *([] if windows is None else [windows]),
        name.replace("_", " "),
        100 * dice.mean,
        f"{100 * dice.low:.1f} to {100 * dice.high:.1f}",
        100 * jaccard.mean,
        hd95.mean,
        mean.mean,
        dice.n_miss,
        *calibrated,
    ]


_NONE = object()


def _fact(record: Mapping[str, Any], name: str) -> Any:
    found: Any = record
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _NONE
        found = found[part]
    return found
