# SPDX-License-Identifier: Apache-2.0
"""A ResNet-34 encoder of 2 or 3 dimensions under the V-Net decoder."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ssmis.nets.base import EncoderDecoder, check_widths
from ssmis.nets.blocks import Size, check_levels, conv, level_sizes, norm_layer, normalised, per_axis, total_strides
from ssmis.nets.decoder import AdditiveDecoder
from ssmis.registry import NETS, Example


class BasicBlock(nn.Module):
    """Two 3^dims convolutions and a shortcut; the shortcut is projected where the shape changes.

    Args:
        in_channels: channels that come in.
        channels: channels that go out.
        stride: stride of the first convolution and the projection.
        dims: number of spatial dimensions.
        norm: see `norm_layer`.
        kernel: size of the two convolutions; where the first has a stride it is at least 3.
    """

    def __init__(
        self, in_channels: int, channels: int, *, stride: Size, dims: int, norm: str, kernel: Size = 3
    ) -> None:
        super().__init__()
        bias = norm == "none"  # a norm has its own
        strides = per_axis(stride, dims=dims)
        sizes = tuple(max(size, 3) if step > 1 else size for size, step in zip(per_axis(kernel, dims=dims), strides))
        first = conv(in_channels, channels, sizes, stride=strides, dims=dims, bias=bias)
        self.residual = nn.Sequential(
            normalised(first, channels, norm=norm, dims=dims),
            conv(channels, channels, kernel, dims=dims, bias=bias),
            norm_layer(norm, channels, dims=dims),
        )
        self.shortcut: nn.Module = nn.Identity()
        if set(strides) != {1} or in_channels != channels:
            project = conv(in_channels, channels, 1, stride=strides, dims=dims, bias=bias)
            self.shortcut = nn.Sequential(project, norm_layer(norm, channels, dims=dims))

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, in_channels, *S)` to `(B, channels, *S / stride)`."""
        return F.relu(self.residual(features) + self.shortcut(features), inplace=True)


class ResNetEncoder(nn.Module):
    """A 7^dims stem at full resolution and one stage of basic blocks for every further level.

    Args:
        in_channels: channels of the images.
        widths: channels of the stem and of the stages.
        blocks: basic blocks of the stages; the first of each has stride 2.
        dims: number of spatial dimensions.
        norm: see `norm_layer`.
        pooling: factors between the levels; default: 2.
        kernels: sizes of the convolutions at each level; default: 3. Where the first is 1 the stem's 7 is 1.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        *,
        dims: int,
        norm: str,
        pooling: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
    ) -> None:
        super().__init__()
        factors, sizes = level_sizes(pooling, kernels, levels=len(widths))
        stem_size = tuple(1 if size == 1 else 7 for size in per_axis(sizes[0], dims=dims))
        stem = conv(in_channels, widths[0], stem_size, dims=dims, bias=norm == "none")
        levels = [normalised(stem, widths[0], norm=norm, dims=dims)]
        for before, width, depth, factor, size in zip(widths, widths[1:], blocks, factors, sizes[1:]):
            first = BasicBlock(before, width, stride=factor, dims=dims, norm=norm, kernel=size)
            rest = [BasicBlock(width, width, stride=1, dims=dims, norm=norm, kernel=size) for _ in range(depth - 1)]
            levels.append(nn.Sequential(first, *rest))
        self.levels = nn.ModuleList(levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps from fine to coarse."""
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(maps[-1] if maps else images))
        return maps


@NETS.register("resnet_unet", example=Example(create={"widths": (4, 6, 8, 8, 8), "blocks": (1, 2, 1, 1)}))
class ResNetUNet(EncoderDecoder):
    """ResNet-34 encoder, V-Net decoder: 17,930,354 parameters with the default arguments.

    Args:
        in_channels: channels of the images.
        classes: K >= 2, with the background.
        dims: number of spatial dimensions, 2 or 3.
        widths: channels of the stem (full resolution) and of the stages, each of which halves the resolution.
        blocks: basic blocks of the stages, one number less than widths; the default is a ResNet-34.
        norm: "batch", "instance", "group" or "none".
        dropout: probability of dropping a channel after the last decoder block.
        pooling: factors from level to level, each one number or one an axis; default: 2. An axis with factor 1 keeps
            its resolution, for volumes with thick slices.
        kernels: sizes of the convolutions at each level, odd, likewise; default: 3.

    Raises:
        ValueError: an argument is out of range; for images, see `EncoderDecoder`.

    Paper: He et al., "Deep Residual Learning", CVPR 2016, arXiv 1512.03385. Differs from the paper: the stem has
        stride 1 and no max-pooling follows, the first stage has stride 2, the widths are a quarter.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        *,
        dims: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        blocks: Sequence[int] = (3, 4, 6, 3),
        norm: str = "batch",
        dropout: float = 0.5,
        pooling: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
    ) -> None:
        check_widths(widths)
        check_levels(pooling, kernels, levels=len(widths), dims=dims)
        if len(blocks) != len(widths) - 1 or min(blocks) < 1:
            raise ValueError(
                f"blocks is {tuple(blocks)}; expected {len(widths) - 1} numbers of 1 or more, one less than widths"
            )
        super().__init__(
            ResNetEncoder(in_channels, widths, blocks, dims=dims, norm=norm, pooling=pooling, kernels=kernels),
            AdditiveDecoder(widths, dims=dims, norm=norm, pooling=pooling, kernels=kernels),
            in_channels=in_channels,
            classes=classes,
            channels=widths[0],
            dims=dims,
            widths=widths,
            strides=total_strides(pooling, levels=len(widths), dims=dims),
            norm=norm,
            dropout=dropout,
        )
