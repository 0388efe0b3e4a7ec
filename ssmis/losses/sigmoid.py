# SPDX-License-Identifier: Apache-2.0
"""Dice plus binary cross-entropy of independent sigmoid maps, one a class."""

from math import inf

from torch import Tensor, nn
from torch.nn import functional as F

from ssmis._checks import check_choice, check_class_maps, check_labels, check_mask, check_range
from ssmis.losses._reduce import REDUCTIONS, Reduction, mean_or_zero
from ssmis.losses._voxels import class_sums, is_class, upcast, valid_voxels
from ssmis.registry import LOSSES, Example


def sigmoid_dice_bce(
    logits: Tensor,
    labels: Tensor,
    *,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    smooth: float = 1e-5,
    per_slice: bool = False,
    ignore_index: int = -1,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Binary cross-entropy and soft Dice of each class by itself, background included.

    $\frac{\lambda_B}{K} \sum_k \frac{1}{V} \sum_v \mathrm{BCE}(\sigma(z_{vk}), y_{vk})
    + \frac{\lambda_D}{K} \sum_k \Bigl(1 - \frac{2 \sum_v p_{vk} y_{vk} + s}{\sum_v p_{vk} + \sum_v y_{vk} + s}\Bigr)$
    with $p = \sigma(z)$, $y_{vk} = [y_v = k]$, $s$ = `smooth` and sums over the valid voxels. The classes do not
    compete: prefer `dice_ce` unless a published method asks for this form.

    Args:
        logits: `(B, K, *S)`, K >= 2.
        labels: integer `(B, *S)` in `[0, K)`, or `ignore_index`.
        dice_weight: weight of the Dice part, >= 0.
        bce_weight: weight of the cross-entropy part, >= 0.
        smooth: > 0, in numerator and denominator.
        per_slice: compute the Dice of each slice of the last two axes by itself and take the mean over slices.
        ignore_index: label of voxels to leave out.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" pools both parts over the batch, slice by slice
            with `per_slice`; "none" gives `(B, K)`.

    Returns:
        A scalar, or `(B, K)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, a weight is negative, `smooth` is not positive or `reduction` is
            unknown.

    Gradient: to `logits`; exactly zero at voxels that are left out.
    Empty case: a volume without a valid voxel contributes an attached zero, and so does such a slice.
    Paper: the segmentation loss in the public code of Huang et al., IEEE TIP 2025, arXiv 2508.09014 (`per_slice`).
        Differs from it: per volume first, `smooth`.
    """
    check_class_maps(logits=logits)
    check_labels(labels, logits)
    check_mask(mask, logits)
    check_range(dice_weight, 0, inf, name="dice_weight")
    check_range(bce_weight, 0, inf, name="bce_weight")
    check_range(smooth, 0, inf, name="smooth", open_low=True)
    check_choice(reduction, REDUCTIONS, name="reduction")
    z = upcast(logits)
    valid = valid_voxels(labels, ignore_index, mask).unsqueeze(1)
    truth = is_class(labels, range(logits.shape[1])) & valid  # (B, K, *S)
    bce = F.binary_cross_entropy_with_logits(z, truth.to(z.dtype), reduction="none").where(valid, 0)
    bce = class_sums(bce, reduction) / class_sums(valid, reduction).clamp_min(1)

    probs = z.sigmoid()
    parts = probs.where(truth, 0), probs.where(valid, 0), truth.to(z.dtype)
    if per_slice and z.ndim > 4:  # (B, K, *S) to (B, K, slices) of sums
        overlap, claimed, size = (part.flatten(-2).sum(-1).flatten(2) for part in parts)
        if reduction == "pooled":
            overlap, claimed, size = (part.sum(0, keepdim=True) for part in (overlap, claimed, size))
    else:
        overlap, claimed, size = (class_sums(part, reduction).unsqueeze(2) for part in parts)
    dice = (1 - (2 * overlap + smooth) / (claimed + size + smooth)).mean(2)
    loss = dice_weight * dice + bce_weight * bce
    return loss if reduction == "none" else mean_or_zero(loss)


@LOSSES.register(
    "sigmoid_dice_bce",
    example=Example(call={"logits": "logits", "labels": "labels", "mask": "mask"}, student=("logits",)),
)
class SigmoidDiceBCE(nn.Module):
    """Soft Dice plus binary cross-entropy of sigmoid maps; see `sigmoid_dice_bce`."""

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        smooth: float = 1e-5,
        per_slice: bool = False,
        ignore_index: int = -1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.smooth = smooth
        self.per_slice = per_slice
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return sigmoid_dice_bce(
            logits,
            labels,
            dice_weight=self.dice_weight,
            bce_weight=self.bce_weight,
            smooth=self.smooth,
            per_slice=self.per_slice,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )
