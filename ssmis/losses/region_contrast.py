# SPDX-License-Identifier: Apache-2.0
"""Contrast of the same region in the features of two networks."""

from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmis._checks import check_range, check_same_shape
from ssmis._vectors import direction
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.losses._voxels import upcast
from ssmis.registry import LOSSES, Example


def region_contrast(
    first_features: Tensor,
    second_features: Tensor,
    *,
    cells: int = 3,
    temperature: float = 0.3,
    normalize: bool = True,
    symmetric: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""InfoNCE of cell averages: the same cell of the other network is the positive, its other cells are negatives.

    $\ell_i = -\log \frac{e^{s(a_i, b_i) / \tau}}{\sum_j e^{s(a_i, b_j) / \tau}}$ with $a$, $b$ the means of both
    networks' features over a grid of `cells` cells along each axis and s the cosine, or the inner product; with
    `symmetric` the mean of this and of the same with the networks exchanged.

    Args:
        first_features: `(B, E, *S)` with 1 to 3 spatial axes.
        second_features: `(B, E, *S)`, of the same volumes.
        cells: along each axis; an axis shorter than that has overlapping cells.
        temperature: $\tau$ > 0.
        normalize: cosine of the cells, else their inner product.
        symmetric: both networks ask, else only the first one.
        reduction: "mean" and "pooled" are over all cells and volumes; "none" gives `(B, cells, ...)`.

    Returns:
        A scalar >= 0, or `(B, cells, ...)` with "none"; float32, or float64 for float64 features.

    Raises:
        ValueError: shapes or dtypes do not match, `cells` < 1, `temperature` is not positive or `reduction` is unknown.

    Gradient: to both features, also where `symmetric` is false.
    Empty case: no volume gives an attached zero; so does a single cell, which has no negative.
    Paper: the inter-network consistency of Huang et al., IEEE TIP 2025, arXiv 2508.09014; the form follows the authors'
        public code. Differs from it: cosines, and both networks ask.
    """
    check_same_shape(first_features=first_features, second_features=second_features)
    for name, features in (("first_features", first_features), ("second_features", second_features)):
        if not 3 <= features.ndim <= 5 or not features.is_floating_point():
            raise ValueError(
                f"{name} is {features.dtype} of shape {tuple(features.shape)}; "
                "expected floating point (B, E, *S) with 1 to 3 spatial axes"
            )
    if cells < 1:
        raise ValueError(f"cells is {cells}; expected at least 1")
    check_range(temperature, 0, inf, name="temperature", open_low=True)
    dims = first_features.ndim - 2
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 1]
    with torch.autocast(first_features.device.type, enabled=False):
        pooled = (pool(upcast(features), cells).flatten(2) for features in (first_features, second_features))
        first, second = (direction(cell, 1) if normalize else cell for cell in pooled)  # (B, E, cells^dims)
        likeness = first.transpose(1, 2) @ second / temperature
        loss = -likeness.log_softmax(2).diagonal(dim1=1, dim2=2)
        if symmetric:
            loss = (loss - likeness.log_softmax(1).diagonal(dim1=1, dim2=2)) / 2
    return reduce_volumes(loss.unflatten(1, (cells,) * dims), None, reduction)


@LOSSES.register(
    "region_contrast",
    example=Example(
        call={"first_features": "features", "second_features": "features"},
        student=("first_features", "second_features"),
    ),
)
class RegionContrast(nn.Module):
    """InfoNCE of the same region in two networks; see `region_contrast`."""

    def __init__(
        self,
        *,
        cells: int = 3,
        temperature: float = 0.3,
        normalize: bool = True,
        symmetric: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.cells = cells
        self.temperature = temperature
        self.normalize = normalize
        self.symmetric = symmetric
        self.reduction = reduction

    def forward(self, first_features: Tensor, second_features: Tensor) -> Tensor:
        """Compute the loss."""
        return region_contrast(
            first_features,
            second_features,
            cells=self.cells,
            temperature=self.temperature,
            normalize=self.normalize,
            symmetric=self.symmetric,
            reduction=self.reduction,
        )
