# SPDX-License-Identifier: Apache-2.0
"""One change at a time on Left Atrium, scored on validation cases that are out of training altogether.

    python benchmarks/la_experiments.py --data DATA/la --out runs/la_experiments --row supervised
    python benchmarks/la_experiments.py --data DATA/la --out runs/la_experiments --row supervised --change norm=batch
    python benchmarks/la_experiments.py --data DATA/la --out runs/la_experiments --row dual_uncertainty \
        --change fit.learning_rate=5e-3 recipe.mix_side=0.5

Protocol la/cpu with the changes named: fields of the protocol, of its settings of the run (`fit.`), and arguments of
the recipe (`recipe.`, `recipe.preset` too). Last checkpoint. The table of all runs under --out is printed after each
one, and by --show; the same command continues a run that was interrupted. Every 100 steps
`quality.csv` gets the quality of the pseudo-labels of four unlabelled cases, whose labels serve that alone.
"""

import argparse
import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ssmis.data import Case, la_split
from ssmis.data.crop import crop_volume, stack_crops
from ssmis.engine import PROTOCOLS, PseudoLabelQuality, fit
from ssmis.engine.protocol import Protocol
from ssmis.recipes import DualUncertainty, Recipe, Supervised
from ssmis.report.compare import runs_table

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
            protocol, recipe = changed(args)
        except (TypeError, ValueError) as error:  # an unknown field, or a value it cannot have
            parser.error(f"--change {' '.join(args.change)}: {error}")
        experiment(args, protocol, recipe)
    print(runs_table([file.parent for file in sorted(args.out.glob("*/cases.csv"))]))


def changed(args: argparse.Namespace) -> tuple[Protocol, Recipe]:
    """Return the protocol la/cpu with the changes, and a fresh recipe."""
    own: dict[str, dict[str, object]] = {"": {}, "fit": {}, "recipe": {}}
    for change in args.change:
        name, equals, text = change.partition("=")
        kind, _, field = name.rpartition(".")
        if not equals or kind not in own or name in ("fit.steps", "fit.seed"):
            raise ValueError(
                "expected NAME=VALUE with a field of the protocol, fit.FIELD or recipe.FIELD; steps and seed have "
                "options of their own"
            )
        own[kind][field] = value_of(text)
    protocol = PROTOCOLS["la/cpu"]
    settings = replace(protocol.fit, steps=args.steps, seed=args.seed, **own["fit"])
    protocol = replace(protocol, fit=settings, **own[""])
    torch.manual_seed(args.seed)
    if args.row == "dual_uncertainty":
        return protocol, DualUncertainty(protocol.nets(), **{"preset": protocol.preset, **own["recipe"]})
    return protocol, Supervised(protocol.nets(), **own["recipe"])


def experiment(args: argparse.Namespace, protocol: Protocol, recipe: Recipe) -> None:
    """Train and score one run, in a folder of its name."""
    every = la_split(args.data, labelled="all", val=args.val).labelled
    split = la_split(args.data, labelled=args.labelled, val=args.val)
    labelled = every if args.row == "all_labels" else split.labelled
    unlabelled = split.unlabelled if args.row == "dual_uncertainty" else ()
    if args.row == "dual_uncertainty" and not unlabelled:
        raise SystemExit(f"--labelled {args.labelled} leaves no unlabelled case; dual_uncertainty needs some")
    name = [args.row, f"labelled={len(labelled)}", *args.change, f"steps={args.steps}", f"seed={args.seed}"]
    out = args.out / " ".join(name).replace("/", "-")
    facts = protocol.facts(labelled=labelled, unlabelled=unlabelled)
    cache = protocol.cache([*labelled, *unlabelled], args.out / "cache")
    batches = protocol.batches(cache, labelled, unlabelled)
    hidden = every[len(split.labelled) :][:: max(1, len(unlabelled) // 4)][:4]
    callbacks = [quality(protocol, hidden, args.out / "hidden")] if unlabelled else []
    run = fit(recipe, batches, protocol.fit, out=out, resume=True, facts=facts, held_out=split.val, callbacks=callbacks)
    protocol.score(run.recipe, split.val, out)


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
