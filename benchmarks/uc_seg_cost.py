# SPDX-License-Identifier: Apache-2.0
"""What a uc_seg step costs beside a dual_uncertainty step, and the shares of its gate and of its component filter.

    python benchmarks/uc_seg_cost.py [--patch 64 64 48] [--widths 16 32 64 128 256] [--steps 5] [--dims 3]

All in one process, the variants in turn, a step of each at a time; medians and their ratios are printed. A step is
forward, backward and optimiser, as `fit` does it. Peak memory is the most the process holds during a step, less what it
holds before, on Linux. The last variant has a fused head and a gate of the sizes of the public code, and mixes nothing.
The gate is timed by itself on maps of the same size: forward, backward and optimiser.
The filter is timed on argmax maps of a phantom's shape, and on noise, which has thousands of components.
"""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from ssmis.data import Batch, largest_components
from ssmis.engine.optim import make_optimizer
from ssmis.engine.runtime import (
    apply_memory_format,
    memory_format_for,
    peak_memory_mb,
    pick_precision,
    reset_peak_memory,
)
from ssmis.recipes import DualUncertainty, Recipe, UCSeg, dual_nets, uc_seg_nets
from ssmis.recipes.uc_seg import PRESETS


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resident_mb() -> float:
    """Memory held now; freed memory is given back first, so that the next step has to ask for its own."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak_memory()
    return peak_memory_mb()


def ball(patch: list[int]) -> Tensor:
    """Bool `(*S)`: an ellipsoid that fills a twentieth of the patch, and a small island."""
    axes = [torch.linspace(-1, 1, length) for length in patch]
    distance = sum(axis.square() for axis in torch.meshgrid(*axes, indexing="ij"))
    inside = distance.sqrt() < 0.46
    inside[(slice(2, 4),) * len(patch)] = True
    return inside


class Stepper:
    """One recipe with its optimiser; call it to do a step."""

    def __init__(self, recipe: Recipe, batch: Batch, progress: float, precision: str) -> None:
        self.recipe, self.progress = recipe, progress
        layout = memory_format_for(recipe)
        apply_memory_format(recipe, layout)
        self.batch, self.precision = batch.to("cpu", layout), pick_precision(precision, "cpu")
        self.optimizer = optimiser(recipe.param_groups())

    def __call__(self) -> None:
        self.recipe.begin_step()
        with self.precision.autocast():
            loss = self.recipe(self.batch, self.progress).total()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.recipe.after_step(self.progress)


def optimiser(groups: list[dict]) -> torch.optim.Optimizer:
    return make_optimizer(groups, name="sgd", learning_rate=1e-3, momentum=0.9, weight_decay=1e-4)


def gate_step(recipe: UCSeg, patch: list[int], precision: str) -> Callable[[], None]:
    """The gate alone, on uncertainty maps of the whole batch."""
    gate = recipe.students["fusion"].gate
    steps = optimiser([{"params": list(gate.parameters())}])
    maps = [torch.rand(4, 1, *patch, requires_grad=True) for _ in range(2)]
    context = pick_precision(precision, "cpu")

    def work() -> None:
        with context.autocast():
            loss = gate(*maps).float().square().mean()
        steps.zero_grad(set_to_none=True)
        loss.backward()
        steps.step()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--patch", type=int, nargs="+", help="default: 64 64 48, in 2-D 256 256")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    patch = args.patch or ([64, 64, 48] if args.dims == 3 else [256, 256])
    torch.manual_seed(0)
    images = torch.randn(4, 1, *patch)
    labels = ball(patch).long().expand(2, *patch)
    images[:, 0] += 2 * ball(patch)
    batch = Batch(images[:2], labels.contiguous(), images[2:])

    nets = {"widths": args.widths, "dims": args.dims}
    open_gate = {"quality_start": 0.0, "quality_end": 0.0}
    wide = {name: getattr(PRESETS["release"], name) for name in ("fused_widths", "embedding")} if args.dims == 3 else {}
    steppers = {
        "dual_uncertainty, its nets": Stepper(DualUncertainty(dual_nets(**nets)), batch, 0.5, args.precision),
        "dual_uncertainty, nets of uc_seg": Stepper(DualUncertainty(uc_seg_nets(**nets)), batch, 0.5, args.precision),
        "uc_seg": Stepper(UCSeg(uc_seg_nets(**nets), **open_gate), batch, 0.05, args.precision),
        "uc_seg, mixing": Stepper(UCSeg(uc_seg_nets(**nets), **open_gate), batch, 0.5, args.precision),
        "uc_seg, head and gate of `release`": Stepper(
            UCSeg(uc_seg_nets(**nets), **open_gate, **wide), batch, 0.05, args.precision
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    peaks = dict.fromkeys(steppers, 0.0)
    parts: dict[str, list[float]] = {"cross-attention": [], "filter, shapes": [], "filter, noise": []}
    shapes = torch.stack([ball(patch).long(), ball(patch).roll(5, 0).long()])
    noise = torch.randint(2, (2, *patch))
    filters = [lambda maps=maps: largest_components(maps, classes=(1,)) for maps in (shapes, noise)]
    gate = gate_step(steppers["uc_seg"].recipe, patch, args.precision)
    for round_ in range(args.steps + 1):  # the first one warms up
        for name, stepper in steppers.items():
            before = resident_mb()
            spent = timed(stepper)
            if round_:
                seconds[name].append(spent)
                peaks[name] = max(peaks[name], peak_memory_mb() - before)
        for name, work in zip(parts, (gate, *filters)):
            spent = timed(work)
            if round_:
                parts[name].append(spent)

    reference = "dual_uncertainty, nets of uc_seg"
    base = statistics.median(seconds[reference])
    print(f"{args.dims}-D, patch {patch}, widths {args.widths}, precision {pick_precision(args.precision, 'cpu').name}")
    for name, own in seconds.items():
        median, ratio = statistics.median(own), peaks[name] / max(1.0, peaks[reference])
        print(f"{name:36} {median:7.2f} s a step ({median / base:.2f}), peak {peaks[name]:6.0f} MB ({ratio:.2f})")
    whole = statistics.median(seconds["uc_seg"])
    for name, own in parts.items():
        median = statistics.median(own)
        print(f"{name:36} {1000 * median:7.1f} ms, {100 * median / whole:.2f} % of a uc_seg step without mixing")


if __name__ == "__main__":
    main()
