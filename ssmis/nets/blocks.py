# SPDX-License-Identifier: Apache-2.0
"""Small pieces shared by the nets: convolutions, norms and dropout by number of spatial dims, padding and cropping."""

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ssmis._checks import check_choice
from ssmis.nets.conv import Conv2d, Conv3d

Norm = Literal["batch", "instance", "group", "none"]
NORMS = ("batch", "instance", "group", "none")
Size = int | Sequence[int]  # one length for all axes, or one an axis


def check_dims(dims: int) -> None:
    """Raise ValueError unless `dims` is 2 or 3."""
    if dims not in (2, 3):
        raise ValueError(f"dims is {dims!r}; expected 2 or 3 spatial dimensions")


def per_axis(size: Size, *, dims: int, name: str = "size") -> tuple[int, ...]:
    """One length an axis; raise ValueError unless there are `dims` of them, all of 1 or more."""
    sizes = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(sizes) != dims or min(sizes) < 1:
        raise ValueError(f"{name} is {size}; expected {dims} numbers of 1 or more")
    return sizes


def check_levels(pooling: Sequence[Size] | None, kernels: Sequence[Size] | None, *, levels: int, dims: int) -> None:
    """Raise ValueError unless there is a pooling factor between all levels, and an odd kernel at each."""
    for name, sizes, count in (("pooling", pooling, levels - 1), ("kernels", kernels, levels)):
        if sizes is None:
            continue
        if len(sizes) != count:
            raise ValueError(f"{name} has {len(sizes)} entries; expected {count} for {levels} levels")
        for size in sizes:
            lengths = per_axis(size, dims=dims, name=name)
            if name == "kernels" and any(length % 2 == 0 for length in lengths):
                raise ValueError(f"kernels has {size}; expected odd lengths")


def total_strides(pooling: Sequence[Size] | None, *, levels: int, dims: int) -> list[Size]:
    """Strides of the levels against the images, products of the factors; 1, 2, 4, ... without any."""
    if pooling is None:
        return [2**level for level in range(levels)]
    strides: list[Size] = [(1,) * dims]
    for factor in pooling:
        strides.append(tuple(a * b for a, b in zip(per_axis(strides[-1], dims=dims), per_axis(factor, dims=dims))))
    return strides


def conv(
    in_channels: int, out_channels: int, size: Size, *, dims: int, stride: Size = 1, bias: bool = True
) -> nn.Module:
    """Convolution of odd `size` with same padding, or of `size == stride` without overlap and padding."""
    check_dims(dims)
    sizes, strides = per_axis(size, dims=dims), per_axis(stride, dims=dims)
    if in_channels < 1:
        raise ValueError(f"in_channels is {in_channels}; expected at least 1")
    layer = Conv2d if dims == 2 else Conv3d
    padding = (0,) * dims if sizes == strides else tuple(length // 2 for length in sizes)
    return layer(in_channels, out_channels, sizes, stride=strides, padding=padding, bias=bias)  # type: ignore[arg-type]


def up_conv(in_channels: int, out_channels: int, *, dims: int, factor: Size = 2) -> nn.Module:
    """Transposed convolution without overlap: every axis becomes `factor` times as long."""
    check_dims(dims)
    layer = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
    factors = per_axis(factor, dims=dims)
    return layer(in_channels, out_channels, factors, stride=factors)  # type: ignore[arg-type]


def norm_layer(norm: str, channels: int, *, dims: int) -> nn.Module:
    """Normalisation with affine parameters.

    Args:
        norm: "batch", "instance", "group" (at most 8 groups of two or more channels) or "none".
        channels: channels of the map.
        dims: number of spatial dimensions.
    """
    check_dims(dims)
    check_choice(norm, NORMS, name="norm")
    if norm == "batch":
        return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True) if dims == 2 else nn.InstanceNorm3d(channels, affine=True)
    if norm == "group":
        return nn.GroupNorm(math.gcd(8, channels // 2) if channels % 2 == 0 else 1, channels)
    return nn.Identity()


def channel_dropout(dropout: float, *, dims: int) -> nn.Module:
    """Dropout of whole channels."""
    check_dims(dims)
    return nn.Dropout2d(dropout) if dims == 2 else nn.Dropout3d(dropout)


def normalised(layer: nn.Module, channels: int, *, norm: str, dims: int) -> nn.Sequential:
    """`layer` (which gives `channels` channels), norm, ReLU."""
    # torch's instance norm gives a view of its result; the gradient of what is changed in place there makes copies
    return nn.Sequential(layer, norm_layer(norm, channels, dims=dims), nn.ReLU(inplace=norm != "instance"))


def conv_stack(
    in_channels: int, out_channels: int, depth: int, *, norm: str, dims: int, kernel: Size = 3
) -> nn.Sequential:
    """`depth` times convolution, norm, ReLU."""
    sources = [in_channels] + [out_channels] * (depth - 1)
    return nn.Sequential(
        *(normalised(conv(c, out_channels, kernel, dims=dims), out_channels, norm=norm, dims=dims) for c in sources)
    )


def level_sizes(
    pooling: Sequence[Size] | None, kernels: Sequence[Size] | None, *, levels: int
) -> tuple[Sequence[Size], Sequence[Size]]:
    """Return the `levels - 1` factors between the levels, by default 2, and the `levels` kernel sizes, by default 3."""
    return pooling or [2] * (levels - 1), kernels or [3] * levels


def pad_to_multiple(images: Tensor, multiple: Size) -> Tensor:
    """Append zeros to `(B, C, *S)` until every spatial size divides by `multiple`; memory format is kept."""
    multiples = per_axis(multiple, dims=images.ndim - 2)
    missing = [-size % own for size, own in zip(images.shape[2:], multiples)]
    if not any(missing):
        return images
    return F.pad(images, [n for after in reversed(missing) for n in (0, after)])


def crop(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Undo `pad_to_multiple`: the first `size` voxels of every spatial axis, as a view."""
    for axis, length in enumerate(size, start=2):
        if tensor.shape[axis] != length:
            tensor = tensor.narrow(axis, 0, length)
    return tensor
