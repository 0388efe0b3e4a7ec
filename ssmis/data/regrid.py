# SPDX-License-Identifier: Apache-2.0
"""Resampling to another voxel size and back, axis by axis; the outer borders of both grids coincide."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmis.data.resample import majority

_BLOCK = 64  # samples of one matrix product


def resampled_size(size: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> tuple[int, ...]:
    """Voxels of a grid of about `target_mm` over the same extent, at least one an axis.

    >>> resampled_size((49, 54, 9), (0.5, 0.5, 7.5), (1.0, 1.0, 2.5))
    (24, 27, 27)
    """
    if not len(size) == len(spacing_mm) == len(target_mm) or min(*spacing_mm, *target_mm) <= 0:
        raise ValueError(
            f"spacing_mm is {tuple(spacing_mm)} and target_mm {tuple(target_mm)}; "
            f"expected {len(size)} positive lengths each"
        )
    return tuple(max(1, round(n * own / new)) for n, own, new in zip(size, spacing_mm, target_mm))


def axis_weights(old: int, new: int, *, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    r"""Linear interpolation along one axis: which old samples each new one is made of, and by which weights.

    New sample $j$ lies at $x = (j + \tfrac12)\,n/m - \tfrac12$ in units of the $n$ old samples. Its weights are those
    of a triangle of half width $\max(1, n/m)$ around it, so that a coarser grid averages instead of skipping. Beyond
    the border there is nothing, and the weights add up to 1.

    Returns:
        `index` int64 and `weight` float32, both `(new, taps)`; unused taps have weight 0.
    """
    if old < 1 or new < 1:
        raise ValueError(f"axis of {old} samples to {new}; expected at least 1")
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
    centre = centre.clamp(0, old - 1) if new >= old else centre  # beyond the outer samples the border value goes on
    width = max(1.0, old / new)
    taps = 2 if new >= old else int(2 * width) + 2
    first = (centre - width).floor().long() + 1
    index = first[:, None] + torch.arange(taps)
    weight = (1 - (index - centre[:, None]).abs() / width).clamp_min(0)
    weight = torch.where((index >= 0) & (index < old), weight, 0)
    weight = weight / weight.sum(1, keepdim=True)
    return index.clamp(0, old - 1).to(device), weight.float().to(device)


def resample_axis(maps: Tensor, axis: int, new: int) -> Tensor:
    """Resample one axis of a floating-point tensor to `new` samples, see `axis_weights`."""
    old = maps.shape[axis]
    if old == new:
        return maps
    index, weight = axis_weights(old, new, device=maps.device)
    return apply_axis(maps, axis, index, weight)


def apply_axis(maps: Tensor, axis: int, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of slices: the result of `axis_weights`, or some of its rows, applied to `maps`.

    A matrix product for each block of new samples with the old samples they come from: the matrix is banded. A value
    that is not finite spreads over its block. Autocast does not reach it.

    Args:
        maps: floating point, any number of axes.
        axis: the axis to interpolate along; may be counted from the end.
        index: int64 `(new, taps)`.
        weight: `(new, taps)`; brought to the type of `maps`.

    Raises:
        ValueError: no sample has a weight.

    Gradient: to `maps`.
    """
    axis %= maps.ndim
    parts = []
    for start in range(0, len(index), _BLOCK):
        taps, weights = index[start : start + _BLOCK], weight[start : start + _BLOCK].to(maps.dtype)
        used = weights != 0
        if not bool(used.any()):
            raise ValueError("the axis has no sample to interpolate from")
        low, high = int(taps[used].min()), int(taps[used].max()) + 1
        matrix = weights.new_zeros(len(taps), high - low)
        matrix.scatter_add_(1, (taps - low).clamp(0, high - low - 1), weights)  # beyond are weights of 0
        own = maps.narrow(axis, low, high - low)
        with torch.autocast(maps.device.type, enabled=False):
            if axis == maps.ndim - 1:
                parts.append(own @ matrix.T)
            else:
                parts.append((matrix @ own.flatten(axis + 1)).unflatten(-1, maps.shape[axis + 1 :]))
    return torch.cat(parts, axis)


def resample_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resample images or probabilities `(C, *S)` to `(C, *size)`; probabilities still sum to 1.

    Axes that shrink go first. The same size gives the same values.
    """
    if len(size) != maps.ndim - 1:
        raise ValueError(f"size is {tuple(size)}; expected {maps.ndim - 1} lengths")
    if tuple(size) != tuple(maps.shape[1:]) and all(new >= old for new, old in zip(size, maps.shape[1:])):
        mode = {2: "linear", 3: "bilinear", 4: "trilinear"}[maps.ndim]
        return F.interpolate(maps[None], size=list(size), mode=mode, align_corners=False)[0]  # the same, in one pass
    for axis in sorted(range(1, maps.ndim), key=lambda axis: size[axis - 1] / maps.shape[axis]):
        maps = resample_axis(maps, axis, size[axis - 1])
    return maps


def resample_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Class with the greatest share at each new voxel, `(*S)` to `(*size)`; ties go to the smaller class."""
    if tuple(size) == tuple(labels.shape):
        return labels
    return majority(labels, lambda own: resample_maps(own[None].float(), size)[0])
