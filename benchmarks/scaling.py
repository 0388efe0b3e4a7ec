# SPDX-License-Identifier: Apache-2.0
"""What processes exchange in a step of the paper's recipe, and the throughput that follows from stated assumptions.

    python benchmarks/scaling.py [--step-seconds 0.3] [--inside 200] [--between 25] [--gpus-a-node 8]

Bytes are counted from the nets. Processor seconds of a batch are measured here, on one core. Everything else is
arithmetic on the arguments, no measurement: seconds of a step on one GPU, GB/s inside of a node and between nodes.
"""

import argparse
import time

import numpy as np
import torch

from ssmis.data import BatchMaker, TwoStreamSampler
from ssmis.data.cache import Entry
from ssmis.engine import PROTOCOLS
from ssmis.recipes import DualUncertainty, dual_nets

BUCKET = 25 * 2**20  # DDP's: the last one cannot be hidden


def data_seconds(labelled: int, unlabelled: int) -> float:
    """Processor seconds of a batch of the protocol la/paper, one core."""
    random = np.random.default_rng(0)
    label = np.ones((180, 160, 90), np.uint8)
    images = [random.normal(size=(1, 180, 160, 90)).astype(np.float32) for _ in range(4)]
    cache = {f"case{index}": Entry(image, label) for index, image in enumerate(images)}
    names = list(cache)
    sampler = TwoStreamSampler(names[:2], names[2:], labelled_per_batch=labelled, unlabelled_per_batch=unlabelled)
    protocol = PROTOCOLS["la/paper"]
    augment = {"labelled_augment": protocol.augment, "unlabelled_augment": protocol.augment}
    maker = BatchMaker(cache, sampler, patch=protocol.patch, **augment)
    maker(0)
    start = time.process_time()
    for step in range(1, 4):
        maker(step)
    return (time.process_time() - start) / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-seconds", type=float, default=0.3, help="of 2 + 2 volumes on one GPU: an assumption")
    parser.add_argument("--inside", type=float, default=200.0, help="GB/s of an all-reduce inside of a node")
    parser.add_argument("--between", type=float, default=25.0, help="GB/s between nodes")
    parser.add_argument("--gpus-a-node", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = DualUncertainty(dual_nets())
    floats = [buffer.numel() for buffer in recipe.students.buffers() if buffer.is_floating_point()]
    gradient = 4 * sum(p.numel() for p in recipe.students.parameters())
    for name, net in recipe.students.items():
        print(f"{name}: {sum(p.numel() for p in net.parameters())} parameters")
    channels = [bank.channels for bank in recipe.banks.values()]
    candidates = sum(4 * 2 * recipe.config.candidates * (4 * width + 8) for width in channels)
    print(
        f"gradients {gradient} B, BatchNorm {4 * sum(floats)} B, candidates of 2 + 2 volumes {candidates} B a process"
    )
    data = data_seconds(2, 2)
    print(f"a batch of 2 + 2 volumes: {data:.3f} processor seconds\n")
    print("| GPUs | ring, MB sent a GPU | ms of it | ms not hidden | data, s | step, s | volumes/s | efficiency % |")
    print("|---|---|---|---|---|---|---|---|")
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        speed = 1e9 * (args.inside if gpus <= args.gpus_a_node else args.between)
        sent = 2 * (gpus - 1) / gpus * gradient
        last = 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * min(BUCKET, gradient) / speed
        exposed = max(sent / speed - 0.6 * args.step_seconds, last) + (0.002 if gpus > 1 else 0)
        made = data  # every process makes its part, in a thread
        step = max(args.step_seconds + exposed, made)
        row = (
            sent / 1e6,
            1e3 * sent / speed,
            1e3 * exposed,
            made,
            step,
            4 * gpus / step,
            100 * args.step_seconds / step,
        )
        print(f"| {gpus} | " + " | ".join(f"{value:.3g}" for value in row) + " |")


if __name__ == "__main__":
    main()
