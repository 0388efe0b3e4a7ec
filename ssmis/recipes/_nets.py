# SPDX-License-Identifier: Apache-2.0
"""The nets that recipes train when they are given none."""

from collections.abc import Mapping, Sequence

from torch import nn

from ssmis.nets import ResNetUNet, VNet


def dual_nets(
    *,
    in_channels: int = 1,
    classes: int = 2,
    dims: int = 3,
    widths: Sequence[int] = (16, 32, 64, 128, 256),
    dropout: float = 0.5,
) -> dict[str, nn.Module]:
    """Return the dual-network paper's pair: a ResNet-34 encoder-decoder named "resnet" and a V-Net named "vnet".

    Raises:
        ValueError: `widths` has not five numbers, one for each level of the ResNet.
    """
    if len(widths) != 5:
        raise ValueError(f"widths has {len(widths)} numbers; expected 5, one a level")
    return {
        "resnet": ResNetUNet(in_channels, classes, dims=dims, widths=widths, dropout=dropout),
        "vnet": VNet(in_channels, classes, dims=dims, widths=widths, dropout=dropout),
    }


def two_nets(nets: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    """Return `nets`, by default the paper's pair.

    Raises:
        ValueError: not exactly two nets.
    """
    if nets is None:
        return dual_nets()
    if len(nets) != 2:
        raise ValueError(f"nets are {list(nets)}; expected exactly two")
    return nets
