# SPDX-License-Identifier: Apache-2.0
"""What is each term of dual_uncertainty worth, what do the terms cost that train nothing in the public code, and how do
the recipes compare?

    python benchmarks/study.py --data DATA/la --out runs/study
    python benchmarks/study.py --data DATA/la --out runs/methods --study methods
    python benchmarks/study.py --data DATA/la --out runs/ablation --study copy_paste --steps 700

Left Atrium, protocol la/cpu, 8 labelled cases, 3 seeds, scored on the validation cases of dev_val.list, which no
training opens. Rows of the study "terms": supervised; public_code; paper; and paper without the KL weight, without the
entropy filter, without the contrast; that is 18 runs, with 15 minutes of training steps each four and a half hours.
Rows of "methods": supervised; the semi-supervised recipes, with the nets of the protocol (mean_teacher: its V-Net), and
uc_seg_late, uc_seg whose first half learns from labels alone.
Rows of "copy_paste": supervised; that preset; one setting of it changed at a time; and each net scored alone.

A second process with the same command takes cells that the first one has not begun, and the same command continues
wherever it was interrupted; --longer supervised=565 adds a row supervised_565 of as many steps, and --all_labels 619
one of supervised training with the labels of all cases. --show prints the table as far as it is, --against with
differences to rows of one's choice; --keep copies the scores. Without --data it runs on phantoms (--labelled 4), to try
it out.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmis.data import Case, la_split, write_phantoms
from ssmis.engine import PROTOCOLS, Protocol
from ssmis.recipes import CrossPseudo, DualUncertainty, MeanTeacher, Recipe, Supervised, UCSeg
from ssmis.report import read_study
from ssmis.study import Build, run

# Arguments of DualUncertainty beside the preset; the pair of nets and everything else is the same in all rows.
TERMS: dict[str, dict[str, Any]] = {
    "public_code": {"preset": "public_code"},
    "paper": {},
    "paper-no-kl-weight": {"kl_rectified": False},  # plain cross pseudo supervision in the place of the rectified one
    "paper-no-entropy-filter": {"filtered_weight": 0.0},  # no filtered term; the contrast still finds unsure voxels
    "paper-no-contrast": {"contrast_weight": 0.0},
}
COPY_PASTE: dict[str, dict[str, Any]] = {
    "copy_paste": {},
    "keep-0.2": {"keep_fraction": 0.2},
    "keep-0.8": {"keep_fraction": 0.8},
    "bank-batch": {"bank": "batch"},
    "bank-ema": {"bank": "ema"},
    "boxes-of-unlabelled": {"mix_with": "unlabelled", "mix_side": 0.5},
    "labelled-in-boxes-only": {"mix_with": "labelled_only"},
    "no-boxes": {"mix_with": "unlabelled", "mix_side": 0.0},
    "no-components": {"components": False},
    "from-the-start": {"unlabelled_from": 0.0},
    "hard-targets": {"targets": "hard"},
    "no-pseudo-dice": {"pseudo_dice_weight": 0.0},
    "no-kl-weight": {"kl_rectified": False},
    "no-entropy-filter": {"filtered_weight": 0.0},
    "no-contrast": {"contrast_weight": 0.0},
}


def supervised(protocol: Protocol) -> Recipe:
    return Supervised(protocol.nets())


def mean_teacher(protocol: Protocol) -> Recipe:
    return MeanTeacher({"vnet": protocol.nets()["vnet"]})


def cross_pseudo(protocol: Protocol) -> Recipe:
    return CrossPseudo(protocol.nets())


def dual_uncertainty(protocol: Protocol) -> Recipe:
    return DualUncertainty(protocol.nets(), preset=protocol.preset)


def uc_seg(protocol: Protocol) -> Recipe:
    return UCSeg(protocol.nets(), **UCSeg.arguments_for(protocol.patch))


def uc_seg_late(protocol: Protocol) -> Recipe:
    return UCSeg(protocol.nets(), **UCSeg.arguments_for(protocol.patch), unlabelled_from=0.5)


def variants(preset: str, rows: dict[str, dict[str, Any]]) -> dict[str, Build]:
    """Name -> protocol -> dual_uncertainty of `preset` with the arguments of a row."""

    def build(arguments: dict[str, Any]) -> Build:
        return lambda protocol: DualUncertainty(protocol.nets(), **{"preset": preset, **arguments})

    return {name: build(arguments) for name, arguments in rows.items()}


METHODS = (mean_teacher, cross_pseudo, dual_uncertainty, uc_seg, uc_seg_late)
STUDIES: dict[str, dict[str, Build]] = {
    "terms": variants("paper", TERMS),
    "methods": {build.__name__: build for build in METHODS},
    "copy_paste": variants("copy_paste", COPY_PASTE),
}
ROWS = ("supervised", *(row for rows in STUDIES.values() for row in rows))


def longer(rows: Sequence[str]) -> Callable[[str], tuple[str, int]]:
    """What reads a row and its steps from the command line."""

    def read(text: str) -> tuple[str, int]:
        row, _, steps = text.partition("=")
        if row not in rows or not steps.isdecimal() or int(steps) < 1:
            raise argparse.ArgumentTypeError(f"{text!r}; expected ROW=STEPS, with a row of {list(rows)}")
        return row, int(steps)

    return read


def unknown_rows(args: argparse.Namespace, rows: Sequence[str]) -> list[str]:
    """Rows of `--against` that are neither trained nor in the folder, told before anything is trained."""
    there = read_study(args.out).cells if (args.out / "study.json").is_file() else {}
    return [row for row in args.against or () if row not in (*rows, *there)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the Left Atrium data set; default: phantoms")
    parser.add_argument("--val", default="dev_val.list", help="list of validation cases")
    parser.add_argument("--test", help="list of test cases; with it these are scored")
    parser.add_argument("--labelled", type=int, help="labelled cases; default: 8, phantoms 4")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training steps a run")
    parser.add_argument("--steps", type=int, help="of every run, instead of --minutes")
    parser.add_argument(
        "--longer", nargs="+", type=longer(ROWS), default=[], metavar="ROW=STEPS", help="further rows, of other steps"
    )
    parser.add_argument("--all_labels", type=int, metavar="STEPS", help="a row with the labels of all cases")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--study", choices=STUDIES, default="terms")
    parser.add_argument("--rows", nargs="+", help="beside supervised; default: all of the study")
    parser.add_argument("--against", nargs="+", help="rows that the others are held against in what is printed")
    parser.add_argument("--show", action="store_true", help="print what is there and train nothing")
    parser.add_argument("--keep", type=Path, help="copy the scores of what is finished there")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    args = parser.parse_args()
    if not args.show:
        train(args, parser)
    try:
        study = read_study(args.out)
        print("\n" + study.table(against=args.against))
        if args.keep:
            study.keep(args.keep)
    except ValueError as error:
        parser.error(str(error))


def train(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train and score what is not finished."""
    known = {"supervised": supervised, **STUDIES[args.study]}
    chosen = args.rows or list(STUDIES[args.study])
    if unknown := [name for name in (*chosen, *(row for row, _ in args.longer)) if name not in known]:
        parser.error(f"--rows or --longer has {', '.join(unknown)}; the study {args.study} has {', '.join(known)}")
    if args.all_labels is not None and args.all_labels < 1:
        parser.error(f"--all_labels is {args.all_labels}; expected at least 1")
    steps = {f"{row}_{count}": count for row, count in args.longer}
    rows = {name: known[name] for name in ("supervised", *chosen)}
    rows |= {f"{row}_{count}": known[row] for row, count in args.longer}
    if unknown := unknown_rows(args, [*rows, *(["all_labels"] if args.all_labels else [])]):
        parser.error(f"--against has {', '.join(unknown)}; expected rows of the study")
    protocol = PROTOCOLS["la/cpu" if args.data else "phantom"]
    if args.steps is not None:
        protocol = replace(protocol, fit=replace(protocol.fit, steps=args.steps))
    count = args.labelled or (8 if args.data else 4)
    if args.data is None:
        args.data = write_phantoms(args.out / "phantoms", labelled=count, unlabelled=20, size=protocol.patch)
        names = (args.data / "train.list").read_text(encoding="utf-8").split()
        (args.data / args.val).write_text("".join(f"{name}\n" for name in names[-4:]), encoding="utf-8")
    everything: Sequence[Case] = ()
    if args.all_labels is not None:
        everything = la_split(args.data, labelled="all", val=args.val, test=args.test).labelled
    run(
        protocol,
        rows,
        split=la_split(args.data, labelled=count, val=args.val, test=args.test),
        everything=everything,
        steps=steps | ({"all_labels": args.all_labels} if everything else {}),
        out=args.out,
        seeds=args.seeds,
        minutes=None if args.steps is not None else args.minutes,
        validations=0,
        nets_alone=args.study == "copy_paste",
        against=("supervised", *(name for name in chosen if name in ("paper", "copy_paste"))),  # what others change
        tell=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    main()
