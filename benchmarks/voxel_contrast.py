# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast on a CPU against the plain autograd expression, forward and backward: time, peak memory, the limit.

    python benchmarks/voxel_contrast.py [--repeats 7] [--rows 0 1 2] [--cpu-time]

Both are timed in turn in one process, and the ratio is that of their medians. Peak memory is taken in a process of its
own: what a step holds at most, less the features and their gradient. The limit is the time that the two products of
matrices and the powers of two alone take at the rates measured in the same process. `--cpu-time` counts the time of
the processor instead of the clock's, for a machine that is shared (with `OMP_NUM_THREADS=1`).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmis.kernels import voxel_contrast

# grid, channels, keys, dtype of the features, and the targets: times faster, and the part of the peak memory
ROWS = [
    ((112, 112, 80), 16, 256, torch.float32, 20, 1 / 20),
    ((64, 32, 32), 16, 2048, torch.float32, 8, 1 / 30),
    ((64, 32, 32), 64, 256, torch.bfloat16, 5, 1 / 8),
]


def plain_contrast(features: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, temperature: float = 0.1):
    """Denominator "all" as one would write it: normalised copy, every similarity in memory, masked mean."""
    flat = F.normalize(features.flatten(2).transpose(1, 2).flatten(0, 1).float(), dim=1)
    log_p = (flat @ F.normalize(keys.float(), dim=1).T / temperature).log_softmax(1)
    positive = (labels.flatten()[:, None] == key_labels).float()
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


FUNCTIONS = {"plain": plain_contrast, "chunked": voxel_contrast}


def problem(grid, channels: int, keys: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """Features of one volume, which want a gradient, labels of two classes, keys and their labels."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, channels, *grid, generator=generator).to(device, dtype).requires_grad_()
    labels = torch.randint(2, (1, *grid), generator=generator)
    bank = torch.randn(keys, channels, generator=generator).to(device, dtype)
    return [features, labels.to(device), bank, torch.arange(keys, device=device) % 2]


def step(function: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """Forward and backward."""
    tensors[0].grad = None
    function(*tensors).backward()


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory that this process holds during a call, above what it held before."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call."""
    start = clock()
    function()
    return clock() - start


def limit(voxels: int, channels: int, keys: int, clock: Callable[[], float]) -> float:
    """Seconds of two products voxels x channels x keys and of one power of two each, at the rates measured now."""
    square, powers, out = torch.randn(2048, 2048), torch.randn(2**18), torch.empty(2**18)
    product = min(seconds(lambda: square @ square, clock) for _ in range(5)) / (2 * 2048**3)
    power = min(seconds(lambda: [torch.exp2(powers, out=out) for _ in range(20)], clock) for _ in range(5)) / 20 / 2**18
    return voxels * keys * (4 * channels * product + power)


def measure(row: int, repeats: int, cpu_time: bool) -> dict[str, float]:
    """Median seconds of both, in turn, and the limit."""
    grid, channels, keys, dtype = ROWS[row][:4]
    tensors, clock = problem(grid, channels, keys, dtype), time.process_time if cpu_time else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    step(voxel_contrast, tensors)  # loads libraries
    for _ in range(repeats):
        for name, function in FUNCTIONS.items():
            found[name].append(seconds(lambda function=function: step(function, tensors), clock))
    medians = {name: statistics.median(own) for name, own in found.items()}
    return {**medians, "limit": limit(math.prod(grid), channels, keys, clock)}


def peak(row: int, name: str) -> int:
    """Bytes that one step holds beyond the features and their gradient."""
    grid, channels, keys, dtype = ROWS[row][:4]
    step(FUNCTIONS[name], problem((16, 16, 32), channels, keys, dtype))  # loads libraries, which keep buffers a thread
    tensors = problem(grid, channels, keys, dtype)
    return peak_bytes(lambda: step(FUNCTIONS[name], tensors)) - tensors[0].nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=range(len(ROWS)))
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        kind, *values = json.loads(args.job)
        print(json.dumps({"measure": measure, "peak": peak}[kind](*values)))
        return

    def job(*values):
        command = [sys.executable, __file__, "--job", json.dumps(values)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| voxels x E x M | plain s | chunked s | faster | of the limit | plain MB | chunked MB | memory | load |")
    print("|" + "---|" * 9)
    for row in args.rows:
        grid, channels, keys, dtype, faster, part = ROWS[row]
        times = job("measure", row, args.repeats, args.cpu_time)
        held = {name: job("peak", row, name) / 2**20 for name in FUNCTIONS}
        cells = [
            f"{math.prod(grid)} x {channels} x {keys}, {str(dtype)[6:]}",
            f"{times['plain']:.3f}",
            f"{times['chunked']:.4f}",
            f"{times['plain'] / times['chunked']:.1f} times (target {faster})",
            f"{times['limit'] / times['chunked']:.2f}",
            f"{held['plain']:.0f}",
            f"{held['chunked']:.1f}",
            f"1/{held['plain'] / held['chunked']:.1f} (target 1/{1 / part:.0f})",
            f"{os.getloadavg()[0]:.1f}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
