# SPDX-License-Identifier: Apache-2.0
"""Vectors of length 1, for cosines: one rule for those that have no direction."""

from torch import Tensor

SHORTEST = 1e-12  # a vector shorter than this has no direction


def direction(vectors: Tensor, dim: int) -> Tensor:
    """Divide vectors by their length; one shorter than 1e-12 becomes a constant zero, without gradient.

    `torch.nn.functional.normalize` gives such a vector a gradient of up to 1e12 times the one that comes in.
    """
    short = vectors.square().sum(dim, keepdim=True).sqrt() < SHORTEST
    safe = vectors.masked_fill(short, 1)
    return (safe / safe.square().sum(dim, keepdim=True).sqrt()).masked_fill(short, 0)
