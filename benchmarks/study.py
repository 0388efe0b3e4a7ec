# SPDX-License-Identifier: Apache-2.0
"""What is each term of dual_uncertainty worth, what do the terms cost that train nothing in the public code, and how do
the recipes compare?

    python benchmarks/study.py --data DATA/la --out runs/study
    python benchmarks/study.py --data DATA/la --out runs/methods --study methods
    python benchmarks/study.py --data DATA/la --out runs/ablation --study copy_paste --steps 700

Left Atrium, protocol la/cpu, 8 labelled cases, 3 seeds, scored on the validation cases of dev_val.list, which no
training opens. Rows of the study "terms": supervised; public_code; paper; and paper without the KL weight, without the
entropy filter, without the contrast; that is 18 runs, with 15 minutes of training steps each four and a half hours.
Rows of "methods": supervised; the semi-supervised recipes, with the nets of the protocol (mean_teacher: its V-Net).
Rows of "copy_paste": supervised; that preset; one setting of it changed at a time; and each net scored alone.

A second process with the same command takes cells that the first one has not begun, and the same command continues
wherever it was interrupted; --show prints the table as far as it is, --against with differences to rows of one's
choice; --keep copies the scores. Without --data it runs on phantoms (--labelled 4), to try it out.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmis.data import la_split, write_phantoms
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


def variants(preset: str, rows: dict[str, dict[str, Any]]) -> dict[str, Build]:
    """Name -> protocol -> dual_uncertainty of `preset` with the arguments of a row."""

    def build(arguments: dict[str, Any]) -> Build:
        return lambda protocol: DualUncertainty(protocol.nets(), **{"preset": preset, **arguments})

    return {name: build(arguments) for name, arguments in rows.items()}


METHODS = (mean_teacher, cross_pseudo, dual_uncertainty, uc_seg)
STUDIES: dict[str, dict[str, Build]] = {
    "terms": variants("paper", TERMS),
    "methods": {build.__name__: build for build in METHODS},
    "copy_paste": variants("copy_paste", COPY_PASTE),
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
    known = STUDIES[args.study]
    chosen = args.rows or list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--rows names {', '.join(unknown)}; the study {args.study} has {', '.join(known)}")
    protocol = PROTOCOLS["la/cpu" if args.data else "phantom"]
    if args.steps is not None:
        protocol = replace(protocol, fit=replace(protocol.fit, steps=args.steps))
    count = args.labelled or (8 if args.data else 4)
    if args.data is None:
        args.data = write_phantoms(args.out / "phantoms", labelled=count, unlabelled=20, size=protocol.patch)
        names = (args.data / "train.list").read_text(encoding="utf-8").split()
        (args.data / args.val).write_text("".join(f"{name}\n" for name in names[-4:]), encoding="utf-8")

    run(
        protocol,
        {"supervised": supervised, **{name: known[name] for name in chosen}},
        split=la_split(args.data, labelled=count, val=args.val, test=args.test),
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
