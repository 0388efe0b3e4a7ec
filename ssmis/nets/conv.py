# SPDX-License-Identifier: Apache-2.0
"""Convolutions that keep away from what oneDNN, as torch 2.14 ships it, computes wrongly or slowly on a CPU.

Maps smaller than their kernel (3^3 on 2 x 2 x 2 voxels, the bottleneck of a small patch) are computed in float32: their
bfloat16 weight gradients are unwritten memory, which may look plausible, and other sizes have ended the process with a
corrupted heap. Their share of the work is negligible, so float32 costs nothing.

Kernels of one voxel with a stride work on the voxels they need, without a stride: on CPUs with AVX2 and no AVX-512 the
weight gradient of `Conv2d(4, 4, 1, stride=2)` in the layout channels-last writes outside its memory.

Images of one channel are slow in bfloat16, whose instructions multiply many channels at once: a 7^3 stem of eight maps
takes a sixth of a training step. Their kernels are unrolled along the last axis, whose shifts become channels, where
the CPU has such instructions; kernels of three voxels only where it has AMX, since without it they gain nothing.

Weight gradients of contiguous maps are a product of matrices in oneDNN, up to five times as slow as its kernels for
channels-last maps: on CPUs with AVX-512 where channels are no multiple of 16, unless it is bfloat16 and there are the
tiles of AMX; on CPUs with AVX2 alone in every volume. Training works on copies in channels-last there, as far as the
channels are few enough to gain; a copy stays in memory until the backward pass.
"""

from functools import cache
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, nn


class _Careful(nn.modules.conv._ConvNd):
    """Mixin for convolutions; weights, state and results are those of torch's own layers."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # torch's name
        forward: Any = super()._conv_forward
        if input.device.type != "cpu":
            return forward(input, weight, bias)
        if max(self.kernel_size) == 1 < max(self.stride) and not any(self.padding):
            every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in self.stride))
            own: Any = nn.functional.conv2d if len(self.stride) == 2 else nn.functional.conv3d
            return cast(Tensor, own(input[every], weight, bias, groups=self.groups))
        low = input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if low and any(size < kernel for size, kernel in zip(input.shape[2:], self.kernel_size)):
            with torch.autocast("cpu", enabled=False):
                output = forward(input.float(), weight.float(), None if bias is None else bias.float())
            return output.to(weight.dtype)
        if input.ndim != weight.ndim:
            return forward(input, weight, bias)
        if low and input.shape[1] == 1 and self._unrolls():
            return _unrolled(input, weight, bias)
        if _trained(input, weight) and self._copies_pay(low):
            copy = input.contiguous(memory_format=torch.channels_last if input.ndim == 4 else torch.channels_last_3d)
            if copy is not input:
                copy.register_hook(_contiguous)  # so that layers before this one see contiguous gradients
                return cast(Tensor, forward(copy, weight, bias).contiguous())
        return forward(input, weight, bias)

    def _copies_pay(self, low: bool) -> bool:
        """Whether training is faster on copies of contiguous maps in channels-last, in bfloat16 if `low`."""
        capability, dims = torch.backends.cpu.get_cpu_capability(), len(self.kernel_size)
        most = {("AVX512", 2): 16, ("AVX512", 3): 24, ("AVX2", 3): 32}.get((capability, dims), 0)
        if not 1 < self.in_channels <= most or self.out_channels > most:
            return False
        if max(self.kernel_size) == 1 or max(self.stride) > 1 or self.groups > 1:
            return False
        if capability == "AVX2":
            return not low
        odd = self.in_channels % 16 > 0 or self.out_channels % 16 > 0
        return odd and not (low and _cpu_has("_is_amx_tile_supported"))

    def _unrolls(self) -> bool:
        """Whether one channel comes in, and the last axis has a kernel with same padding by zeros."""
        plain = self.padding_mode == "zeros" and set(self.stride) == {1} and set(self.dilation) == {1}
        same = tuple(self.padding) == tuple(length // 2 for length in self.kernel_size)
        last = self.kernel_size[-1]
        return self.in_channels == 1 and plain and same and last % 2 == 1 and last >= _least_unrolled()


def _trained(input: Tensor, weight: Tensor) -> bool:
    """Whether both will have gradients, are contiguous, and no compiler or transform looks on."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if watched or torch._C._functorch.peek_interpreter_stack() is not None:  # vmap knows no layouts
        return False
    both = (input, weight)
    if not torch.is_grad_enabled() or not all(one.requires_grad and one.is_contiguous() for one in both):
        return False
    return input.dtype in (torch.float32, torch.bfloat16)


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()


@cache
def _least_unrolled() -> float:
    """The shortest kernel that gains from unrolling on this CPU; infinite where bfloat16 is emulated."""
    if _cpu_has("_is_amx_tile_supported"):
        return 3
    return 5 if _cpu_has("_is_avx512_bf16_supported") else inf


def _cpu_has(probe: str) -> bool:
    found: Any = getattr(torch.cpu, probe, None)
    return found is not None and bool(found())


def _unrolled(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve `(B, 1, *S)` with same padding, the kernel's last axis as channels (a multiple of 8 of them)."""
    own: Any = nn.functional.conv2d if input.ndim == 4 else nn.functional.conv3d
    *sizes, last = weight.shape[2:]
    more = -last % 8
    shifts = nn.functional.pad(input.squeeze(1), (last // 2, last // 2)).unfold(-1, last, 1)  # (B, *S, last)
    images = nn.functional.pad(shifts, (0, more)).movedim(-1, 1)  # channels-last as it lies
    kernel = nn.functional.pad(weight.squeeze(1), (0, more)).movedim(-1, 1).unsqueeze(-1).contiguous()
    return cast(Tensor, own(images, kernel, bias, padding=(*(size // 2 for size in sizes), 0)))


class Conv2d(_Careful, nn.Conv2d):
    """`torch.nn.Conv2d`, kept from what oneDNN computes wrongly or slowly."""


class Conv3d(_Careful, nn.Conv3d):
    """`torch.nn.Conv3d`, kept from what oneDNN computes wrongly or slowly."""


def protect_small_maps(module: nn.Module) -> None:
    """Give the convolutions of any module, in place, the treatment of small maps that those of this package have."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = Conv2d
        elif type(layer) is nn.Conv3d:
            layer.__class__ = Conv3d
