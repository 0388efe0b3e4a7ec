# SPDX-License-Identifier: Apache-2.0
"""The U-Net: two convolutions a level, max-pooling down, concatenated skips."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssmis.nets.base import EncoderDecoder, check_widths
from ssmis.nets.blocks import Size, check_levels, conv_stack, level_sizes, per_axis, total_strides, up_conv
from ssmis.registry import NETS, Example


class UNetEncoder(nn.Module):
    """Two convolutions a level with 2^dims max-pooling between the levels.

    Args:
        in_channels: channels of the images.
        widths: channels of the maps from fine to coarse, strides 1, 2, 4, ...
        dims: number of spatial dimensions.
        norm: see `norm_layer`.
        pooling: factors between the levels; default: 2.
        kernels: sizes of the convolutions at each level; default: 3.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        dims: int,
        norm: str,
        pooling: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
    ) -> None:
        super().__init__()
        pool = nn.MaxPool2d if dims == 2 else nn.MaxPool3d
        factors, sizes = level_sizes(pooling, kernels, levels=len(widths))
        self.pools = nn.ModuleList(pool(per_axis(factor, dims=dims)) for factor in factors)
        sources = (in_channels, *widths[:-1])
        self.levels = nn.ModuleList(
            conv_stack(a, b, 2, norm=norm, dims=dims, kernel=size) for a, b, size in zip(sources, widths, sizes)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps from fine to coarse."""
        maps: list[Tensor] = []
        for index, level in enumerate(self.levels):
            maps.append(level(self.pools[index - 1](maps[-1]) if maps else images))
        return maps


class ConcatDecoder(nn.Module):
    """Upsample by 2^dims transposed convolutions, concatenate the encoder's map of that level, convolve twice.

    Args:
        widths: channels of the encoder's maps from fine to coarse; each is twice as coarse as the one before.
        dims: number of spatial dimensions.
        norm: see `norm_layer`.
        pooling: factors between the levels; default: 2.
        kernels: sizes of the convolutions at each level; default: 3.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        dims: int,
        norm: str,
        pooling: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
    ) -> None:
        super().__init__()
        factors, sizes = level_sizes(pooling, kernels, levels=len(widths))
        levels = range(len(widths) - 2, -1, -1)  # from coarse to fine
        self.ups = nn.ModuleList(up_conv(widths[i + 1], widths[i], dims=dims, factor=factors[i]) for i in levels)
        self.stacks = nn.ModuleList(
            conv_stack(2 * widths[i], widths[i], 2, norm=norm, dims=dims, kernel=sizes[i]) for i in levels
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Join maps from fine to coarse into `(B, widths[0], *S)` at the finest resolution."""
        *skips, features = maps
        for up, stack, skip in zip(self.ups, self.stacks, reversed(skips), strict=True):
            features = stack(torch.cat([skip, up(features)], dim=1))
        return features


@NETS.register("unet", example=Example(create={"widths": (4, 6, 8, 8, 8)}))
class UNet(EncoderDecoder):
    """U-Net with same padding.

    Args:
        in_channels: channels of the images.
        classes: K >= 2, with the background.
        dims: number of spatial dimensions, 2 or 3.
        widths: channels from full resolution to the bottleneck; each level halves the resolution.
        norm: "batch", "instance", "group" or "none".
        dropout: probability of dropping a channel after the bottleneck and after the last decoder block.
        pooling: factors from level to level, each one number or one an axis; default: 2. An axis with factor 1 keeps
            its resolution, for volumes with thick slices.
        kernels: sizes of the convolutions at each level, odd, likewise; default: 3.

    Raises:
        ValueError: an argument is out of range; for images, see `EncoderDecoder`.

    Paper: Ronneberger et al., "U-Net", MICCAI 2015, arXiv 1505.04597; Çiçek et al., "3D U-Net", MICCAI 2016,
        arXiv 1606.06650. Differs from the papers: padded convolutions, a norm after each, narrower by default.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        *,
        dims: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        norm: str = "batch",
        dropout: float = 0.0,
        pooling: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
    ) -> None:
        check_widths(widths)
        check_levels(pooling, kernels, levels=len(widths), dims=dims)
        super().__init__(
            UNetEncoder(in_channels, widths, dims=dims, norm=norm, pooling=pooling, kernels=kernels),
            ConcatDecoder(widths, dims=dims, norm=norm, pooling=pooling, kernels=kernels),
            in_channels=in_channels,
            classes=classes,
            channels=widths[0],
            dims=dims,
            widths=widths,
            strides=total_strides(pooling, levels=len(widths), dims=dims),
            norm=norm,
            dropout=dropout,
            bottleneck_dropout=dropout,
        )
