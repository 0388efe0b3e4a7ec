# SPDX-License-Identifier: Apache-2.0
"""The V-Net decoder, shared by the two networks of the dual recipes: transposed convolutions and additive skips."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssmis.nets.blocks import Size, conv_stack, level_sizes, normalised, up_conv


def stack_depth(level: int) -> int:
    """Convolutions at a level, counted from full resolution: 1, 2, 3, 3, ..."""
    return min(level + 1, 3)


class AdditiveDecoder(nn.Module):
    """Upsample by 2^dims transposed convolutions, add the encoder's map of that level, convolve.

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
        levels = range(len(widths) - 2, -1, -1)  # from coarse to fine
        factors, sizes = level_sizes(pooling, kernels, levels=len(widths))
        ups = [up_conv(widths[i + 1], widths[i], dims=dims, factor=factors[i]) for i in levels]
        self.ups = nn.ModuleList(normalised(up, widths[i], norm=norm, dims=dims) for up, i in zip(ups, levels))
        self.stacks = nn.ModuleList(
            conv_stack(widths[i], widths[i], stack_depth(i), norm=norm, dims=dims, kernel=sizes[i]) for i in levels
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Join maps from fine to coarse into `(B, widths[0], *S)` at the finest resolution."""
        *skips, features = maps
        for up, stack, skip in zip(self.ups, self.stacks, reversed(skips), strict=True):
            features = stack(up(features) + skip)
        return features
