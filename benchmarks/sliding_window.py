# SPDX-License-Identifier: Apache-2.0
"""`Predictor` against MONAI's `sliding_window_inference`: same window, stride, net and precision; time and peak memory.

    python benchmarks/sliding_window.py --size 160 160 96 --patch 64 64 48

Each variant runs in a process of its own, alternating; peaks are of resident memory above the start.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from ssmis.engine.runtime import peak_memory_mb, pick_precision, reset_peak_memory
from ssmis.nets import VNet


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(160, 160, 96))
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 48))
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS)
    return parser.parse_args()


VARIANTS = ("monai", "predict", "segment")


def measure(args: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(0)
    net = VNet(classes=args.classes, widths=tuple(args.width * k for k in (1, 2, 4, 8, 8))).eval()
    image = torch.rand(1, *args.size)
    precision = pick_precision(args.precision)

    def probs(windows: torch.Tensor) -> torch.Tensor:
        return net(windows).logits.float().softmax(1)

    if args.variant == "monai":
        from monai.inferers import sliding_window_inference  # noqa: TID251

        def run() -> torch.Tensor:
            with torch.no_grad(), precision.autocast():
                found = sliding_window_inference(
                    image[None], tuple(args.patch), args.batch, probs, overlap=args.overlap, mode="gaussian"
                )
            return found[0].argmax(0)
    else:
        from ssmis.engine import Predictor

        predictor = Predictor(probs, patch=args.patch, overlap=args.overlap, batch_size=args.batch, precision=precision)

        def run() -> torch.Tensor:
            if args.variant == "predict":
                return predictor.predict(image).probs.argmax(0)
            return torch.from_numpy(predictor.segment(image).labels)

    probs(image[None, :, : args.patch[0], : args.patch[1], : args.patch[2]])  # warm up
    before = peak_memory_mb()
    reset_peak_memory()
    before = min(before, peak_memory_mb())
    start = time.perf_counter()
    labels = run()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_memory_mb() - before, "foreground": float((labels > 0).float().mean())}


def main() -> None:
    args = arguments()
    if args.variant:
        print(json.dumps(measure(args)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, rows in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows.append(json.loads(told.splitlines()[-1]))
    base = found["monai"]
    for name, rows in found.items():
        seconds, peak = (statistics.median(row[key] for row in rows) for key in ("seconds", "peak_mb"))
        ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in zip(rows, base)]
        memory = peak / statistics.median(row["peak_mb"] for row in base)
        print(
            f"{name:8} {seconds:7.2f} s ({statistics.median(ratios):.2f} of MONAI), peak {peak:6.0f} MB ({memory:.2f})"
        )


if __name__ == "__main__":
    main()
