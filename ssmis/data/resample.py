# SPDX-License-Identifier: Apache-2.0
"""Coarser grids for training and finer grids for results; all with voxel areas, never voxel centres, aligned."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, ...]:
    """Spatial size on a grid `scale` times as fine, at least one voxel an axis.

    >>> scaled_size((183, 140, 88), 0.5)
    (92, 70, 44)
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale is {scale}; expected a number in (0, 1]")
    return tuple(max(1, round(length * scale)) for length in size)


def area_downsample(images: Tensor, size: Sequence[int]) -> Tensor:
    """Mean over the voxels that fall into each coarse voxel.

    Args:
        images: floating point `(B, C, *S)`.
        size: the coarse size, no longer than `S` on any axis.
    """
    _check_smaller(images.shape[2:], size)
    return F.interpolate(images, size=list(size), mode="area")


def majority_downsample(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Class with the largest share of each coarse voxel; ties go to the smaller class.

    Args:
        labels: integer `(B, *S)`.
        size: the coarse size, no longer than `S` on any axis.
    """
    _check_smaller(labels.shape[1:], size)
    return majority(labels, lambda own: F.interpolate(own[:, None].float(), size=list(size), mode="area")[:, 0])


def majority(labels: Tensor, shares: Callable[[Tensor], Tensor]) -> Tensor:
    """Class with the greatest share at each place of a new grid; ties go to the smaller class.

    Args:
        labels: integer, on the old grid.
        shares: bool mask of a class on the old grid -> its share on the new one.

    Raises:
        ValueError: there is no voxel.
    """
    best, winner = None, None
    for value in labels.unique():  # sorted
        share = shares(labels == value)
        if best is None or winner is None:
            best, winner = share, torch.full_like(share, 0, dtype=labels.dtype) + value
        else:
            winner = torch.where(share > best, value, winner)
            best = torch.maximum(best, share)
    if winner is None:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; expected at least one voxel")
    return winner


def upsample_probs(probs: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate class probabilities `(B, K, *S)` linearly to `size`; they still sum to 1."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[probs.ndim]
    return F.interpolate(probs, size=list(size), mode=mode, align_corners=False)


def _check_smaller(shape: Sequence[int], size: Sequence[int]) -> None:
    if len(size) != len(shape) or any(not 1 <= small <= large for small, large in zip(size, shape)):
        raise ValueError(f"size is {tuple(size)}; expected {len(shape)} lengths from 1 up to {tuple(shape)}")
