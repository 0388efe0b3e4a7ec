# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast, forward and with backward, of each implementation: time, peak memory, on a GPU the share of its roof.

    pytest benchmarks/bench_voxel_contrast.py [--benchmark-json FILE]

Denominator "all", which is also the SupConLoss of pytorch-metric-learning when the keys are its reference embeddings.
Every loss is compared with float64 before it is timed. With `--benchmark-disable` the sizes are small. Peak memory is
what the call holds above what was held before, features and their gradient included; it is in `extra_info`. For
ratios: `benchmarks/voxel_contrast.py`.
"""

import math
import sys
from importlib.util import find_spec

import pytest
import torch

from benchmarks.kernel_roofline import CARDS, design, time
from benchmarks.voxel_contrast import peak_bytes, plain_contrast, problem
from ssmis.kernels import reasons, voxel_contrast

SMALL = ((4, 4, 4), 16, 8)
CPU_SIZES = {  # grid, channels, keys; the definition takes one voxel at a time, SupConLoss some matrices of all pairs
    "reference": ((8, 8, 8), 16, 256),
    "plain": ((48, 48, 48), 16, 256),
    "chunked": ((48, 48, 48), 16, 256),
    "metric_learning": ((32, 32, 32), 16, 256),
}
GPU_SIZES = [((112, 112, 80), 16, 2), ((112, 112, 80), 16, 256), ((64, 64, 64), 64, 256), ((64, 64, 64), 16, 4096)]


def supcon(features, labels, keys, key_labels):
    from pytorch_metric_learning.losses import SupConLoss

    flat = features.flatten(2).transpose(1, 2).flatten(0, 1)
    return SupConLoss(temperature=0.1)(flat, labels.flatten(), ref_emb=keys, ref_labels=key_labels)


FUNCTIONS = {
    "reference": lambda *tensors: voxel_contrast(*tensors, impl="reference"),
    "plain": plain_contrast,
    "chunked": lambda *tensors: voxel_contrast(*tensors, impl="torch"),
    "metric_learning": supcon,
    "triton": lambda *tensors: voxel_contrast(*tensors, impl="triton"),
}


def run(benchmark, name, tensors, backward):
    """Time one implementation, after a look at its value and its memory."""
    device = tensors[0].device.type
    if name == "metric_learning" and find_spec("pytorch_metric_learning") is None:
        pytest.skip("pytorch-metric-learning is not installed (pip install pytorch-metric-learning)")
    if name == "triton" and (found := reasons(tensors[0], tensors[2])):
        pytest.skip("; ".join(found))

    def call():
        tensors[0].grad = None
        with torch.set_grad_enabled(backward):
            loss = FUNCTIONS[name](*tensors)
        if backward:
            loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss

    exact = voxel_contrast(tensors[0].detach().double(), tensors[1], tensors[2].double(), tensors[3], impl="torch")
    assert call().item() == pytest.approx(exact.item(), rel=1e-2 if tensors[0].dtype.itemsize == 2 else 1e-4)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        held = torch.cuda.max_memory_allocated() - before
    else:
        held = peak_bytes(call) if sys.platform == "linux" else math.nan
    benchmark.extra_info.update(peak_mb=round(held / 2**20, 1), voxels=tensors[1].numel(), keys=len(tensors[2]))
    benchmark(call)


ways = pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])


@ways
@pytest.mark.parametrize("name", CPU_SIZES)
def test_on_a_cpu(benchmark, name, backward):
    run(benchmark, name, problem(*(SMALL if benchmark.disabled else CPU_SIZES[name])), backward)


@pytest.mark.gpu
@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("grid", "channels", "keys"), GPU_SIZES)
@pytest.mark.parametrize("name", ["triton", "chunked", "plain", "metric_learning"])
def test_on_a_gpu(benchmark, capsys, name, grid, channels, keys, dtype, backward):
    if name in ("plain", "metric_learning") and 16 * math.prod(grid) * keys > torch.cuda.mem_get_info()[0]:
        pytest.skip("matrices of all voxels and keys do not fit")
    if benchmark.disabled:
        grid, channels, keys = SMALL
    run(benchmark, name, problem(grid, channels, keys, dtype, "cuda"), backward)
    card = next((card for own, card in CARDS.items() if own in torch.cuda.get_device_name()), None)
    if benchmark.disabled or card is None:
        return  # no time, or no roof on paper for this card
    passes = design(channels, keys)["gradient in forward" if backward else "no gradient"]
    share = 1e-6 * time(passes, card, math.prod(grid)) / benchmark.stats.stats.median
    benchmark.extra_info["share_of_roofline"] = round(share, 3)
    with capsys.disabled():
        print(f"\n{name}, {math.prod(grid)} x {channels} x {keys}, {dtype}: {share:.1%} of the bfloat16 roofline")
