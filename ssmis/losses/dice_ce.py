# SPDX-License-Identifier: Apache-2.0
"""Soft Dice plus cross-entropy, the usual supervised loss of segmentation."""

from math import inf

from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_labels, check_mask, check_range
from ssmis.losses._reduce import Reduction
from ssmis.losses._voxels import upcast, valid_voxels
from ssmis.losses.cross_entropy import cross_entropy
from ssmis.losses.dice import soft_dice
from ssmis.registry import LOSSES, Example


def dice_ce(
    logits: Tensor,
    labels: Tensor,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    smooth: float = 1e-5,
    squared: bool = True,
    include_background: bool = False,
    ignore_index: int = -1,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Weighted sum of `soft_dice` and `cross_entropy`.

    $\lambda_D\,\mathrm{SoftDice}(z, y) + \lambda_C\,\mathrm{CE}(z, y)$, each per volume first.

    Args:
        logits: `(B, K, *S)`, K >= 2.
        labels: integer `(B, *S)` in `[0, K)`, or `ignore_index`. That range is not checked, since it would wait for the
            device: a label outside raises on the CPU and is a device-side assertion on a GPU.
        dice_weight: weight of the Dice part, >= 0.
        ce_weight: weight of the cross-entropy part, >= 0.
        smooth: see `soft_dice`.
        squared: see `soft_dice`.
        include_background: see `soft_dice`; class 0 always takes part in the cross-entropy.
        ignore_index: label of voxels to leave out.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" pools each part over the batch; "none" gives
            `(B,)`, one value per volume, since that is the finest both parts have in common.

    Returns:
        A scalar, or `(B,)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, a weight is negative or `reduction` is unknown.

    Gradient: to `logits`; exactly zero at voxels that are left out.
    Empty case: a volume without a valid voxel contributes an attached zero.
    """
    check_class_maps(logits=logits)
    check_labels(labels, logits)
    check_mask(mask, logits)
    check_range(dice_weight, 0, inf, name="dice_weight")
    check_range(ce_weight, 0, inf, name="ce_weight")
    logits = upcast(logits)  # once for both parts
    dice = soft_dice(
        logits,
        labels,
        smooth=smooth,
        squared=squared,
        include_background=include_background,
        ignore_index=ignore_index,
        mask=mask,
        reduction=reduction,
    )
    ce = cross_entropy(logits, labels, ignore_index=ignore_index, mask=mask, reduction=reduction)
    if reduction == "none":  # (B, C) and (B, *S) to (B,)
        count = valid_voxels(labels, ignore_index, mask).flatten(1).sum(1).clamp_min(1)
        dice, ce = dice.mean(1), ce.flatten(1).sum(1) / count
    return dice_weight * dice + ce_weight * ce


@LOSSES.register(
    "dice_ce",
    example=Example(call={"logits": "logits", "labels": "labels", "mask": "mask"}, student=("logits",)),
)
class DiceCE(nn.Module):
    """Soft Dice plus cross-entropy; see `dice_ce`."""

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        smooth: float = 1e-5,
        squared: bool = True,
        include_background: bool = False,
        ignore_index: int = -1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.smooth = smooth
        self.squared = squared
        self.include_background = include_background
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return dice_ce(
            logits,
            labels,
            dice_weight=self.dice_weight,
            ce_weight=self.ce_weight,
            smooth=self.smooth,
            squared=self.squared,
            include_background=self.include_background,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )
