# SPDX-License-Identifier: Apache-2.0
"""Pseudo-supervision by the voxels the teacher is surest of."""

from typing import Literal

from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_mask, check_same_shape
from ssmis.losses._reduce import Reduction
from ssmis.losses.cross_pseudo import pseudo_ce
from ssmis.registry import LOSSES, Example
from ssmis.uncertainty import lowest_entropy

Scope = Literal["volume", "batch", "class"]


def entropy_filtered_ce(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    keep_fraction: float = 0.5,
    scope: Scope = "volume",
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy with the teacher's hard pseudo-labels at its voxels of lowest entropy.

    $\frac{1}{|R|} \sum_{v \in R} -\log p^s_{v, c_v}$ with $c_v = \arg\max_k p^t_{vk}$ and R the
    $\max(1, \lfloor q n + 1/2 \rfloor)$ of n valid voxels with the lowest entropy of $p^t$, ties broken by index.
    Voxels outside R are ignored; they never count as background.

    Args:
        student_logits: `(B, K, *S)`, K >= 2. Receives gradient.
        teacher_logits: `(B, K, *S)`. Detached here.
        keep_fraction: q in [0, 1]; 1 is `pseudo_ce` on all valid voxels.
        scope: what is ranked together: the valid voxels of a "volume", those of a volume with the same pseudo-label
            ("class", so that a rare class keeps its share), or those of the "batch".
        valid: bool `(B, *S)`; voxels outside take no part in the ranking and are left out.
        reduction: "mean" is over the kept voxels of each volume, then over volumes; "pooled" is over all kept voxels of
            the batch; "none" gives `(B, *S)`, zero where a voxel is not kept.

    Returns:
        A scalar, or `(B, *S)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, `keep_fraction` is outside [0, 1] or an option is unknown.

    Gradient: to `student_logits` only; exactly zero at voxels that are not kept.
    Empty case: a volume without a kept voxel contributes an attached zero.
    Paper: Lu et al., KBS 2025, arXiv 2509.13084; the filter is that of U2PL, Wang et al., CVPR 2022, arXiv 2203.03884.
        Differs from them: by rank instead of a percentile threshold, the teacher's own voxels and labels only.
    """
    check_class_maps(student_logits=student_logits)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_mask(valid, student_logits, name="valid", maps_name="student_logits")
    keep = lowest_entropy(teacher_logits, keep_fraction, scope=scope, valid=valid)
    return pseudo_ce(student_logits, teacher_logits, mask=keep, reduction=reduction)


@LOSSES.register(
    "entropy_filtered_ce",
    example=Example(
        call={"student_logits": "logits", "teacher_logits": "logits", "valid": "mask"},
        student=("student_logits",),
        teacher=("teacher_logits",),
    ),
)
class EntropyFilteredCE(nn.Module):
    """Cross-entropy with the pseudo-labels a teacher is surest of; see `entropy_filtered_ce`."""

    def __init__(self, *, keep_fraction: float = 0.5, scope: Scope = "volume", reduction: Reduction = "mean") -> None:
        super().__init__()
        self.keep_fraction = keep_fraction
        self.scope = scope
        self.reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return entropy_filtered_ce(
            student_logits,
            teacher_logits,
            keep_fraction=self.keep_fraction,
            scope=self.scope,
            valid=valid,
            reduction=self.reduction,
        )
