# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast in two processes under DistributedDataParallel: the gradient is the mean of those of the ranks."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from torch import distributed, nn
from ssmis.kernels import voxel_contrast

torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def problem(rank):
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(1, 3, 4, 4, 4, generator=generator)
    # the second rank has nothing that counts: its gradient is zero, and nobody waits for it
    labels = torch.randint(-1, 2, (1, 4, 4, 4), generator=generator) if rank == 0 else torch.full((1, 4, 4, 4), -1)
    return images, labels

keys, key_labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(9)), torch.arange(6) % 2

for denominator in ("all", "negatives"):
    torch.manual_seed(0)
    net = nn.Conv3d(3, 5, 1)
    expected = torch.zeros_like(net.weight)
    for other in range(2):
        images, labels = problem(other)
        loss = voxel_contrast(net(images), labels, keys, key_labels, denominator=denominator)
        expected += torch.autograd.grad(loss, net.weight)[0] / 2
    images, labels = problem(rank)
    parallel = nn.parallel.DistributedDataParallel(net)
    voxel_contrast(parallel(images), labels, keys, key_labels, denominator=denominator).backward()
    assert expected.any()
    torch.testing.assert_close(net.weight.grad, expected)
    del parallel
distributed.barrier()  # a rank that leaves while the other still waits for it can end it without a word
distributed.destroy_process_group()
print("agrees", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file store is tested on Linux only")
def test_gradients_are_averaged_over_processes(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, errors = rank.communicate(timeout=200)
        assert out.strip() == "agrees", errors[-2000:]
