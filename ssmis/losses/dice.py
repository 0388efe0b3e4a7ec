# SPDX-License-Identifier: Apache-2.0
"""Soft Dice loss from logits: of labels, and of a teacher's probabilities."""

from math import inf

from torch import Tensor, nn

from ssmis._checks import check_choice, check_class_maps, check_labels, check_mask, check_range, check_same_shape
from ssmis.losses._reduce import REDUCTIONS, Reduction, mean_or_zero
from ssmis.losses._voxels import class_sums, is_class, upcast, valid_voxels
from ssmis.registry import LOSSES, Example


def soft_dice(
    logits: Tensor,
    labels: Tensor,
    *,
    smooth: float = 1e-5,
    squared: bool = True,
    include_background: bool = False,
    ignore_index: int = -1,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Dice overlap of each volume and class.

    $1 - \frac{2 \sum_v p_{vk} y_{vk} + s}{\sum_v p_{vk}^2 + \sum_v y_{vk} + s}$ with $p = \mathrm{softmax}(z)$ over
    classes, $y_{vk} = [y_v = k]$ and $s$ = `smooth`; sums run over the valid voxels of a volume.

    Args:
        logits: `(B, K, *S)`, K >= 2.
        labels: integer `(B, *S)` in `[0, K)`, or `ignore_index`. That range is not checked, since it would wait for the
            device; here a label outside belongs to no class (`cross_entropy` raises for it).
        smooth: > 0, in numerator and denominator. A class absent from the labels costs
            $\sum p^2 / (\sum p^2 + s)$: 0 when the prediction leaves it out too, towards 1 as it claims more. A
            larger value forgives more false positives: 1.0 forgives about one voxel.
        squared: square the probabilities in the denominator; False gives $\sum_v p_{vk}$.
        include_background: let class 0 take part.
        ignore_index: label of voxels to leave out.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is over classes, then over volumes; "pooled" sums over the voxels of the whole batch before
            the division, then takes the mean over classes; "none" gives `(B, C)` for the C classes that take part.

    Returns:
        A scalar in [0, 1], or `(B, C)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, `smooth` is not positive or `reduction` is unknown.

    Gradient: to `logits`; exactly zero at voxels that are left out.
    Empty case: a volume without a valid voxel contributes an attached zero, and so does a class absent from both.
    Paper: Milletari et al., V-Net, 3DV 2016, arXiv 1606.04797.
        Differs from the paper: several classes, background left out by default, `smooth`.
    """
    check_class_maps(logits=logits)
    check_labels(labels, logits)
    check_mask(mask, logits)
    check_range(smooth, 0, inf, name="smooth", open_low=True)
    check_choice(reduction, REDUCTIONS, name="reduction")
    first = 0 if include_background else 1
    valid = valid_voxels(labels, ignore_index, mask).unsqueeze(1)
    truth = is_class(labels, range(first, logits.shape[1])) & valid  # (B, C, *S)
    probs = upcast(logits).softmax(1)[:, first:]

    overlap = class_sums(probs.where(truth, 0), reduction)
    claimed = class_sums((probs.square() if squared else probs).where(valid, 0), reduction)
    size = class_sums(truth, reduction)
    return _missing(overlap, claimed + size, smooth, reduction)


def dice_consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    smooth: float = 1e-5,
    include_background: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Dice overlap of a student's probabilities with a teacher's.

    $1 - \frac{2 \sum_v p^s_{vk} p^t_{vk} + s}{\sum_v (p^s_{vk})^2 + \sum_v (p^t_{vk})^2 + s}$ with
    $p = \mathrm{softmax}(z)$ over classes and $s$ = `smooth`. It is 0 where both agree and nowhere else; the overlap
    with hard pseudo-labels rewards more certainty than the teacher has, and drops thin structures that it half sees.

    Args:
        student_logits: `(B, K, *S)`, K >= 2. Receives gradient.
        teacher_logits: `(B, K, *S)`. Detached here.
        smooth: > 0, in numerator and denominator; see `soft_dice`.
        include_background: let class 0 take part.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: as in `soft_dice`.

    Returns:
        A scalar in [0, 1], or `(B, C)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, `smooth` is not positive or `reduction` is unknown.

    Gradient: to `student_logits` only; exactly zero at voxels that are left out.
    Empty case: a volume without a voxel in the mask contributes an attached zero.
    Paper: Milletari et al., V-Net, 3DV 2016, arXiv 1606.04797, for the overlap. Differs from the paper: a teacher's
        probabilities take the place of labels.
    """
    check_class_maps(student_logits=student_logits)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_mask(mask, student_logits, maps_name="student_logits")
    check_range(smooth, 0, inf, name="smooth", open_low=True)
    check_choice(reduction, REDUCTIONS, name="reduction")
    first = 0 if include_background else 1
    student, teacher = (upcast(z).softmax(1)[:, first:] for z in (student_logits, teacher_logits.detach()))
    if mask is not None:
        student, teacher = (probs.where(mask.unsqueeze(1), 0) for probs in (student, teacher))
    overlap = class_sums(student * teacher, reduction)
    total = class_sums(student.square() + teacher.square(), reduction)
    return _missing(overlap, total, smooth, reduction)


def _missing(overlap: Tensor, total: Tensor, smooth: float, reduction: Reduction) -> Tensor:
    """What is missing to a full overlap, of sums `(B, C)`."""
    loss = 1 - (2 * overlap + smooth) / (total + smooth)
    return loss if reduction == "none" else mean_or_zero(loss)


@LOSSES.register(
    "soft_dice",
    example=Example(call={"logits": "logits", "labels": "labels", "mask": "mask"}, student=("logits",)),
)
class SoftDice(nn.Module):
    """One minus the soft Dice overlap; see `soft_dice`."""

    def __init__(
        self,
        *,
        smooth: float = 1e-5,
        squared: bool = True,
        include_background: bool = False,
        ignore_index: int = -1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.squared = squared
        self.include_background = include_background
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return soft_dice(
            logits,
            labels,
            smooth=self.smooth,
            squared=self.squared,
            include_background=self.include_background,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )


@LOSSES.register(
    "dice_consistency",
    example=Example(
        call={"student_logits": "logits", "teacher_logits": "logits", "mask": "mask"},
        student=("student_logits",),
        teacher=("teacher_logits",),
    ),
)
class DiceConsistency(nn.Module):
    """One minus the soft Dice overlap with a teacher's probabilities; see `dice_consistency`."""

    def __init__(
        self, *, smooth: float = 1e-5, include_background: bool = False, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.include_background = include_background
        self.reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return dice_consistency(
            student_logits,
            teacher_logits,
            smooth=self.smooth,
            include_background=self.include_background,
            mask=mask,
            reduction=self.reduction,
        )
