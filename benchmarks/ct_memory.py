# SPDX-License-Identifier: Apache-2.0
"""Peak memory of segmenting a large CT into many classes with `Predictor.segment`, within a budget.

    python benchmarks/ct_memory.py --size 512 512 600 --classes 14 --memory_gb 6

The net is a tiny one: what is measured is the volume, the running sums and the label map. With less than is needed it
ends with the message that says what would be.
"""

import argparse
import time

import numpy as np
import torch

from ssmis.data import Channel, Plan
from ssmis.engine import Predictor
from ssmis.engine.runtime import peak_memory_mb, reset_peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 600))
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--spacing", type=float, default=1.0, help="of the training grid, the volume's being 1 mm")
    parser.add_argument("--overlap", type=float, default=0.25, help="share of a window that its neighbour covers")
    parser.add_argument("--memory_gb", type=float, default=6.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, args.classes, 1).eval()
    plan = Plan(3, (Channel("CT", "clip", low=-200, high=300, std=100),), tuple(range(args.classes)),
                tuple(map(str, range(args.classes))), (args.spacing,) * 3, tuple(args.size), tuple(args.patch), 1,
                ((2,) * 3,) * 4, ((3,) * 3,) * 5, (2,) * 5)  # fmt: skip

    def model(windows: torch.Tensor) -> torch.Tensor:
        return net(windows).softmax(1)

    predictor = Predictor(model, patch=args.patch, overlap=args.overlap, plan=plan, memory_gb=args.memory_gb)
    volume = np.zeros((1, *args.size), dtype=np.int16)
    for row in volume[0]:
        row[:] = np.random.default_rng(0).integers(-1000, 1000, row.shape)
    reset_peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    found = predictor.segment(volume, (1.0, 1.0, 1.0), uncertainty=False)
    size, every = "x".join(map(str, args.size)), 4 * args.classes * found.labels.size / 2**20
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{size}, {args.classes} classes, grid {args.spacing} mm: {seconds:.0f} s, of which {cpu:.0f} s on a CPU")
    print(f"peak resident {peak_memory_mb():.0f} MiB of a budget of {args.memory_gb * 1024:.0f} MiB")
    print(f"the probabilities alone would be {every:.0f} MiB")


if __name__ == "__main__":
    main()
