# SPDX-License-Identifier: Apache-2.0
"""Heads on voxel features: class logits, and embeddings for contrastive terms."""

import torch
from torch import Tensor, nn

from ssmis._vectors import direction
from ssmis.nets.blocks import conv


class SegmentationHead(nn.Module):
    """A 1^dims convolution from features `(B, E, *S)` to logits `(B, K, *S)`.

    Args:
        in_channels: E.
        classes: K >= 2, with the background.
        dims: number of spatial dimensions, 2 or 3.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, in_channels: int, classes: int, *, dims: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes is {classes}; expected at least 2 (background included)")
        self.conv = conv(in_channels, classes, 1, dims=dims)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits."""
        return self.conv(features)


class ProjectionHead(nn.Module):
    """A voxel-wise perceptron with one hidden layer, for contrastive embeddings.

    Args:
        in_channels: channels E of the features.
        out_channels: channels of the embedding.
        hidden: channels of the hidden layer; default: as many as come in.
        dims: number of spatial dimensions, 2 or 3.
        normalize: give embeddings of length 1; half-precision ones are then returned as float32.

    Raises:
        ValueError: an argument is out of range.

    Paper: Chen et al., "SimCLR", ICML 2020, arXiv 2002.05709.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, hidden: int | None = None, dims: int, normalize: bool = True
    ) -> None:
        super().__init__()
        width = in_channels if hidden is None else hidden
        if min(width, out_channels) < 1:
            raise ValueError(f"hidden is {width} and out_channels is {out_channels}; expected at least 1")
        self.layers = nn.Sequential(
            conv(in_channels, width, 1, dims=dims), nn.ReLU(inplace=True), conv(width, out_channels, 1, dims=dims)
        )
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, E, *S)` to `(B, out_channels, *S)`."""
        embedding: Tensor = self.layers(features)
        if not self.normalize:
            return embedding
        return direction(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), 1)
