# SPDX-License-Identifier: Apache-2.0
"""bfloat16 gradients of small maps on a CPU: torch's own are memory that nobody wrote."""

import pytest
import torch
from torch import nn

from ssmis.nets import NetAdapter, VNet
from ssmis.nets.conv import Conv2d, Conv3d, protect_small_maps


def gradients(layer, size, autocast):
    torch.manual_seed(0)
    images = torch.randn(2, 8, *size).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(images)
    garbage = [torch.full((1 << 14,), 1e30) for _ in range(40)]  # freed at once: what unwritten memory would hold
    del garbage
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(output, (images, layer.weight), upstream.to(output.dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 1), (2, 2, 2), (3, 2, 2), (3, 3, 2), (3, 3, 3)])
def test_bfloat16_gradients_are_near_those_of_float32(size, memory_format):
    layer = Conv3d(8, 8, 3, padding=1).to(memory_format=memory_format)
    for half, full in zip(gradients(layer, size, True), gradients(layer, size, False), strict=True):
        assert (half.float() - full).norm() < 0.03 * full.norm()


def test_state_and_results_are_those_of_torch():
    ours, theirs = Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 6, 6)
    assert torch.equal(ours(images), theirs(images))
    assert ours.bfloat16()(images[..., :2, :2].bfloat16()).dtype == torch.bfloat16


def test_guests_are_protected_in_place():
    guest = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Sequential(nn.Conv3d(2, 2, 1)))
    keys = list(guest.state_dict())
    protect_small_maps(guest)
    assert [type(m) for m in guest.modules() if isinstance(m, nn.Conv3d)] == [Conv3d, Conv3d]
    assert list(guest.state_dict()) == keys
    assert type(NetAdapter(nn.Sequential(nn.Conv3d(1, 2, 3, padding=1))).module[0]) is Conv3d


def test_built_in_nets_use_them():
    assert all(type(m) is Conv3d for m in VNet(widths=(2, 4)).modules() if isinstance(m, nn.Conv3d))
