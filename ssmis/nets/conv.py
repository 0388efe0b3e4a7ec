# SPDX-License-Identifier: Apache-2.0
"""Convolutions that compute maps smaller than their kernel in float32 on a CPU.

oneDNN, as torch 2.14 ships it, returns bfloat16 weight gradients of unwritten memory for such maps (3^3 kernels on
2 x 2 x 2 voxels), which may look plausible; other sizes have ended the process with a corrupted heap. The bottleneck of
a small patch is such a map. Its share of the work is negligible, so float32 costs nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _SmallMapsInFloat32(nn.modules.conv._ConvNd):
    """Mixin for convolutions; weights, state and results are those of torch's own layers."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # torch's name
        forward: Any = super()._conv_forward
        small = any(size < kernel for size, kernel in zip(input.shape[2:], self.kernel_size))
        half = input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if not (small and half and input.device.type == "cpu"):
            return forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            output = forward(input.float(), weight.float(), None if bias is None else bias.float())
        return output.to(weight.dtype)


class Conv2d(_SmallMapsInFloat32, nn.Conv2d):
    """`torch.nn.Conv2d`, with maps smaller than the kernel in float32 on a CPU."""


class Conv3d(_SmallMapsInFloat32, nn.Conv3d):
    """`torch.nn.Conv3d`, with maps smaller than the kernel in float32 on a CPU."""


def protect_small_maps(module: nn.Module) -> None:
    """Give the convolutions of any module, in place, the treatment of small maps that those of this package have."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = Conv2d
        elif type(layer) is nn.Conv3d:
            layer.__class__ = Conv3d
