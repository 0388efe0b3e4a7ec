# SPDX-License-Identifier: Apache-2.0
"""A report from run folders alone: scores, spread over seeds, cases with their predictions."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmis.data import Case, DataError, Plan, find_dataset
from ssmis.data.scans import case_scan, read_labels
from ssmis.data.texts import read_json
from ssmis.options import ReportOptions, gathered
from ssmis.report._methods import SEED, differences, method_of, methods_of, over_seeds, unit_of
from ssmis.report._parts import number
from ssmis.report._together import check_together
from ssmis.report.html import write_report
from ssmis.report.runs import CaseView, ReportRun, pick_cases
from ssmis.report.study import read_study
from ssmis.report.tables import format_table


def report_runs(
    runs: str | Path | Sequence[str | Path] | ReportOptions,
    tell: Callable[[str], object] = lambda text: None,
    **options: Any,
) -> Path:
    """Compare evaluated runs in one HTML file; `ssmis report` is this function.

    Runs whose names differ only in `_seedN` are one method: the table has the mean of their means and its standard
    deviation over seeds, and a paired test compares each two methods (`compared`). The worst, median and best
    case of the last run are shown, with the predictions of every run and their uncertainty.

    Args:
        runs: scored run folders, the baseline first, or folders of them, whose supervised runs come first, or studies,
            whose finished runs are taken in the order of the rows; one or several; or all options. Scores that were
            kept without logs and settings (`cases.csv`) are a run, too.
        tell: called with the lines of the table.
        options: of `ReportOptions`.

    Returns:
        The file.

    Raises:
        DataError: no run, or one without scores.
        ValueError: a run that is named twice, scores that do not compare (of other families, conventions, units,
            classes, checkpoint rules, references, or of no case in common), or seeds of one method by their names that
            differ in more than the seed.
    """
    runs = [runs] if isinstance(runs, str | Path) else runs
    chosen = gathered(ReportOptions, runs, options, spelled=lambda runs: [str(run) for run in runs])
    folders = _folders(chosen.runs)
    named = [ReportRun(name, folder) for name, folder in zip(_names(folders), folders)]
    check_together(named)
    write_report(chosen.out, named, title=chosen.title, subtitle=_subtitle(named), views=_views(named))
    for line in (*seeds_table(named).splitlines(), *compared(named).splitlines()):
        tell(line)
    return Path(chosen.out)


def seeds_table(runs: Sequence[ReportRun]) -> str:
    """Text table of methods: mean over seeds of Dice and HD95, their standard deviation, and mean minutes of training.

    Raises:
        DataError: a run without scores.
    """
    rows = []
    for method, own in methods_of(runs).items():
        cells: list[Any] = [method, len(own)]
        for metric, factor in (("dice", 100), ("hd95", 1)):
            mean, sd = over_seeds(own, metric)
            cells += [f"{factor * mean:.2f}", f"{factor * sd:.2f}" if len(own) > 1 else "-"]
        rows.append([*cells, number(float(np.mean([run.training_minutes for run in own])), 1)])
    return format_table(["method", "seeds", "Dice %", "sd", f"HD95 {unit_of(runs)}", "sd", "minutes"], rows)


def compared(runs: Sequence[ReportRun]) -> str:
    """A line for each two methods: the later minus the earlier one, paired by case, where both scored a case."""
    return "\n".join(f"{own} minus {base}: {told}" for own, base, told in differences(runs))


def _folders(runs: Sequence[str]) -> list[Path]:
    folders: list[Path] = []
    for run in map(Path, runs):
        if not (inside := [run] if _is_run(run) else _inside(run)):
            raise DataError(f"{run}: there is no run folder; expected protocol.json or cases.csv in it")
        folders += inside
    for folder in folders:
        if not (folder / "cases.csv").is_file():
            raise DataError(f"{folder}: there are no scores; run ssmis evaluate {folder} first")
    if not folders:
        raise DataError("there is no run to report on")
    real = [folder.resolve() for folder in folders]
    if twice := [folder for index, folder in enumerate(folders) if real[index] in real[:index]]:
        raise ValueError(f"{twice[0]} is named twice; expected each run once")
    return folders


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("protocol.json", "cases.csv"))


def _inside(folder: Path) -> list[Path]:
    """The finished runs of a study, row by row; else the run folders in a folder by name, those of supervised training
    first: they are the baseline."""
    if (folder / "study.json").is_file():
        cells = [cell for row in read_study(folder).cells.values() for cell in row]
        if not (finished := [cell.folder for cell in cells if cell.result]):
            raise DataError(f"{folder}: none of the {len(cells)} runs of this study is finished")
        return finished
    found = sorted((path for path in folder.glob("*") if _is_run(path)), key=_by_method_and_seed)
    methods = [ReportRun(run.name, run).settings("protocol.json").get("method.class") for run in found]
    return [run for first in (True, False) for run, own in zip(found, methods) if (own == "Supervised") is first]


def _by_method_and_seed(run: Path) -> tuple[str, list[int]]:
    """What sorts `supervised_seed0` before `supervised_900_seed0`, and seed 2 before seed 10."""
    name = ReportRun(run.name, run)
    return method_of(name), [int(number) for number in re.findall(r"\d+", run.name)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Names of the folders, with as many of the folders that they lie in as tell them apart.

    `seed0` alone is no name, unless all of them are seeds in one folder.
    """
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    seeds = any(SEED.fullmatch(own[-1]) for own in parts) and len({own[:-1] for own in parts}) > 1
    depths = range(2 if seeds else 1, max(map(len, parts)) + 1)
    depth = next(depth for depth in depths if len({own[-depth:] for own in parts}) == len(parts))
    return ["/".join(own[-depth:]) for own in parts]


_CHECKPOINTS = {
    "last": "last checkpoint",
    "best_on_validation": "best checkpoint on the validation cases",
    "best_on_scored": "best checkpoint on the very cases that are scored, which flatters",
}


def _subtitle(runs: Sequence[ReportRun]) -> str:
    cases = {score.case for run in runs for score in run.scores}
    held_out = (
        "one held-out case, on its own grid" if len(cases) == 1 else f"{len(cases)} held-out cases, on their own grids"
    )
    rules = {str(run.settings("protocol.json").get("checkpoint", "")) for run in runs}
    rule = rules.pop() if len(rules) == 1 else ""  # kept scores do not tell
    return ", ".join([held_out, *([_CHECKPOINTS.get(rule, f"checkpoint {rule}")] if rule else [])])


def _views(runs: Sequence[ReportRun]) -> list[CaseView]:
    """Cases with pictures, where the data and the predictions are still there."""
    options = Path(runs[-1].folder) / "options.json"
    if not options.is_file():
        return []
    try:
        dataset = find_dataset(str(read_json(options)["data"]))
        known = {case.id: case for case in dataset.cases}
        plan = Plan.read(Path(runs[-1].folder) / "plan.json")
        return [_view(known[case], note, runs, plan) for note, case in pick_cases(runs[-1].scores).items()]
    except (DataError, KeyError):  # the data have moved: numbers and curves are still worth a page
        return []


def _view(case: Case, note: str, runs: Sequence[ReportRun], plan: Plan) -> CaseView:
    scan = case_scan(case)
    size = scan.grid.canonical_shape
    flat = len(size) == 3 and plan.dims == 2

    def shown(array: Any) -> Any:
        return array[..., 0] if flat else array

    def maps(kind: str) -> dict[str, Any]:
        """Run -> its map of this case, as far as there is one."""
        paths = [(run.name, Path(run.folder) / kind / (case.id + end)) for run in runs for end in (".nii.gz", ".png")]
        return {name: read_labels(path, scan.grid) for name, path in paths if path.is_file()}

    predictions = {name: shown(plan.classes_of(values)) for name, values in maps("predictions").items()}
    uncertainty = {name: shown(values / 255) for name, values in maps("uncertainty").items()}
    reference = None if case.label is None else shown(plan.classes_of(read_labels(case.label, scan.grid)))
    spacing = scan.grid.canonical_spacing_mm[: 2 if flat else None]
    image = shown(scan.image[0].astype(np.float32))
    return CaseView(case.id, image, predictions, reference, uncertainty, spacing_mm=spacing, note=note)
