# SPDX-License-Identifier: Apache-2.0
"""Share of a dual_uncertainty step, at the sizes of protocol cpu, that the contrast takes with every uncertain voxel.

    python benchmarks/contrast_share.py [--steps 10] [--cpu-time] [--profile]

Counted are sampling, weights, bank and `voxel_contrast`, forward and backward, of both nets; not the masks that choose
the voxels. Plain steps alternate with steps whose parts are timed. `--cpu-time` counts the time of the processor
instead of the clock's, for a machine that is shared (with `OMP_NUM_THREADS=1`).
"""

import argparse
import importlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from ssmis.data import Batch
from ssmis.engine.runtime import apply_memory_format, memory_format_for, pick_precision
from ssmis.recipes import DualUncertainty, dual_nets

TARGETS = {"batch": 0.02, "ema": 0.02, "fifo": 0.12}
recipe_module = importlib.import_module("ssmis.recipes.dual_uncertainty")


class Parts:
    """Seconds by name of what was called in the current step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            result = function(*args, **kwargs)
            self.seconds[name] += self.clock() - start
            return result

        return call

    def with_backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time the call, and a backward of it, on a copy of the features; the step goes on with a call of its own."""

        def call(features: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            leaf = features.detach().requires_grad_()
            with torch.enable_grad():
                loss = self.timed("forward", function)(leaf, *args, **kwargs)[0]
                self.timed("backward", torch.autograd.grad)(0.3 * loss, leaf)
            return function(features, *args, **kwargs)

        return call

    def patches(self) -> Any:
        names = {name: self.timed(name, getattr(recipe_module, name)) for name in ("sample_per_class", "volume_weight")}
        contrast = self.with_backward(recipe_module.voxel_contrast)
        return patch.multiple(recipe_module, voxel_contrast=contrast, **names)


def make_step(bank: str, patch_size: list[int], widths: list[int], parts: Parts) -> Callable[[], None]:
    """Return a training step without the optimiser, whose bank is filled."""
    recipe = DualUncertainty(dual_nets(widths=widths, dropout=0.1), preset="balanced", bank=bank, anchors=None)
    for own in recipe.banks.values():
        own.forward, own.write = parts.timed("bank", own.forward), parts.timed("bank", own.write)
    precision, layout = pick_precision(), memory_format_for(recipe)
    apply_memory_format(recipe, layout)
    images = torch.randn(4, 1, *patch_size, generator=torch.Generator().manual_seed(0))
    batch = Batch(images[:2], (images[:2, 0] > 0).long(), images[2:]).to("cpu", layout)

    def step() -> None:
        recipe.zero_grad()
        recipe.begin_step()
        with precision.autocast():
            loss = recipe(batch, 1.0).total()
        loss.backward()
        recipe.after_step(1.0)

    for _ in range(5 if bank == "fifo" else 2):
        step()
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 48])
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print the operations of one step as well")
    args = parser.parse_args()
    for bank, target in TARGETS.items():
        torch.manual_seed(0)
        parts = Parts(time.process_time if args.cpu_time else time.perf_counter)
        step = make_step(bank, args.patch, args.widths, parts)
        whole, rounds = [], []
        for _ in range(args.steps):
            start = parts.clock()
            step()
            whole.append(parts.clock() - start)
            parts.seconds.clear()
            with parts.patches():
                step()
            rounds.append(dict(parts.seconds))
        medians = {name: 1e3 * statistics.median(own[name] for own in rounds) for name in rounds[0]}
        total, part = 1e3 * statistics.median(whole), 1e3 * statistics.median(sum(own.values()) for own in rounds)
        print(
            f"{bank:5} step {total:.0f} ms, contrast {part:.1f} ms: {part / total:.3f} (target {target}), of which "
            + ", ".join(f"{name} {ms:.1f}" for name, ms in medians.items())
            + f"; load {os.getloadavg()[0]:.1f}"
        )
        if args.profile:
            with torch.profiler.profile() as profile:
                step()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=40))


if __name__ == "__main__":
    main()
