# SPDX-License-Identifier: Apache-2.0
"""A dual_uncertainty step with two nets: as it is, and without what makes it fast on a CPU, one thing at a time.

    python benchmarks/train_step.py [--patch 64 64 48] [--widths 16 32 64 128 256] [--norm batch] [--steps 5]
    python benchmarks/train_step.py --only "no copies in channels-last" "as it is" --precision fp32
    python benchmarks/train_step.py --profile        # where the time of a step goes

Each variant runs in a process of its own, so that its peak memory is its own; they alternate, and the ratios of the
median step times are printed. Peak memory is what the process holds at most, less what it holds before the first step
(interpreter, libraries, nets).
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

# settings of the run, and what is switched off
VARIANTS: dict[str, tuple[dict, list[str]]] = {
    "float32, contiguous": ({"precision": "fp32", "memory_format": "contiguous"}, []),
    "freed memory given back": ({}, ["freed_memory_kept"]),
    "first layers by torch": ({}, ["_unrolls"]),
    "no copies in channels-last": ({}, ["_copies_pay"]),
    "all three": ({}, ["freed_memory_kept", "_unrolls", "_copies_pay"]),
    "as it is": ({}, []),
}
KINDS = {  # of operators, by a part of their names; the first that fits
    "gradients of convolutions": ("convolution_backward",),
    "convolutions": ("convolution",),
    "norms, with gradients": ("batch_norm", "instance_norm"),
    "optimiser": ("Optimizer", "lerp", "addcdiv", "addcmul", "sqrt"),
    "activations, with gradients": ("threshold", "clamp"),
    "softmax, with gradients": ("softmax", "logsumexp"),
    "copies, casts, indexing": ("copy", "cat", "index", "gather", "pad", "fill", "where"),
}


def resident_mb() -> float:
    """Memory the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def measure(
    settings: dict, off: list[str], patch: list[int], widths: list[int], norm: str, steps: int, profile: bool = False
) -> dict:
    """Train `steps` steps after two for warming up, on random volumes."""
    import torch

    from ssmis.data import Batch
    from ssmis.engine import FitConfig, fit
    from ssmis.nets.conv import Conv3d
    from ssmis.recipes import DualUncertainty, dual_nets

    if "freed_memory_kept" in off:
        module = sys.modules["ssmis.engine.fit"]  # in the package this name is the function
        module.freed_memory_kept = lambda when: contextlib.nullcontext()
    if "_unrolls" in off:
        Conv3d._unrolls = lambda self: False
    if "_copies_pay" in off:
        Conv3d._copies_pay = lambda self, low: False
    generator = torch.Generator().manual_seed(0)

    def batch(step: int) -> Batch:
        images = torch.randn(4, 1, *patch, generator=generator)
        return Batch(images[:2], (images[:2, 0] > 1).long(), images[2:], key=step)

    recipe = DualUncertainty(dual_nets(widths=widths, norm=norm))
    before = resident_mb()
    seconds = []
    last = [time.perf_counter()]
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def clock(step: int, recipe: DualUncertainty) -> None:
        seconds.append(time.perf_counter() - last[0])
        if profile and len(seconds) == 2:
            profiler.start()
        if profile and len(seconds) == steps + 2:
            profiler.stop()
        last[0] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = FitConfig(steps=steps + 2, callback_every=1, checkpoint_every=10**6, **settings)
        fit(recipe, batch, config, out=folder, callbacks=[clock], progress=False)
    # the last step also writes the checkpoint, after its callback; the first two grow the heap
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shares = kinds({event.key: event.self_cpu_time_total for event in profiler.key_averages()}) if profile else {}
    return {"seconds": seconds[2:], "peak_mb": peak - before, "shares": shares}


def kinds(times: dict[str, float]) -> dict[str, float]:
    """Shares of the kinds of operators in the time of all of them."""
    found = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for name, taken in times.items():
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "everything else")
        found[kind] += taken / sum(times.values())
    return found


def compare(names: list[str], precision: str, *job: object, rounds: int) -> dict[str, dict]:
    """Alternate the variants `rounds` times and pool their steps."""
    found: dict[str, dict] = {name: {"seconds": [], "peak_mb": 0.0} for name in names}
    for _ in range(rounds):
        for name in names:
            settings, off = VARIANTS[name]
            command = [sys.executable, __file__, "--job", json.dumps([{"precision": precision} | settings, off, *job])]
            line = subprocess.run(command, check=True, capture_output=True, text=True)
            own = json.loads(line.stdout.splitlines()[-1])
            found[name]["seconds"] += own["seconds"]
            found[name]["peak_mb"] = max(found[name]["peak_mb"], own["peak_mb"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 48])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--norm", default="batch", choices=["batch", "instance", "group", "none"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="of all variants")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants; ratios to the last"
    )
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], default="auto", help="where a variant says none"
    )
    parser.add_argument("--profile", action="store_true", help="print the shares of a step's parts instead")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    job = [args.patch, args.widths, args.norm, args.steps]
    if args.job:
        print(json.dumps(measure(*json.loads(args.job))))
    elif args.profile:
        for kind, share in measure({}, [], *job, profile=True)["shares"].items():
            print(f"{kind:28} {100 * share:5.1f} %")
    else:
        found = compare(args.only, args.precision, *job, rounds=args.rounds)
        *_, last = found.values()
        for name, own in found.items():
            ratio = statistics.median(own["seconds"]) / statistics.median(last["seconds"])
            print(f"{name:24} median {statistics.median(own['seconds']):.2f} s a step, {ratio:.2f} times as long; "
                  f"peak {own['peak_mb']:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
