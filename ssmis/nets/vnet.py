# SPDX-License-Identifier: Apache-2.0
"""V-Net without residuals, as used by the semi-supervised literature on left atrium and pancreas."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssmis.nets.base import EncoderDecoder, check_widths
from ssmis.nets.blocks import Size, check_levels, conv, conv_stack, level_sizes, normalised, total_strides
from ssmis.nets.decoder import AdditiveDecoder, stack_depth
from ssmis.registry import NETS, Example


class VNetEncoder(nn.Module):
    """Stacks of 1, 2, 3, 3, 3 convolutions with 2^dims stride-2 convolutions between them.

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
        factors, sizes = level_sizes(pooling, kernels, levels=len(widths))
        levels = [conv_stack(in_channels, widths[0], stack_depth(0), norm=norm, dims=dims, kernel=sizes[0])]
        for i in range(1, len(widths)):
            down = conv(widths[i - 1], widths[i], factors[i - 1], stride=factors[i - 1], dims=dims)
            levels.append(
                nn.Sequential(
                    normalised(down, widths[i], norm=norm, dims=dims),
                    conv_stack(widths[i], widths[i], stack_depth(i), norm=norm, dims=dims, kernel=sizes[i]),
                )
            )
        self.levels = nn.ModuleList(levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps from fine to coarse."""
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(maps[-1] if maps else images))
        return maps


@NETS.register("vnet", example=Example(create={"widths": (4, 6, 8, 8, 8)}))
class VNet(EncoderDecoder):
    """V-Net with additive skips: 9,448,866 parameters with the default arguments.

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

    Paper: Milletari et al., "V-Net", 3DV 2016, arXiv 1606.04797. Differs from the paper: 3^3 kernels, batch norm and
        ReLU, skips are added instead of concatenated, no residuals: the form common in semi-supervised work.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        *,
        dims: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        norm: str = "batch",
        dropout: float = 0.5,
        pooling: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
    ) -> None:
        check_widths(widths)
        check_levels(pooling, kernels, levels=len(widths), dims=dims)
        super().__init__(
            VNetEncoder(in_channels, widths, dims=dims, norm=norm, pooling=pooling, kernels=kernels),
            AdditiveDecoder(widths, dims=dims, norm=norm, pooling=pooling, kernels=kernels),
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
