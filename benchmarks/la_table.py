# SPDX-License-Identifier: Apache-2.0
"""Left Atrium with few labels over several seeds: supervised, dual_uncertainty, and supervised with every label.

    python benchmarks/la_table.py --data DATA/la --out runs/la_table --steps 2000
    python benchmarks/la_table.py --out runs/la_table --show
    python benchmarks/la_table.py --out runs/la_table --show --keep kept/la_table
    python benchmarks/la_table.py --data DATA/la --out runs/la_table --steps 2000 --medpy

Protocol la/cpu with its preset, last checkpoint, scored on the validation cases of dev_val.list, or on those of --test;
both are closed to training.

The same command continues wherever it was interrupted, and a second process with the same command takes the cells that
the first one has not begun: one thread each (OMP_NUM_THREADS=1) keeps two cores busy. --longer supervised=4300 adds a
row supervised_4300 of as many steps, for one that takes as long as the method, and late=2000 a row of that
preset of the method; --rows trains some rows, and the supervised one; --against prints differences to other rows.
--medpy scores what is finished once more, under MedPy's convention and into a folder beside --out, whose table it
prints. Every 100 steps `quality.csv` of a run gets the quality of its pseudo-labels on four unlabelled cases, whose
labels serve that alone (all_labels has them in training).
"""

import argparse
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from la_experiments import quality
from study import dual_uncertainty, longer, supervised, unknown_rows

from ssmis.data import la_split
from ssmis.engine import PROTOCOLS, Protocol
from ssmis.recipes import Recipe
from ssmis.recipes.dual_uncertainty import PRESETS
from ssmis.report import read_study
from ssmis.study import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the Left Atrium data set")
    parser.add_argument("--val", default="dev_val.list", help="list of validation cases")
    parser.add_argument("--test", help="list of test cases; with it these are scored")
    parser.add_argument("--labelled", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--longer",
        nargs="+",
        type=longer((*METHODS, *PRESETS)),
        default=[],
        metavar="ROW=STEPS",
        help="further rows, of other steps",
    )
    parser.add_argument("--rows", nargs="+", help="what this process trains; default: all")
    parser.add_argument("--preset", help="of dual_uncertainty; default: the protocol's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nets_alone", action="store_true", help="score each net by itself, too")
    parser.add_argument("--medpy", action="store_true", help="score what is finished under MedPy's convention, too")
    parser.add_argument("--against", nargs="+", help="rows that the others are held against in what is printed")
    parser.add_argument("--show", action="store_true", help="print what is there and train nothing")
    parser.add_argument("--keep", type=Path, help="copy the scores of what is finished there")
    parser.add_argument("--out", type=Path, default=Path("runs/la_table"))
    args = parser.parse_args()
    if not args.show:
        if args.data is None:
            parser.error("--data is missing; expected the folder of the Left Atrium data set")
        if args.steps < 1:
            parser.error(f"--steps is {args.steps}; expected at least 1")
        rows = [*METHODS, *(f"{row}_{steps}" for row, steps in args.longer), "all_labels"]
        args.rows = args.rows or rows
        if unknown := [row for row in args.rows if row not in rows]:
            parser.error(f"--rows has {unknown}; expected some of {rows} (--longer adds rows)")
        if unknown := unknown_rows(args, rows):
            parser.error(f"--against has {unknown}; expected some of {rows}")
        if args.medpy:
            args.out = unscored(args.out, {"supervised", *args.rows}, args.seeds)
        train(args)
    try:
        study = read_study(args.out)
        print(study.table(against=args.against))
        if args.keep:
            study.keep(args.keep)
    except ValueError as error:
        parser.error(str(error))


def train(args: argparse.Namespace) -> None:
    """Train and score what is not finished."""
    protocol = PROTOCOLS["la/cpu"]
    protocol = replace(protocol, fit=replace(protocol.fit, steps=args.steps), preset=args.preset or protocol.preset)
    if args.medpy:
        protocol = replace(protocol, convention="medpy")
    split = la_split(args.data, labelled=args.labelled, val=args.val, test=args.test)
    everything = la_split(args.data, labelled="all", val=args.val, test=args.test).labelled
    if not split.unlabelled:
        raise SystemExit(f"--labelled {args.labelled} leaves no unlabelled case; dual_uncertainty needs some")
    hidden = everything[len(split.labelled) :][:: max(1, len(split.unlabelled) // 4)][:4]
    builders = METHODS | {f"{row}_{steps}": builder(row) for row, steps in args.longer}
    ceiling = "all_labels" in args.rows
    run(
        protocol,
        {row: build for row, build in builders.items() if row in ("supervised", *args.rows)},
        split=split,
        everything=everything if ceiling else (),
        out=args.out,
        seeds=args.seeds,
        steps={name: steps for row, steps in args.longer if (name := f"{row}_{steps}") in args.rows},
        validations=0,
        nets_alone=args.nets_alone,
        callbacks=[quality(protocol, hidden, args.out / "hidden")],
        against=("supervised", "all_labels") if ceiling else ("supervised",),
        tell=partial(print, flush=True),
    )


def unscored(folder: Path, rows: Collection[str], seeds: Sequence[int]) -> Path:
    """Copy finished trainings without their scores, so that they are scored again."""
    study, copy = read_study(folder), folder.with_name(f"{folder.name}_medpy")
    cells = [cell for row in study.cells if row in rows for cell in study.cells[row] if cell.seed in seeds]
    for cell in cells:
        if not cell.result:
            raise SystemExit(f"{cell.folder} is unfinished; choose --rows and --seeds that are finished")
        if not (cell.folder / "checkpoints" / "last.pt").is_file():
            raise SystemExit(f"{cell.folder} has no checkpoint to score; expected the folder that trained it")
    for cell in cells:
        target = copy / cell.folder.relative_to(folder)
        if not target.exists():
            scores = shutil.ignore_patterns("result.json", "cases*.csv", "calibration.csv", "alone", "best", ".lock")
            half = target.with_name(f"{target.name}.half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(cell.folder, half, ignore=scores).rename(target)
    return copy


def builder(row: str) -> Callable[[Protocol], Recipe]:
    """What builds the recipe of a row, by the name of a method or of a preset of `dual_uncertainty`."""
    return METHODS[row] if row in METHODS else lambda protocol: dual_uncertainty(replace(protocol, preset=row))


METHODS: dict[str, Callable[[Protocol], Recipe]] = {"supervised": supervised, "dual_uncertainty": dual_uncertainty}

if __name__ == "__main__":
    main()
