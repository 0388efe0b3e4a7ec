# SPDX-License-Identifier: Apache-2.0
"""One change at a time on Left Atrium, scored on validation cases that are out of training altogether.

    python benchmarks/la_experiments.py --data DATA/la --out runs/la_experiments --row supervised
    python benchmarks/la_experiments.py --data DATA/la --out runs/la_experiments --row supervised --change norm=batch
    python benchmarks/la_experiments.py --data DATA/la --out runs/la_experiments --row dual_uncertainty \
        --change fit.learning_rate=5e-3 recipe.mix_side=0.5

Protocol la/cpu with the changes named: fields of the protocol, of its settings of the run (`fit.`), and of
dual_uncertainty (`recipe.`, `recipe.preset` too). Last checkpoint, no post-processing. The table of all runs under
--out is printed after each one, and by --show; the same command continues a run that was interrupted. Every 100 steps
`quality.csv` gets the quality of the pseudo-labels of four unlabelled cases, whose labels serve that alone.
"""

import argparse
import ast
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ssmis.data import Case, la_split
from ssmis.data.crop import crop_volume, stack_crops
from ssmis.engine import PROTOCOLS, PseudoLabelQuality, fit
from ssmis.engine.protocol import Protocol
from ssmis.metrics import summarise
from ssmis.recipes import DualUncertainty, Supervised
from ssmis.report import format_table

ROWS = ("supervised", "dual_uncertainty", "all_labels")


def value_of(text: str) -> object:
    """A number, a tuple, a truth value, or the word itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the Left Atrium data set")
    parser.add_argument("--val", default="dev_val.list", help="list of validation cases")
    parser.add_argument("--row", choices=ROWS, default="supervised")
    parser.add_argument("--change", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--labelled", type=int, default=8)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print what is there and train nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/la_experiments"))
    args = parser.parse_args()
    if not args.show:
        if args.data is None:
            parser.error("--data is missing; expected the folder of the Left Atrium data set")
        try:
            experiment(args)
        except TypeError as error:
            parser.error(f"--change {' '.join(args.change)}: {error}")
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(args.out.glob("*/result.json"))]
    print(format_table(["run", "steps", "seed", "Dice %", "worst", "sd over cases", "minutes"], rows))


def experiment(args: argparse.Namespace) -> None:
    """Train and score one run, and write its row of the table into `result.json`."""
    if wrong := [
        change for change in args.change if "=" not in change or change.startswith(("fit.steps=", "fit.seed="))
    ]:
        raise SystemExit(f"--change has {wrong[0]!r}; expected NAME=VALUE, and --steps and --seed for those two")
    changes = dict(change.split("=", 1) for change in args.change)
    own = {"": {}, "fit": {}, "recipe": {}}
    for name, text in changes.items():
        kind, _, field = name.rpartition(".")
        if kind not in own:
            raise SystemExit(f"--change has {name!r}; expected a field of the protocol, or fit.FIELD or recipe.FIELD")
        own[kind][field] = value_of(text)
    protocol = PROTOCOLS["la/cpu"]
    settings = replace(protocol.fit, **{"steps": args.steps, "seed": args.seed, **own["fit"]})
    protocol = replace(protocol, fit=settings, **own[""])

    every = la_split(args.data, labelled="all", val=args.val).labelled
    split = la_split(args.data, labelled=args.labelled, val=args.val)
    labelled = every if args.row == "all_labels" else split.labelled
    unlabelled = split.unlabelled if args.row == "dual_uncertainty" else ()
    torch.manual_seed(args.seed)
    nets = protocol.nets()
    if args.row == "dual_uncertainty":
        recipe = DualUncertainty(nets, **{"preset": protocol.preset, **own["recipe"]})
    else:
        recipe = Supervised(nets, **own["recipe"])
    name = " ".join([args.row, *([f"labelled={args.labelled}"] if args.labelled != 8 else []), *args.change])
    out = args.out / f"{name} steps={args.steps} seed={args.seed}".replace("/", "-")
    facts = protocol.facts(labelled=labelled, unlabelled=unlabelled)
    cache = protocol.cache([*labelled, *unlabelled], args.out / "cache")
    batches = protocol.batches(cache, labelled, unlabelled)
    hidden = every[args.labelled :: max(1, (len(every) - args.labelled) // 4)][:4]
    callbacks = [quality(protocol, hidden, args.out / "hidden")] if args.row == "dual_uncertainty" else []
    run = fit(recipe, batches, settings, out=out, resume=True, facts=facts, held_out=split.val, callbacks=callbacks)
    scores = [score for result in protocol.score(run.recipe, split.val, out) for score in result.scores]
    dice = summarise(scores, metric="dice")
    worst = min(score.dice for score in scores)
    row = [name, args.steps, args.seed, 100 * dice.mean, 100 * worst, 100 * dice.sd, run.minutes]
    (out / "result.json").write_text(json.dumps(row) + "\n", encoding="utf-8")


def quality(protocol: Protocol, cases: Sequence[Case], folder: Path) -> PseudoLabelQuality:
    """Measure pseudo-labels in the middle of `cases`, given with their labels."""
    cache = protocol.cache(cases, folder)
    crops = []
    for case in cases:
        image, label = cache[case.id]
        start = [(length - own) // 2 for length, own in zip(image.shape[1:], protocol.patch)]
        crops.append(crop_volume(image, label, start=start, patch=protocol.patch))
    images, labels, _ = stack_crops(crops, torch.device("cpu"))
    return PseudoLabelQuality(images, labels)


if __name__ == "__main__":
    main()
