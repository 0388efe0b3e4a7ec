# SPDX-License-Identifier: Apache-2.0
"""Pseudo-supervision weighted by how much two networks disagree."""

from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_mask, check_same_shape
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.losses.cross_pseudo import Targets, pseudo_ce
from ssmis.registry import LOSSES, Example
from ssmis.uncertainty import kl_divergence


def kl_rectified_ce(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    detach_weight: bool | None = None,
    targets: Targets = "hard",
    sharpen_temperature: float | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy with the teacher's pseudo-labels, damped where the networks disagree.

    $\ell_v = e^{-D_v}\,\mathrm{CE}_v + D_v$ with $D_v = \mathrm{KL}(p^t_v \| p^s_v)$ over classes and
    $\mathrm{CE}_v$ of `pseudo_ce`.

    Args:
        student_logits: `(B, K, *S)`, K >= 2. Receives gradient.
        teacher_logits: `(B, K, *S)`. Detached here.
        detach_weight: treat $e^{-D}$ as a constant. While attached, raising D at the same CE pays where
            $e^{-D}\,\mathrm{CE} > 1$, which needs an unsure teacher and more than two classes (CE is up to $\log K$
            at agreement), so the default is to detach for K > 4 only.
        targets: "hard" or "soft" pseudo-labels, see `pseudo_ce`.
        sharpen_temperature: of soft targets, see `pseudo_ce`; D is never sharpened.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" is over all voxels of the batch; "none" gives
            `(B, *S)`, zero outside the mask.

    Returns:
        A scalar, or `(B, *S)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, or an option is not accepted, see `pseudo_ce`.

    Gradient: to `student_logits` only, through CE, D and, unless detached, the weight.
    Empty case: a volume without a voxel in the mask contributes an attached zero.
    Paper: Zheng and Yang, "Rectifying Pseudo Label Learning via Uncertainty Estimation for Domain Adaptive Semantic
        Segmentation", IJCV 2021, arXiv 2003.03773; used with dual networks by Lu et al., KBS 2025, arXiv 2509.13084.
        Differs from them: D is between two networks instead of two heads of one; symmetric use is the caller's;
        `detach_weight`; soft targets.
    """
    check_class_maps(student_logits=student_logits)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_mask(mask, student_logits, maps_name="student_logits")
    ce = pseudo_ce(
        student_logits, teacher_logits, targets=targets, sharpen_temperature=sharpen_temperature, reduction="none"
    )
    divergence = kl_divergence(teacher_logits.detach(), student_logits)  # (B, *S)
    weight = (-divergence).exp()
    if detach_weight or (detach_weight is None and student_logits.shape[1] > 4):
        weight = weight.detach()
    return reduce_volumes(weight * ce + divergence, mask, reduction)


@LOSSES.register(
    "kl_rectified_ce",
    example=Example(
        call={"student_logits": "logits", "teacher_logits": "logits", "mask": "mask"},
        student=("student_logits",),
        teacher=("teacher_logits",),
    ),
)
class KLRectifiedCE(nn.Module):
    """Cross-entropy with pseudo-labels, damped where two networks disagree; see `kl_rectified_ce`."""

    def __init__(
        self,
        *,
        detach_weight: bool | None = None,
        targets: Targets = "hard",
        sharpen_temperature: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.detach_weight = detach_weight
        self.targets = targets
        self.sharpen_temperature = sharpen_temperature
        self.reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return kl_rectified_ce(
            student_logits,
            teacher_logits,
            detach_weight=self.detach_weight,
            targets=self.targets,
            sharpen_temperature=self.sharpen_temperature,
            mask=mask,
            reduction=self.reduction,
        )
