# SPDX-License-Identifier: Apache-2.0
"""Several methods and seeds on data of one's own: one split, every run trained and scored, one report."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ssmis._compare_methods import Method, by_method, methods_of
from ssmis._compare_record import Record, as_long, check_made_with, read_record, write_record
from ssmis.data import DataError, Split, find_dataset, make_split, survey, write_split
from ssmis.data.layouts import Dataset
from ssmis.data.splits import read_split
from ssmis.data.texts import read_json
from ssmis.engine.beside import run_beside
from ssmis.engine.lock import locked
from ssmis.engine.scoring import evaluate_run
from ssmis.engine.train import FREE_OPTIONS, changed_options, plan_from, resolved, train
from ssmis.engine.trained import build_recipe
from ssmis.options import CompareOptions, TrainOptions, gathered
from ssmis.report import report_runs
from ssmis.report.study import kept_files

__all__ = ["Comparison", "compare_methods"]

_PART = 2**16  # bytes


@dataclass(frozen=True)
class Comparison:
    """Trained and scored methods.

    Attributes:
        runs: method -> its run folders, one a seed, the baseline first; after it, with `equal_time`, the baseline of
            more steps as METHOD_STEPS. A method has the name of its recipe, or the one it was given.
        report: the HTML file.
    """

    runs: Mapping[str, Sequence[Path]]
    report: Path


def compare_methods(
    data: str | Path | CompareOptions, tell: Callable[[str], object] = lambda text: None, **options: Any
) -> Comparison:
    """Train methods with several seeds on one split, score them, and compare them; `ssmis compare` is this function.

    `out/METHOD_seedSEED` are run folders as `train` and `evaluate_run` write them, `out/split` the lists that all
    share, `out/compare.json` what they were made with, `out/report.html` the report. The same call again continues: it
    leaves out what is scored and resumes what was begun. Methods and seeds may be added; other data or options are
    refused. What no run could be trained with is told before the first one begins, and a run that fails does not keep
    the others from being trained, but for those of `equal_time`, which begin when all others are finished.

    `equal_time` adds runs of the baseline, `out/METHOD_STEPS_seedSEED`, with as many steps as would have taken as long
    as those of the slowest other method: by the median minutes of a run, when it is first asked for. `out/compare.json`
    keeps the number. Before they begin, a report is written without them.

    Args:
        data: folder or table, or all options in one object.
        tell: called with lines about what was found and decided, and those of the table; not with those of runs beside
            each other, which print their own.
        options: of `CompareOptions`.

    Raises:
        DataError: something is wrong with the data, by file name; or they are others than in `out`.
        ValueError: an option that is out of range, or another one than the runs in `out` were made with.
        RuntimeError: runs failed; each told why.
        FileExistsError: another process begins in `out`.
    """
    chosen = gathered(CompareOptions, data, options)
    out = Path(chosen.out or Path("runs") / f"{Path(chosen.data).resolve().name.split('.')[0]}_compared")
    runs = _runs(chosen, out)
    if chosen.keep and Path(chosen.keep).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"keep is {chosen.keep}, in the folder of the runs; expected another one")
    dataset = find_dataset(chosen.data)
    made_with = _made_with(chosen, dataset, runs)
    split = _split(chosen, out, dataset, made_with, semi=any(run.recipe != "supervised" for run in runs.values()))
    _try_out(dataset, split, runs)
    if chosen.keep:
        _make_keep(chosen.keep)
    with locked(out):
        record = read_record(out)
        check_made_with(out, record, made_with)  # another process may have begun since
        if not record:
            write_split(split, out / "split")
        write_record(out, record | made_with)
    _train_and_score(runs, tell, beside=chosen.beside)
    if chosen.equal_time:
        longer = as_long(out, runs, tell)
        if not all(map(_scored, longer)):
            tell(f"report without these: {_report(chosen, out, runs)}")
        _train_and_score(longer, tell, beside=chosen.beside)
        runs = next(iter(by_method(runs).values())) | longer | runs
    report = _report(chosen, out, runs, tell)
    return Comparison({name: list(own) for name, own in by_method(runs).items()}, report)


def _runs(chosen: CompareOptions, out: Path) -> dict[Path, TrainOptions]:
    """Run folder -> its options, method by method.

    Raises:
        ValueError: an option is out of range, or names nothing.
    """
    methods = methods_of(chosen)
    seeds = [0, 1, 2] if chosen.seeds is None else chosen.seeds
    if not seeds or len(set(seeds)) < len(seeds) or any(type(seed) is not int for seed in seeds):
        raise ValueError(f"seeds is {seeds}; expected whole numbers, at least one, each once")
    if chosen.beside < 1:
        raise ValueError(f"beside is {chosen.beside}; expected at least 1")
    same = {field.name for field in fields(TrainOptions)} & {field.name for field in fields(CompareOptions)}
    shared = {name: getattr(chosen, name) for name in same}
    shared |= {role: str(out / "split" / f"{role}.list") for role in ("labelled", "test")} | {"resume": True}
    runs = {}
    for name, method in methods.items():
        for seed in seeds:
            folder = out / f"{name}_seed{seed}"
            runs[folder] = resolved(TrainOptions(**shared | asdict(method) | {"out": str(folder), "seed": seed}))
    return runs


def _split(
    chosen: CompareOptions,
    out: Path,
    dataset: Dataset,
    made_with: Mapping[str, Mapping[str, Any]],
    *,
    semi: bool,
) -> Split:
    """The split of the first call, whose data and options must be these, or a new one.

    Raises:
        ValueError: other data or options.
        DataError: no case to compare on, or none to learn from without a label.
    """
    if old := read_record(out):
        check_made_with(out, old, made_with)
        split = read_split(dataset, out / "split")
    else:
        split = make_split(dataset, labelled=chosen.labelled, test=chosen.test, seed=chosen.split_seed)
    if not split.test:
        raise DataError(f"test is {chosen.test!r}, which holds no case out; expected some to compare on")
    if semi and not split.unlabelled:
        told = f"{chosen.data} has no case without a label, and labelled is {chosen.labelled!r}"
        raise DataError(f"{told}; expected fewer, such as 10%, so that there is something unlabelled to learn from")
    return split


def _made_with(chosen: CompareOptions, dataset: Dataset, runs: Mapping[Path, TrainOptions]) -> Record:
    """What a second call must not change: options of all runs, the data, and what each method has of its own."""
    own = [field.name for field in fields(Method)]
    one = asdict(next(iter(runs.values())))
    shared = {
        name: value for name, value in one.items() if name not in (*own, "seed", "labelled", "test", *FREE_OPTIONS)
    }
    shared |= {name: getattr(chosen, name) for name in ("labelled", "test", "split_seed")}
    digest = hashlib.sha256()
    for case in sorted(dataset.cases, key=lambda case: case.id):
        digest.update(case.id.encode())
        for path in filter(None, (case.label, case.image, *case.channels)):
            for part in (path, path.with_suffix(".img")) if path.suffix == ".hdr" else (path,):
                digest.update(_mark(part, whole=path == case.label))
    data = {"cases": len(dataset.cases), "sha256 of labels and parts of images": digest.hexdigest()}
    methods = {}
    for name, own_runs in by_method(runs).items():
        run = next(iter(own_runs.values()))
        told = [field for field in own if field != "recipe" or run.recipe != name]
        methods[f"options of {name}"] = {field: getattr(run, field) for field in told}
    found: Record = json.loads(json.dumps({"options": shared, "data": data, **methods}))
    return found


def _mark(path: Path, *, whole: bool) -> bytes:
    """Digest of a file, or of its length and three parts of it: a large data set is looked at in seconds."""
    with open(path, "rb") as file:
        if whole:
            return hashlib.file_digest(file, "sha256").digest()
        size = file.seek(0, os.SEEK_END)
        parts = hashlib.sha256(str(size).encode())
        for place in (0, (size - _PART) // 2, size - _PART):
            file.seek(max(0, place))
            parts.update(file.read(_PART))
        return parts.digest()


def _try_out(dataset: Dataset, split: Split, runs: Mapping[Path, TrainOptions]) -> None:
    """Build every method on a plan for the labelled cases: a wrong name is told before anything is trained."""
    facts, issues = survey(dataset, split.labelled)
    if any(issue.serious for issue in issues):
        return  # the first training tells them all
    for own in by_method(runs).values():
        run = next(iter(own.values()))
        build_recipe(run, plan_from(facts, dataset, run))


def _make_keep(path: str) -> None:
    """Make the folder of `keep` before hours are spent on what shall lie in it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"keep is {path}; expected a folder, or where one can be made: {error.strerror}") from error


def _train_and_score(runs: Mapping[Path, TrainOptions], tell: Callable[[str], object], *, beside: int) -> None:
    """Train and score what is not finished, some at the same time.

    Raises:
        ValueError: a folder holds a run of other options.
        RuntimeError: runs failed; each told why.
        KeyboardInterrupt: interrupted; checkpoints are written.
        SystemExit: SIGTERM, likewise.
    """
    for folder, run in runs.items():  # a name may have been that of another row, such as one of equal time
        stored = folder / "options.json"
        if stored.is_file() and (changed := changed_options(run, stored)):
            raise ValueError(f"{folder} was begun with other options: {changed}; choose another name, or another --out")
    todo = {folder: run for folder, run in runs.items() if not _scored(folder)}
    errors: dict[Path, str] = {}
    if beside > 1 and todo:  # a single one, too: with one thread, as those whose minutes it is compared with
        commands = [[sys.executable, "-m", "ssmis.compare", json.dumps(asdict(run))] for run in todo.values()]
        status = run_beside(commands, at_once=beside, go_on=True)
        if status == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        if status == 128 + signal.SIGTERM:
            raise SystemExit(status)
    else:
        for folder, run in todo.items():
            errors[folder] = _finish(run, tell)
    if failed := [folder for folder in todo if not _scored(folder)]:
        told = "".join(f"\n  {errors.get(folder) or f'{folder.name}: see what it told'}" for folder in failed)
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed, which the same call tries again:{told}")


def _report(
    chosen: CompareOptions,
    out: Path,
    runs: Mapping[Path, TrainOptions],
    tell: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write the report of these runs, and copy their scores, with what they depend on, where they shall be kept."""
    for folder in runs if chosen.keep else ():
        kept = Path(str(chosen.keep)) / folder.name
        kept.mkdir(parents=True, exist_ok=True)
        for file in kept_files(folder):
            shutil.copyfile(file, kept / file.name)
    return report_runs(list(runs), tell, out=str(out / "report.html"), title=Path(chosen.data).name)


def _scored(folder: Path) -> bool:
    """Whether a run is trained and its scores are complete."""
    record = folder / "protocol.json"
    return record.is_file() and (folder / "cases.csv").is_file() and "evaluation" in read_json(record)


def _finish(run: TrainOptions, tell: Callable[[str], object]) -> str:
    """Train and score a run, or what is left of it; returns what went wrong, with the name of the run, or nothing."""
    name = Path(str(run.out)).name

    def named(line: str) -> None:
        tell(f"{name}: {line}")

    try:
        train(run, named)
        evaluate_run(str(run.out), named, dataset=run.data, device=run.device, progress=run.progress)
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        return f"{name}: {error}"
    return ""


def _main() -> int:
    """One run beside others, whose options are the only argument, as JSON."""

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        error = _finish(TrainOptions(**json.loads(sys.argv[1]) | {"progress": False}), say)
    except KeyboardInterrupt:
        return 130
    if error:
        sys.stderr.write(f"ssmis: {error}\n")
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(_main())
