# SPDX-License-Identifier: Apache-2.0
"""What is each term of dual_uncertainty worth, and what do the terms cost that train nothing in the public code?

    python benchmarks/study.py --data DATA/la --out runs/study

Left Atrium, protocol la/cpu, 8 labelled cases, 15 minutes of training steps a run, 3 seeds, scored on the validation
cases of dev_val.list, which are out of training. Rows: supervised; public_code; paper; and paper without the KL weight,
without the entropy filter, without the contrast. That is 18 runs, four and a half hours of steps and validation on top.
The same command continues wherever it was interrupted, and --show prints the table as far as it is. Without --data it
runs on phantoms (--labelled 4), to try it out.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ssmis.data import la_split, write_phantoms
from ssmis.engine import PROTOCOLS
from ssmis.recipes import DualUncertainty, Supervised
from ssmis.report import read_study
from ssmis.study import Build, run

# Arguments of DualUncertainty; the pair of nets and everything else is the same in all rows.
ROWS = {
    "public_code": {"preset": "public_code"},
    "paper": {},
    "paper-no-kl-weight": {"kl_rectified": False},  # plain cross pseudo supervision in the place of the rectified one
    "paper-no-entropy-filter": {"filtered_weight": 0.0},  # no filtered term; the contrast still finds unsure voxels
    "paper-no-contrast": {"contrast_weight": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the Left Atrium data set; default: phantoms")
    parser.add_argument("--val", default="dev_val.list", help="list of validation cases")
    parser.add_argument("--test", help="list of test cases; with it these are scored")
    parser.add_argument("--labelled", type=int, help="labelled cases; default: 8, phantoms 4")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training steps a run")
    parser.add_argument("--steps", type=int, help="of every run, instead of --minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="beside supervised")
    parser.add_argument("--show", action="store_true", help="print what is there and train nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    args = parser.parse_args()
    if args.show:
        print(read_study(args.out))
        return
    protocol = PROTOCOLS["la/cpu" if args.data else "phantom"]
    if args.steps is not None:
        protocol = replace(protocol, fit=replace(protocol.fit, steps=args.steps))
    count = args.labelled or (8 if args.data else 4)
    if args.data is None:
        args.data = write_phantoms(args.out / "phantoms", labelled=count, unlabelled=20, size=protocol.patch)
        names = (args.data / "train.list").read_text(encoding="utf-8").split()
        (args.data / args.val).write_text("".join(f"{name}\n" for name in names[-4:]), encoding="utf-8")

    rows = {name: builder(**ROWS[name]) for name in args.rows}
    study = run(
        protocol,
        {"supervised": lambda protocol: Supervised(protocol.nets()), **rows},
        split=la_split(args.data, labelled=count, val=args.val, test=args.test),
        out=args.out,
        seeds=args.seeds,
        minutes=None if args.steps is not None else args.minutes,
        against=("supervised", *(["paper"] if "paper" in rows else [])),
        tell=lambda line: print(line, flush=True),
    )
    print(f"\n{study}")


def builder(**arguments: object) -> Build:
    """Return protocol -> the recipe of a row."""
    return lambda protocol: DualUncertainty(protocol.nets(), **arguments)


if __name__ == "__main__":
    main()
