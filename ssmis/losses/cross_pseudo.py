# SPDX-License-Identifier: Apache-2.0
"""Cross pseudo supervision: each network learns from what the other one predicts."""

from math import inf
from typing import Literal

from torch import Tensor, nn

from ssmis._checks import check_choice, check_class_maps, check_mask, check_range, check_same_shape
from ssmis._classes import top_class
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.losses._voxels import upcast
from ssmis.losses.cross_entropy import cross_entropy
from ssmis.registry import LOSSES, Example

Targets = Literal["hard", "soft"]


def pseudo_ce(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    targets: Targets = "hard",
    sharpen_temperature: float | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of the student with the teacher's pseudo-labels.

    Hard: $\ell_v = -\log p^s_{v,c}$ with $c = \arg\max_k z^t_{vk}$, the lowest class of a tie. Soft:
    $\ell_v = -\sum_k q_{vk} \log p^s_{vk}$ with $q = \mathrm{softmax}(z^t / T)$ over classes.

    Args:
        student_logits: `(B, K, *S)`, K >= 2. Receives gradient.
        teacher_logits: `(B, K, *S)`. Detached here.
        targets: "hard" or "soft".
        sharpen_temperature: T > 0 of soft targets; default 0.5, below 1 sharpens. Hard targets take none: it would have
            no effect.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" is over all voxels of the batch; "none" gives
            `(B, *S)`, zero outside the mask.

    Returns:
        A scalar, or `(B, *S)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, an option is unknown, or `sharpen_temperature` comes with hard
            targets or is not positive.

    Gradient: to `student_logits` only.
    Empty case: a volume without a voxel in the mask contributes an attached zero.
    Paper: Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021,
        arXiv 2106.01226. Differs from the paper: `mask`, soft targets, per volume first.
    """
    check_class_maps(student_logits=student_logits)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_mask(mask, student_logits, maps_name="student_logits")
    check_choice(targets, ("hard", "soft"), name="targets")
    teacher_logits = teacher_logits.detach()
    if targets == "hard":
        if sharpen_temperature is not None:
            raise ValueError(f"sharpen_temperature is {sharpen_temperature}; expected None with hard targets")
        return cross_entropy(student_logits, top_class(teacher_logits), mask=mask, reduction=reduction)
    temperature = 0.5 if sharpen_temperature is None else sharpen_temperature
    check_range(temperature, 0, inf, name="sharpen_temperature", open_low=True)
    soft = (upcast(teacher_logits) / temperature).softmax(1)
    return reduce_volumes(-(soft * upcast(student_logits).log_softmax(1)).sum(1), mask, reduction)


def cross_pseudo(
    first_logits: Tensor,
    second_logits: Tensor,
    *,
    targets: Targets = "hard",
    sharpen_temperature: float | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross pseudo supervision of two students: the sum of `pseudo_ce` in both directions.

    $\mathrm{pseudo\_ce}(z^1, z^2) + \mathrm{pseudo\_ce}(z^2, z^1)$. Arguments, reductions, errors and empty case are
    those of `pseudo_ce`.

    Gradient: to both logits; each is detached as the other's teacher.
    Paper: Chen et al., CVPR 2021, arXiv 2106.01226.
    """
    check_same_shape(first_logits=first_logits, second_logits=second_logits)
    one, two = (
        pseudo_ce(
            student,
            teacher,
            targets=targets,
            sharpen_temperature=sharpen_temperature,
            mask=mask,
            reduction=reduction,
        )
        for student, teacher in ((first_logits, second_logits), (second_logits, first_logits))
    )
    return one + two


@LOSSES.register(
    "pseudo_ce",
    example=Example(
        call={"student_logits": "logits", "teacher_logits": "logits", "mask": "mask"},
        student=("student_logits",),
        teacher=("teacher_logits",),
    ),
)
class PseudoCE(nn.Module):
    """Cross-entropy with a teacher's pseudo-labels; see `pseudo_ce`."""

    def __init__(
        self, *, targets: Targets = "hard", sharpen_temperature: float | None = None, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.targets = targets
        self.sharpen_temperature = sharpen_temperature
        self.reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return pseudo_ce(
            student_logits,
            teacher_logits,
            targets=self.targets,
            sharpen_temperature=self.sharpen_temperature,
            mask=mask,
            reduction=self.reduction,
        )


@LOSSES.register(
    "cross_pseudo",
    example=Example(
        call={"first_logits": "logits", "second_logits": "logits", "mask": "mask"},
        student=("first_logits", "second_logits"),
    ),
)
class CrossPseudo(nn.Module):
    """Cross pseudo supervision of two students; see `cross_pseudo`."""

    def __init__(
        self, *, targets: Targets = "hard", sharpen_temperature: float | None = None, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.targets = targets
        self.sharpen_temperature = sharpen_temperature
        self.reduction = reduction

    def forward(self, first_logits: Tensor, second_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return cross_pseudo(
            first_logits,
            second_logits,
            targets=self.targets,
            sharpen_temperature=self.sharpen_temperature,
            mask=mask,
            reduction=self.reduction,
        )
