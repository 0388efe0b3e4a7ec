# SPDX-License-Identifier: Apache-2.0
"""Several methods and seeds on data of one's own: one split, every run trained and scored, one report."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ssmis._optional import require
from ssmis.data import DataError, find_dataset, make_split, write_split
from ssmis.data.texts import read_json
from ssmis.engine.atomic import replace_text
from ssmis.engine.beside import run_beside
from ssmis.engine.lock import locked
from ssmis.engine.scoring import evaluate_run
from ssmis.engine.train import check_options, resolved, train
from ssmis.options import CompareOptions, TrainOptions
from ssmis.registry import RECIPES
from ssmis.report import report_runs

__all__ = ["Comparison", "compare_methods"]


@dataclass(frozen=True)
class Comparison:
    """Trained and scored methods.

    Attributes:
        runs: recipe -> its run folders, one a seed, the baseline first.
        report: the HTML file, or None if none was asked for.
    """

    runs: Mapping[str, Sequence[Path]]
    report: Path | None


def compare_methods(
    data: str | Path | CompareOptions, tell: Callable[[str], object] = lambda text: None, **options: Any
) -> Comparison:
    """Train methods with several seeds on one split, score them, and compare them; `ssmis compare` is this function.

    `out/RECIPE_seedSEED` are run folders as `train` and `evaluate_run` write them, `out/split` the lists that all
    share, `out/report.html` the report. The same call again continues: it leaves out what is scored and resumes what
    was begun; recipes and seeds may be added.

    Args:
        data: folder or table, or all options in one object.
        tell: called with lines about what was found and decided, and those of the table.
        options: of `CompareOptions`.

    Raises:
        DataError: something is wrong with the data; what, by file name.
        ValueError: an option that is out of range, or another one than the study in `out` was begun with.
        RuntimeError: a run beside others failed, see what it told.
        FileExistsError: another process trains one of the runs.
    """
    chosen = data if isinstance(data, CompareOptions) else CompareOptions(data=str(data), **options)
    recipes, seeds = chosen.recipes or list(BOTH), chosen.seeds or [0, 1, 2]
    for name, given in (("recipes", recipes), ("seeds", seeds)):
        if len(set(given)) < len(given):
            raise ValueError(f"{name} is {given}; expected each once")
    presets = _presets(chosen, recipes)
    if chosen.beside < 1:
        raise ValueError(f"beside is {chosen.beside}; expected at least 1")
    out = Path(chosen.out or Path("runs") / f"{Path(chosen.data).resolve().name.split('.')[0]}_compared")
    same = {field.name for field in fields(TrainOptions)} & {field.name for field in fields(CompareOptions)}
    shared = {name: getattr(chosen, name) for name in same}
    lists = {role: str(out / "split" / f"{role}.list") for role in ("labelled", "test")}
    todo: list[tuple[Path, TrainOptions]] = []
    for recipe in recipes:
        coefficients = None if recipe == "supervised" else chosen.coefficients
        own = {"recipe": recipe, "preset": presets.get(recipe), "coefficients": coefficients, "resume": True}
        for seed in seeds:
            folder = out / f"{recipe}_seed{seed}"
            run = TrainOptions(**shared | lists | own | {"out": str(folder), "seed": seed})
            if (folder / "cases.csv").is_file():
                check_options(resolved(run), folder / "options.json")
            else:
                todo.append((folder, run))
    _split(chosen, recipes, out)
    if chosen.beside > 1 and len(todo) > 1:
        _beside(chosen, [run for _, run in todo], out)
    else:
        for folder, run in todo:
            tell(f"{run.recipe}, seed {run.seed}")
            train(run, tell)
            evaluate_run(folder, tell, device=run.device, progress=run.progress)
    runs = {recipe: [out / f"{recipe}_seed{seed}" for seed in seeds] for recipe in recipes}
    folders = [folder for own_runs in runs.values() for folder in own_runs]
    for folder in folders if chosen.keep else ():
        (Path(str(chosen.keep)) / folder.name).mkdir(parents=True, exist_ok=True)
        for scores in folder.glob("cases*.csv"):
            shutil.copyfile(scores, Path(str(chosen.keep)) / folder.name / scores.name)
    if not chosen.report:
        return Comparison(runs, None)
    return Comparison(runs, report_runs(folders, tell, out=str(out / "report.html"), title=Path(chosen.data).name))


def _presets(chosen: CompareOptions, recipes: list[str]) -> dict[str, str]:
    """Recipe -> its preset, of RECIPE=PRESET words."""
    for recipe in recipes:
        RECIPES[recipe]  # an unknown one is told before anything is written
    presets: dict[str, str] = {}
    for word in chosen.presets or ():
        recipe, _, preset = word.partition("=")
        if recipe not in recipes or not preset or recipe in presets:
            raise ValueError(f"presets has {word!r}; expected RECIPE=PRESET, once for each of {', '.join(recipes)}")
        presets[recipe] = preset
    return presets


def _split(chosen: CompareOptions, recipes: list[str], out: Path) -> None:
    """One split for all runs: made once, and only ever read with the options that it was made with."""
    made = {name: getattr(chosen, name) for name in ("labelled", "test", "split_seed")}
    record = out / "split" / "made_by.json"
    if record.is_file():
        if (old := read_json(record)) != made:
            raise ValueError(f"{record.parent} was made by {old} and not by {made}; choose another folder with --out")
        return
    split = make_split(find_dataset(chosen.data), labelled=chosen.labelled, test=chosen.test, seed=chosen.split_seed)
    if not split.test:
        raise DataError(f"test is {chosen.test!r}, which holds no case out; expected some to compare the methods on")
    if not split.unlabelled and recipes != ["supervised"]:
        told = f"{chosen.data} has no case without a label, and labelled is {chosen.labelled!r}"
        raise DataError(f"{told}; expected fewer, such as 10%, so that there is something unlabelled to learn from")
    with locked(out):
        write_split(split, out / "split")
        replace_text(record, json.dumps(made))


def _beside(chosen: CompareOptions, runs: list[TrainOptions], out: Path) -> None:
    """Every run in a process of its own, some at a time."""
    yaml = require("yaml", extra="medical", purpose="compare.yaml")
    replace_text(
        out / "compare.yaml", yaml.safe_dump(asdict(replace(chosen, out=str(out), presets=None)), sort_keys=False)
    )
    one = [sys.executable, "-m", "ssmis", "compare", "--config", str(out / "compare.yaml")]
    quiet = ["--beside", "1", "--report", "false", "--progress", "false"]
    commands = []
    for run in runs:
        preset = ["--presets", f"{run.recipe}={run.preset}"] if run.preset else []
        commands.append([*one, *quiet, "--recipes", run.recipe, "--seeds", str(run.seed), *preset])
    if status := run_beside(commands, at_once=chosen.beside):
        if status == 130:
            raise KeyboardInterrupt
        raise RuntimeError(f"a run ended with status {status}, see what it told; the same command continues the others")


BOTH = ("supervised", "dual_uncertainty")
