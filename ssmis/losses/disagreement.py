# SPDX-License-Identifier: Apache-2.0
"""Extra supervision where exactly one of two networks is confident."""

from torch import Tensor, nn

from ssmis._checks import check_choice, check_class_maps, check_labels, check_mask, check_range, check_same_shape
from ssmis.losses._reduce import REDUCTIONS, Reduction, mean_or_zero
from ssmis.losses._voxels import class_sums, is_class, upcast, valid_voxels
from ssmis.registry import LOSSES, Example


def confidence_disagreement(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.6,
    ignore_index: int = -1,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared error of the student's foreground probabilities where exactly one network is confident.

    $\frac{1}{K-1} \sum_{k \ge 1} \frac{1}{|M_k|} \sum_{v \in M_k} (p^s_{vk} - y_{vk})^2$ with
    $M_k = \{v : [p^s_{vk} \ge \tau] \ne [p^t_{vk} \ge \tau]\}$, probabilities by softmax, $y_{vk} = [y_v = k]$.

    Args:
        student_logits: `(B, K, *S)`, K >= 2. Receives gradient.
        teacher_logits: `(B, K, *S)`, the peer. Detached here.
        labels: integer `(B, *S)` in `[0, K)`, or `ignore_index`. That range is not checked, since it would wait for the
            device; here a label outside belongs to no class (`cross_entropy` raises for it).
        threshold: confidence $\tau$ in [0, 1].
        ignore_index: label of voxels to leave out.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is over the voxels of each volume and class, then over classes and volumes; "pooled" is over
            the voxels of the batch, then over classes; "none" gives `(B, K - 1)`, one value per volume and class.

    Returns:
        A scalar in [0, 1], or `(B, K - 1)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, `threshold` is outside [0, 1] or `reduction` is unknown.

    Gradient: to `student_logits`, through the probabilities and not through the choice of voxels.
    Empty case: a class without such a voxel contributes an attached zero to the mean.
    Paper: used with dual networks by Lu et al., KBS 2025, arXiv 2509.13084; the form follows the group's public code.
        Differs from it: per volume first, and either network may be the student.
    """
    check_class_maps(student_logits=student_logits)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_labels(labels, student_logits, maps_name="student_logits")
    check_mask(mask, student_logits, maps_name="student_logits")
    check_range(threshold, 0, 1, name="threshold")
    check_choice(reduction, REDUCTIONS, name="reduction")
    probs = upcast(student_logits).softmax(1)[:, 1:]  # (B, K - 1, *S)
    peer = upcast(teacher_logits.detach()).softmax(1)[:, 1:]
    chosen = (probs.detach() >= threshold) ^ (peer >= threshold)
    chosen = chosen & valid_voxels(labels, ignore_index, mask).unsqueeze(1)
    error = (probs - is_class(labels, range(1, student_logits.shape[1])).to(probs.dtype)).square()

    loss = class_sums(error.where(chosen, 0), reduction) / class_sums(chosen, reduction).clamp_min(1)
    return loss if reduction == "none" else mean_or_zero(loss)


@LOSSES.register(
    "confidence_disagreement",
    example=Example(
        call={"student_logits": "logits", "teacher_logits": "logits", "labels": "labels", "mask": "mask"},
        student=("student_logits",),
        teacher=("teacher_logits",),
    ),
)
class ConfidenceDisagreement(nn.Module):
    """Squared error where exactly one of two networks is confident; see `confidence_disagreement`."""

    def __init__(self, *, threshold: float = 0.6, ignore_index: int = -1, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.threshold = threshold
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss."""
        return confidence_disagreement(
            student_logits,
            teacher_logits,
            labels,
            threshold=self.threshold,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )
