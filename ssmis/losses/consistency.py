# SPDX-License-Identifier: Apache-2.0
"""Consistency of a student's class probabilities with a teacher's, in four distances."""

from math import inf

import torch
from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_mask, check_range, check_same_shape
from ssmis._classes import top_class
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.losses._voxels import upcast
from ssmis.registry import LOSSES, Example
from ssmis.uncertainty import kl_divergence

_PAIR = Example(
    call={"student_logits": "logits", "teacher_logits": "logits", "mask": "mask"},
    student=("student_logits",),
    teacher=("teacher_logits",),
)


def mse_consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Mean squared difference of class probabilities.

    $\ell_v = \frac{1}{K} \sum_k (p^s_{vk} - p^t_{vk})^2$ with $p = \mathrm{softmax}(z / T)$ over classes.

    Args:
        student_logits: `(B, K, *S)`, K >= 2. Receives gradient.
        teacher_logits: `(B, K, *S)`. Detached here.
        temperature: T > 0 of both softmax maps.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" is over all voxels of the batch; "none" gives
            `(B, *S)`, zero outside the mask.

    Returns:
        A scalar, or `(B, *S)` with "none", in [0, 2 / K]; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, `temperature` is not positive or `reduction` is unknown.

    Gradient: to `student_logits` only.
    Empty case: a volume without a voxel in the mask contributes an attached zero.
    Paper: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv 1703.01780.
    """
    student, teacher = _tempered(student_logits, teacher_logits, temperature, mask)
    return reduce_volumes((student.softmax(1) - teacher.softmax(1)).square().mean(1), mask, reduction)


def kl_consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Kullback-Leibler divergence of the student from the teacher, in nats.

    $\ell_v = \sum_k p^t_{vk} (\log p^t_{vk} - \log p^s_{vk})$ with $p = \mathrm{softmax}(z / T)$ over classes. There is
    no factor $T^2$. Arguments, errors and empty case are those of `mse_consistency`; at least 0 up to rounding.

    Gradient: to `student_logits` only.
    Paper: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
    """
    student, teacher = _tempered(student_logits, teacher_logits, temperature, mask)
    return reduce_volumes(kl_divergence(teacher, student), mask, reduction)


def cosine_consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the cosine of the angle between the two class distributions of a voxel.

    $\ell_v = 1 - \frac{\sum_k p^s_{vk} p^t_{vk}}{\|p^s_v\| \|p^t_v\|}$ with $p = \mathrm{softmax}(z / T)$ over classes;
    the norms are at least $K^{-1/2}$, so no constant guards the division. Arguments, errors and empty case are those of
    `mse_consistency`; in [0, 1] up to rounding.

    Gradient: to `student_logits` only.
    """
    student, teacher = _tempered(student_logits, teacher_logits, temperature, mask)
    p, q = student.softmax(1), teacher.softmax(1)
    cosine = (p * q).sum(1) / (p.square().sum(1) * q.square().sum(1)).sqrt()
    return reduce_volumes(1 - cosine, mask, reduction)


def bce_consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Binary cross-entropy of each class probability with the teacher's.

    $\ell_v = -\frac{1}{K} \sum_k \bigl[p^t_{vk} \log p^s_{vk} + (1 - p^t_{vk}) \log (1 - p^s_{vk})\bigr]$ with
    $p = \mathrm{softmax}(z / T)$ over classes, finite for any finite logits. Arguments, errors and empty case are those
    of `mse_consistency`. Its least value is the binary entropy of the teacher, not 0.

    Gradient: to `student_logits` only.
    Paper: the cross-subnet term of Huang et al., IEEE TIP 2025, arXiv 2508.09014. Differs from the public code: all
        classes, and with gradient.
    """
    student, teacher = _tempered(student_logits, teacher_logits, temperature, mask)
    log_p, q = student.log_softmax(1), teacher.softmax(1)
    log_rest = log_complement(log_p)
    return reduce_volumes(-(q * log_p + (1 - q) * log_rest).mean(1), mask, reduction)


def log_complement(log_p: Tensor) -> Tensor:
    """Return `log(1 - p)` of log-probabilities `(B, K, *S)` over K >= 2 classes, finite where p rounds to 1."""
    largest = top_class(log_p).unsqueeze(1)
    top = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, largest, True)
    rest = log_p.masked_fill(top, -inf).logsumexp(1, keepdim=True)  # of the largest: the sum of all others
    return torch.where(top, rest, torch.log1p(-log_p.masked_fill(top, -1).exp()))


def _tempered(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    check_class_maps(student_logits=student_logits)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_mask(mask, student_logits, maps_name="student_logits")
    check_range(temperature, 0, inf, name="temperature", open_low=True)
    return upcast(student_logits) / temperature, upcast(teacher_logits.detach()) / temperature


class _Consistency(nn.Module):
    def __init__(self, *, temperature: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction


@LOSSES.register("mse_consistency", example=_PAIR)
class MSEConsistency(_Consistency):
    """Mean squared difference of class probabilities; see `mse_consistency`."""

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return mse_consistency(
            student_logits, teacher_logits, temperature=self.temperature, mask=mask, reduction=self.reduction
        )


@LOSSES.register("kl_consistency", example=_PAIR)
class KLConsistency(_Consistency):
    """Kullback-Leibler divergence of a student from its teacher; see `kl_consistency`."""

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return kl_consistency(
            student_logits, teacher_logits, temperature=self.temperature, mask=mask, reduction=self.reduction
        )


@LOSSES.register("cosine_consistency", example=_PAIR)
class CosineConsistency(_Consistency):
    """One minus the cosine between two class distributions; see `cosine_consistency`."""

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return cosine_consistency(
            student_logits, teacher_logits, temperature=self.temperature, mask=mask, reduction=self.reduction
        )


@LOSSES.register("bce_consistency", example=_PAIR)
class BCEConsistency(_Consistency):
    """Binary cross-entropy of class probabilities with a teacher's; see `bce_consistency`."""

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return bce_consistency(
            student_logits, teacher_logits, temperature=self.temperature, mask=mask, reduction=self.reduction
        )
