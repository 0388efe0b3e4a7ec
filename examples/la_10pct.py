# SPDX-License-Identifier: Apache-2.0
"""Segment the left atrium with few labels: supervised only, dual_uncertainty, and supervised with every label.

Without arguments, on phantoms it makes itself. On the real data set (UA-MT h5 layout):

    python examples/la_10pct.py --data DATA/la --protocol cpu --val dev_val.list
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ssmis.data import la_split, load_la, write_phantoms
from ssmis.engine import PROTOCOLS, CheckpointError, fit, run_beside
from ssmis.metrics import summarise
from ssmis.recipes import DualUncertainty, Supervised
from ssmis.recipes.dual_uncertainty import PRESETS
from ssmis.report import case_picture, format_table

ROWS = ("supervised", "dual_uncertainty", "all_labels")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.list and the h5 volumes; default: phantoms")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: phantom, with --data cpu")
    parser.add_argument("--preset", choices=PRESETS, help="of dual_uncertainty; default: the protocol's")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="rows of the table")
    parser.add_argument("--labelled", type=int, help="number of labelled cases; default: 8, phantoms 4")
    parser.add_argument("--val", help="list of validation cases: kept out of training altogether, and scored")
    parser.add_argument("--test", help="list of test cases: scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps of each row; default: the protocol's")
    parser.add_argument("--resume", action="store_true", help="continue in --out where it was interrupted")
    parser.add_argument("--out", type=Path, default=Path("runs/la_10pct"))
    parser.add_argument("--train-only", action="store_true", help=argparse.SUPPRESS)  # what runs beside other rows
    return parser.parse_args()


def main() -> None:
    args = arguments()
    name = args.protocol or ("cpu" if args.data else "phantom")
    protocol = PROTOCOLS[name]
    settings = replace(protocol.fit, seed=args.seed, steps=protocol.fit.steps if args.steps is None else args.steps)
    protocol = replace(protocol, fit=settings)

    if args.data is None:
        counts = {"labelled": 4, "unlabelled": 36, "test": 48}
        size = [round(length / protocol.scale) for length in protocol.patch]
        args.data = write_phantoms(args.out / "phantoms", **counts, size=size, seed=args.seed)
        args.test = args.test or "test.list"
    count = args.labelled if args.labelled is not None else 4 if name == "phantom" else 8
    split = la_split(args.data, labelled=count, val=args.val, test=args.test)
    everything = la_split(args.data, labelled="all", val=args.val, test=args.test).labelled
    scored = [*split.val, *split.test]
    if not scored:
        sys.exit("nothing to score: name a list of held-out cases with --val or --test")
    if "dual_uncertainty" in args.rows and not split.unlabelled:
        sys.exit(f"--labelled {count} leaves no unlabelled case; dual_uncertainty needs some")

    beside = [[row for row in args.rows if (row == "dual_uncertainty") == chosen] for chosen in (True, False)]
    if name == "phantom" and all(beside) and not args.train_only:  # nets this small keep one core busy each
        protocol.cache(everything, args.out / "cache")
        command = [sys.executable, __file__, *sys.argv[1:], "--train-only", "--rows"]
        if status := run_beside([[*command, *rows] for rows in beside]):
            sys.exit(status)
        args.resume = True  # every row is finished: what follows scores them

    table, outlines, order = [], {}, []
    for row in args.rows:
        torch.manual_seed(args.seed)  # the same initial weights in every row
        nets = protocol.nets()
        preset = (args.preset or protocol.preset) if row == "dual_uncertainty" else None
        recipe = DualUncertainty(nets, preset=preset) if preset else Supervised(nets)
        labelled = everything if row == "all_labels" else split.labelled
        unlabelled = split.unlabelled if row == "dual_uncertainty" else ()
        cache = protocol.cache([*labelled, *unlabelled], args.out / "cache")
        seen = f"{len(labelled)} labelled, {len(unlabelled)} unlabelled cases"
        print(f"{row}: {seen}, {settings.steps} steps", flush=True)
        batches = protocol.batches(cache, labelled, unlabelled)
        facts = protocol.facts(labelled=labelled, unlabelled=unlabelled) | {"preset": preset}
        # held_out: to read one of these cases while it trains is an error
        run = fit(recipe, batches, settings, out=args.out / row, resume=args.resume, facts=facts, held_out=scored,
                  progress=row == "dual_uncertainty" or not args.train_only)  # fmt: skip
        if args.train_only:  # of rows beside each other the longest one shows its bar
            continue
        results = protocol.score(run.recipe, scored, args.out / row)
        scores = [score for result in results for score in result.scores]
        dice, jaccard, hd95, assd = (summarise(scores, metric=m) for m in ("dice", "jaccard", "hd95", "assd"))
        table.append([row, len(labelled), 100 * dice.mean, f"{100 * dice.low:.1f} to {100 * dice.high:.1f}",
                      100 * min(score.dice for score in scores), 100 * jaccard.mean, hd95.mean, assd.mean, dice.n_miss,
                      run.minutes, run.peak_memory_mb])  # fmt: skip
        outlines[row] = {result.case: result.prediction for result in results}
        order = [score.case for score in sorted(scores, key=lambda score: score.dice)]  # worst first, of the last row

    if args.train_only:
        return
    unit = scores[0].unit
    headers = ["row", "labels", "Dice %", "95 % interval", "worst", "Jaccard %", f"HD95 {unit}", f"ASSD {unit}",
               "missed", "minutes", "peak MB"]  # fmt: skip
    text = format_table(headers, table)
    print(
        f"\n{len(scored)} held-out cases, original grid, protocol {name}, seed {args.seed}, last checkpoint\n\n{text}"
    )
    (args.out / "table.md").write_text(text + "\n")
    views = []  # from the worst case to better ones
    for case in sorted(scored, key=lambda case: order.index(case.id))[:: max(1, len(order) // 3)]:
        volume = load_la(case)
        masks = {"reference": volume.label} | {row: predicted[case.id] for row, predicted in outlines.items()}
        views.append((case.id, volume.image[0], masks))
    case_picture(args.out / "cases.png", views)
    print(f"\ntable, picture (cases.png), per-case scores, logs and checkpoints: {args.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)
    except (
        ValueError,
        FileExistsError,
        CheckpointError,
    ) as error:  # wrong data or settings: the message says what and where
        sys.exit(f"la_10pct: {error}")
