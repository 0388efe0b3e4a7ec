# SPDX-License-Identifier: Apache-2.0
r"""Few labels and many unlabelled scans, through the functions of `ssmis`; interrupted, the same command continues.

python benchmarks/own_data.py DATA/hippocampus --test 50 --labelled 15 --steps 800 --preset copy_paste --beside 2
python benchmarks/own_data.py DATA/hc18 --test 36 --labelled 8 --steps 700 --preset copy_paste --beside 2 \
    --nets timm_unet:resnet18 unet --spacing_mm 1 1 --mirror
"""

import argparse
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

from ssmis.data import find_dataset, make_split, write_split
from ssmis.engine import evaluate_run, run_beside, train
from ssmis.report import report_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--labelled", default="10%")
    parser.add_argument("--test", default="25%")
    parser.add_argument("--split_seed", type=int, default=0, help="of the split that all training seeds share")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=["supervised", "dual_uncertainty"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--nets", nargs="+")
    parser.add_argument("--norm", help="of the nets, in place of the default")
    parser.add_argument("--preset", nargs="*", default=[], help="of dual_uncertainty, or RECIPE=PRESET")
    parser.add_argument("--coefficients", nargs="+", help="NAME=VALUE, of every recipe but supervised")
    parser.add_argument("--spacing_mm", type=float, nargs="+")
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--beside", type=int, default=1, help="runs at the same time, each with one thread")
    parser.add_argument("--keep", type=Path, help="copy the scores of the cases of all runs there")
    parser.add_argument("--only_run", action="store_true", help="write no report")
    args = parser.parse_args()
    args.preset = {of or "dual_uncertainty": preset for of, _, preset in (word.rpartition("=") for word in args.preset)}
    if unknown := [of for of in args.preset if of not in args.recipes]:
        parser.error(f"--preset has one of {', '.join(unknown)}, which --recipes does not name")
    out = args.out or Path("runs") / f"own_{args.data.name}"
    lists = _split(args, out)
    runs = [(out / f"{recipe}_seed{seed}", recipe, seed) for recipe, seed in product(args.recipes, args.seeds)]
    todo = [run for run in runs if not (run[0] / "cases.csv").is_file()]
    if args.beside > 1:
        one = [sys.executable, __file__, *sys.argv[1:], "--only_run", "--beside", "1"]
        commands = []
        for _, recipe, seed in todo:
            preset = [f"{recipe}={args.preset[recipe]}"] if recipe in args.preset else []
            commands.append([*one, "--recipes", recipe, "--seeds", str(seed), "--preset", *preset])
        if status := run_beside(commands, at_once=args.beside):
            sys.exit(status)
        todo = []
    for folder, recipe, seed in todo:
        train(args.data, print, out=str(folder), recipe=recipe, seed=seed, steps=args.steps, nets=args.nets,
              spacing_mm=args.spacing_mm, mirror=args.mirror, resume=True, progress=not args.only_run,
              labelled=str(lists / "labelled.list"), test=str(lists / "test.list"),
              **_choices(args, recipe))  # fmt: skip
        evaluate_run(folder, print, progress=not args.only_run)
    if not args.only_run:
        report_runs([run[0] for run in runs], print, out=str(out / "report.html"), title=args.data.name)
    for folder, _, _ in runs if args.keep else ():
        (args.keep / folder.name).mkdir(parents=True, exist_ok=True)
        for scores in folder.glob("cases*.csv"):
            shutil.copyfile(scores, args.keep / folder.name / scores.name)


def _choices(args: argparse.Namespace, recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = {"norm": args.norm} if args.norm else {}
    if recipe in args.preset:
        found["preset"] = args.preset[recipe]
    if recipe != "supervised":
        found["coefficients"] = args.coefficients
    return found


def _split(args: argparse.Namespace, out: Path) -> Path:
    """One split for all seeds."""
    if not (out / "split" / "test.list").is_file():
        split = make_split(find_dataset(args.data), labelled=args.labelled, test=args.test, seed=args.split_seed)
        write_split(split, out / "split")
    return out / "split"


if __name__ == "__main__":
    main()
