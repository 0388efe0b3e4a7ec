# SPDX-License-Identifier: Apache-2.0
"""Distances between the boundaries of two masks, under named conventions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

import numpy as np

from ssmis._checks import check_choice, check_range
from ssmis._optional import require
from ssmis.metrics._masks import Array, ArrayLike, bounding_box, mask_pair, spacing_of

Convention = Literal["default", "medpy"]
CONVENTIONS = ("default", "medpy")
TRANSFORM_FROM = 20  # voxels of the joint box per searched point, below which the transform wins
NEAR = 3  # voxels within which neighbours are tried one by one


@dataclass(frozen=True)
class SurfaceDistances:
    """Boundary distances, in mm (`default`) or voxels (`medpy`), and the surface Dice.

    Attributes:
        hd95: 95th percentile distance; the conventions differ here.
        hd: largest distance.
        assd: mean over both directions pooled.
        masd: mean of the two directed means.
        asd: mean from prediction to reference only: a missed part costs nothing.
        nsd: share of both boundaries within the tolerance of the other, in [0, 1].
    """

    hd95: float
    hd: float
    assd: float
    masd: float
    asd: float
    nsd: float


def surface_distances(
    prediction: ArrayLike,
    reference: ArrayLike,
    *,
    spacing_mm: Sequence[float],
    convention: Convention = "default",
    nsd_tolerance_mm: float = 1.0,
) -> SurfaceDistances:
    """Measure how far the boundaries of two masks lie apart.

    The boundary is the mask minus its erosion by the 6-neighbourhood (4 in 2-D); outside of the image is background.
    Distances run between voxel centres, from every boundary voxel to the nearest one of the other mask.

    Args:
        prediction: bool `(*S)`, numpy or torch.
        reference: bool `(*S)`.
        spacing_mm: voxel size in mm, in the order of the axes.
        convention: "default" takes for `hd95` the larger of the two directed 95th percentiles, in mm; "medpy" pools
            both directions before the percentile and measures everything in voxels (the tolerance of `nsd` too), as
            in the published Left Atrium, Pancreas and ACDC tables.
        nsd_tolerance_mm: tolerance of `nsd`.

    Raises:
        ValueError: a mask is not bool, the shapes differ, or the spacing does not fit them.

    Empty case: both empty is not applicable (nan); one empty gives the image diagonal as every distance and 0 as `nsd`.

    Paper: Maier-Hein et al., Metrics reloaded, Nature Methods 2024 (arXiv 2206.01653), for the default.
    """
    predicted, true = mask_pair(prediction, reference)
    check_choice(convention, CONVENTIONS, name="convention")
    check_range(nsd_tolerance_mm, 0, float("inf"), name="nsd_tolerance_mm")
    spacing = spacing_of(spacing_mm, predicted.ndim)
    if convention == "medpy":
        spacing = np.ones_like(spacing)

    some = bool(predicted.any()), bool(true.any())
    if not any(some):
        return SurfaceDistances(nan, nan, nan, nan, nan, nan)
    if not all(some):
        diagonal = float(np.linalg.norm(spacing * predicted.shape))
        return SurfaceDistances(diagonal, diagonal, diagonal, diagonal, diagonal, 0.0)

    box = bounding_box(predicted | true)  # beyond it both are background, as beyond the image
    boundaries = _boundary(predicted[box]), _boundary(true[box])
    to_reference = _distances(boundaries[0], boundaries[1], spacing)
    to_prediction = _distances(boundaries[1], boundaries[0], spacing)
    both = np.concatenate([to_reference, to_prediction])
    if convention == "medpy":
        hd95 = np.percentile(both, 95)
    else:
        hd95 = max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95))
    return SurfaceDistances(
        hd95=float(hd95),
        hd=float(both.max()),
        assd=float(both.mean()),
        masd=float((to_reference.mean() + to_prediction.mean()) / 2),
        asd=float(to_reference.mean()),
        nsd=float((both <= nsd_tolerance_mm + 1e-9).mean()),  # a distance of 3 * 0.7 counts as 2.1
    )


def _boundary(mask: Array) -> Array:
    """The mask minus its erosion by the face neighbours; outside of the array is background."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        kept, near = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= near[:-1]
        kept[:-1] &= near[1:]
        kept[0] = kept[-1] = False
    return mask & ~inside


def _distances(source: Array, target: Array, spacing: Array) -> Array:
    """Distance `(N,)` from every voxel of one boundary to the nearest of the other, in no particular order.

    Common voxels are at 0 and need no search. Most of the others have a neighbour within a few voxels; for the rest a
    tree over the target is exact and fast. Only where the others are many, as on the ragged masks of early training,
    one transform of the whole array is cheaper.
    """
    points = np.argwhere(source & ~target)
    if len(points) * TRANSFORM_FROM > source.size:
        ndimage = require("scipy.ndimage", extra="medical", purpose="surface distances")
        nearest = ndimage.distance_transform_edt(~target, sampling=spacing, return_distances=False, return_indices=True)
        offsets = points - nearest[:, *points.T].T
        found = np.sqrt(((offsets * spacing) ** 2).sum(axis=1))
    else:
        found = _near(points, target, spacing)
        far = np.isinf(found)
        if far.any():
            spatial = require("scipy.spatial", extra="medical", purpose="surface distances")
            tree = spatial.cKDTree(np.argwhere(target) * spacing, balanced_tree=False)
            found[far] = tree.query(points[far] * spacing)[0]
    return np.concatenate([np.zeros(np.count_nonzero(source & target)), found])


def _near(points: Array, target: Array, spacing: Array) -> Array:
    """Distance `(N,)` to the nearest voxel of the target within `NEAR` of the shortest voxel edge; inf beyond."""
    reach = (NEAR * spacing.min() / spacing).astype(int)
    steps = np.indices(2 * reach + 1).reshape(len(reach), -1).T - reach
    lengths = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")[: np.count_nonzero(lengths <= NEAR * spacing.min())]
    padded = np.pad(target, [(margin, margin) for margin in reach])
    pitch = np.array(padded.strides)  # of bool, so it counts voxels
    flat, at = padded.ravel(), (points + reach) @ pitch
    found, left = np.full(len(points), np.inf), np.arange(len(points))
    for step, length in zip(steps[order] @ pitch, lengths[order]):  # the nearest first, so the first hit is the answer
        hit = flat[at[left] + step]
        found[left[hit]] = length
        left = left[~hit]
    return found
