# SPDX-License-Identifier: Apache-2.0
"""Few labels and many unlabelled scans, through the functions of `ssmis`; interrupted, the same command continues.

python benchmarks/own_data.py DATA/hippocampus --test 50 --labelled 15 --seeds 0 1 2 --steps 600
python benchmarks/own_data.py DATA/hc18 --test 36 --labelled 8 --nets timm_unet:resnet18 unet --spacing_mm 0.5 0.5
"""

import argparse
from pathlib import Path

from ssmis.engine import evaluate_run, train
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
    parser.add_argument("--spacing_mm", type=float, nargs="+")
    args = parser.parse_args()
    out = args.out or Path("runs") / f"own_{args.data.name}"
    lists = _split(args, out)
    for recipe in args.recipes:
        for seed in args.seeds:
            folder = out / f"{recipe}_seed{seed}"
            if (folder / "cases.csv").is_file():
                continue
            train(args.data, print, out=str(folder), recipe=recipe, seed=seed, steps=args.steps, nets=args.nets,
                  spacing_mm=args.spacing_mm, labelled=str(lists / "labelled.list"), test=str(lists / "test.list"),
                  resume=True)  # fmt: skip
            evaluate_run(folder, print)
    report_runs([out / f"{recipe}_seed{seed}" for recipe in args.recipes for seed in args.seeds], print,
                out=str(out / "report.html"), title=args.data.name)  # fmt: skip


def _split(args: argparse.Namespace, out: Path) -> Path:
    from ssmis.data import find_dataset, make_split, write_split

    if not (out / "split" / "test.list").is_file():
        split = make_split(find_dataset(args.data), labelled=args.labelled, test=args.test, seed=args.split_seed)
        write_split(split, out / "split")
    return out / "split"


if __name__ == "__main__":
    main()
