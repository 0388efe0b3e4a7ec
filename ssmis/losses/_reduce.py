# SPDX-License-Identifier: Apache-2.0
"""How losses reduce: over the voxels of each volume first, then over volumes, so that sharding changes nothing."""

from typing import Literal

from torch import Tensor

from ssmis._checks import check_choice

Reduction = Literal["mean", "pooled", "none"]
REDUCTIONS = ("mean", "pooled", "none")


def reduce_volumes(values: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce voxel values `(B, *S)` over the voxels where `mask` is true.

    Args:
        values: `(B, *S)`.
        mask: bool `(B, *S)`; None is all voxels. A volume without a voxel contributes an attached zero, and a batch
            without a volume is one.
        reduction: "mean" is the mean over each volume's voxels, then over volumes; "pooled" is one mean over all voxels
            of the batch (its value depends on how a batch is spread over processes); "none" returns `(B, *S)`,
            zero outside the mask.
    """
    check_choice(reduction, REDUCTIONS, name="reduction")
    if mask is not None:
        values = values.where(mask, 0)  # `where`, not a product: 0 * inf is NaN
    if reduction == "none":
        return values
    if values.numel() == 0:
        return values.sum()
    if reduction == "pooled":
        count = values.numel() if mask is None else mask.sum().clamp_min(1)
        return values.sum() / count
    if mask is None:
        return values.flatten(1).mean(1).mean()
    return (values.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)).mean()


def mean_or_zero(values: Tensor) -> Tensor:
    """Mean of all values; of no values, as a batch without volumes has, an attached zero instead of NaN."""
    return values.mean() if values.numel() > 0 else values.sum()
