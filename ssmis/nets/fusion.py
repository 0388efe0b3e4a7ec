# SPDX-License-Identifier: Apache-2.0
"""One prediction from the logits of two nets: gated, joined and mapped voxel by voxel."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_same_shape
from ssmis.nets.attention_gate import CrossAttentionGate
from ssmis.nets.blocks import conv, norm_layer
from ssmis.nets.output import NetOutput


class FusionHead(nn.Module):
    """1^dims convolutions from the joined logits of several nets to logits of one prediction.

    Args:
        classes: K >= 2, with the background.
        nets: number of nets whose logits are joined.
        dims: number of spatial dimensions, 2 or 3.
        widths: channels of the hidden layers, each with norm and LeakyReLU(0.2).
        norm: "batch", "instance", "group" or "none".
        activated: also the last layer has norm and LeakyReLU(0.2), which squeezes negative logits; seen in public code.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        classes: int,
        *,
        nets: int = 2,
        dims: int,
        widths: Sequence[int] = (16, 32, 64, 32, 16),
        norm: str = "batch",
        activated: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes is {classes}; expected at least 2 (background included)")
        if nets < 1 or min(widths, default=1) < 1:
            raise ValueError(f"nets is {nets} and widths is {tuple(widths)}; expected 1 or more each")
        channels = [nets * classes, *widths, classes]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(channels)):
            layers.append(conv(before, after, 1, dims=dims))
            if activated or index < len(widths):
                layers += [norm_layer(norm, after, dims=dims), nn.LeakyReLU(0.2, inplace=norm != "instance")]
        self.layers = nn.Sequential(*layers)

    def forward(self, joined: Tensor) -> Tensor:
        """Map `(B, nets * K, *S)` to logits `(B, K, *S)`."""
        return self.layers(joined)


class GatedFusion(nn.Module):
    r"""Logits of two nets, each times the gate that cross-attention makes of their uncertainty maps, through a head.

    $z_f = H([A z_1, A z_2])$ with $A = \mathrm{gate}(u_1, u_2)$.

    Args:
        gate: two maps `(B, 1, *S)` -> a map `(B, 1, *S)`.
        head: joined logits `(B, 2 K, *S)` -> logits `(B, K, *S)`.
        uncertainty: logits `(B, K, *S)` -> a map `(B, *S)`, such as `ssmis.uncertainty.vacuity`.

    Raises:
        ValueError: in forward: the logits do not have the same shape, or do not fit the gate.

    Gradient: to both logits, also through their uncertainty.
    Paper: Huang et al., "Uncertainty-aware Cross-training", IEEE TIP 2025, arXiv 2508.09014, after their public code.
    """

    def __init__(self, gate: CrossAttentionGate, head: FusionHead, *, uncertainty: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.head, self.uncertainty = gate, head, uncertainty

    def forward(self, first_logits: Tensor, second_logits: Tensor) -> Tensor:
        """Return the fused logits `(B, K, *S)`."""
        check_class_maps(first_logits=first_logits)
        check_same_shape(first_logits=first_logits, second_logits=second_logits)
        maps = (self.uncertainty(logits).unsqueeze(1) for logits in (first_logits, second_logits))
        gate = self.gate(*maps)
        return self.head(torch.cat([gate * first_logits, gate * second_logits], dim=1))


class FusedNets(nn.Module):
    """Two nets and their fusion as one net: `logits` are the fused ones, `heads` those of each net.

    It holds no copy: training it trains the parts.

    Args:
        nets: the two nets, in the order the fusion takes them.
        names: of the two in `heads`.
        fusion: two logits -> fused logits.

    Raises:
        ValueError: not two nets and two names.
    """

    def __init__(
        self, nets: Sequence[nn.Module], fusion: nn.Module, *, names: Sequence[str] = ("first", "second")
    ) -> None:
        super().__init__()
        if len(nets) != 2 or len(names) != 2:
            raise ValueError(f"nets has {len(nets)} and names is {tuple(names)}; expected two of both")
        self.nets, self.fusion, self.names = nn.ModuleList(nets), fusion, tuple(names)

    if TYPE_CHECKING:
        __call__: Callable[..., NetOutput]  # torch says that any module returns Any

    def forward(self, images: Tensor) -> NetOutput:
        """Segment images `(B, C, *S)`."""
        logits = [net(images).logits for net in self.nets]
        return NetOutput(self.fusion(*logits), heads=dict(zip(self.names, logits)))
