# SPDX-License-Identifier: Apache-2.0
"""A dual_uncertainty step with the paper's two nets: bf16 and channels-last against float32 and contiguous.

    python benchmarks/train_step.py [--patch 64 64 48] [--steps 5]

Each variant runs in a process of its own, so that its peak memory is its own; the two alternate, and the ratio of the
median step times is printed. Peak memory is what the process holds at most, less what it holds before the first step
(interpreter, libraries, nets).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

VARIANTS = {
    "float32, contiguous": {"precision": "fp32", "memory_format": "contiguous"},
    "auto": {"precision": "auto", "memory_format": "auto"},
}


def resident_mb() -> float:
    """Memory the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def measure(settings: dict, patch: list[int], widths: list[int], steps: int) -> dict:
    """Train `steps` steps after two for warming up, on random volumes."""
    import torch

    from ssmis.data import Batch
    from ssmis.engine import FitConfig, fit
    from ssmis.recipes import DualUncertainty, dual_nets

    generator = torch.Generator().manual_seed(0)

    def batch(step: int) -> Batch:
        images = torch.randn(4, 1, *patch, generator=generator)
        return Batch(images[:2], (images[:2, 0] > 1).long(), images[2:], key=step)

    recipe = DualUncertainty(dual_nets(widths=widths))
    before = resident_mb()
    seconds = []
    last = [time.perf_counter()]

    def clock(step: int, recipe: DualUncertainty) -> None:
        seconds.append(time.perf_counter() - last[0])
        last[0] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = FitConfig(steps=steps + 2, callback_every=1, checkpoint_every=10**6, **settings)
        fit(recipe, batch, config, out=folder, callbacks=[clock], progress=False)
    # the last step also writes the checkpoint, after its callback; the first two grow the heap
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds[2:], "peak_mb": peak - before}


def compare(patch: list[int], widths: list[int], steps: int, rounds: int = 2) -> dict[str, dict]:
    """Alternate the variants `rounds` times and pool their steps."""
    found: dict[str, dict] = {name: {"seconds": [], "peak_mb": 0.0} for name in VARIANTS}
    for _ in range(rounds):
        for name, settings in VARIANTS.items():
            job = json.dumps([settings, patch, widths, steps])
            line = subprocess.run([sys.executable, __file__, "--job", job], check=True, capture_output=True, text=True)
            own = json.loads(line.stdout.splitlines()[-1])
            found[name]["seconds"] += own["seconds"]
            found[name]["peak_mb"] = max(found[name]["peak_mb"], own["peak_mb"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 48])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(*json.loads(args.job))))
        return
    found = compare(args.patch, args.widths, args.steps)
    for name, own in found.items():
        print(f"{name:22} median {statistics.median(own['seconds']):.2f} s a step, peak {own['peak_mb']:.0f} MB")
    slow, fast = found.values()
    speed = statistics.median(slow["seconds"]) / statistics.median(fast["seconds"])
    print(f"{speed:.2f} times faster, {fast['peak_mb'] / slow['peak_mb']:.2f} of the peak memory")


if __name__ == "__main__":
    main()
