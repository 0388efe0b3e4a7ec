# SPDX-License-Identifier: Apache-2.0
"""Calibration of evidence: certain where the prediction is right, uncertain where it is wrong."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmis._checks import check_class_maps, check_labels, check_mask, check_range
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.losses._voxels import upcast, valid_voxels
from ssmis.registry import LOSSES, Example
from ssmis.uncertainty import log_vacuity


def evidential_calibration(
    logits: Tensor,
    labels: Tensor,
    *,
    right_weight: float = 0.5,
    ignore_index: int = -1,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Accuracy versus uncertainty of evidence on labelled voxels.

    $\ell_v = -\lambda [c_v = y_v]\, \hat p_v \log (1 - u_v) - (1 - \lambda) [c_v \ne y_v]\, (1 - \hat p_v) \log u_v$
    with evidence $e = \mathrm{softplus}(z)$, $\alpha = e + 1$, $S = \sum_k \alpha_k$, vacuity $u = K / S$,
    $\hat p = \max_k \alpha_k / S$ and $c = \arg\max_k \alpha_k$.

    Args:
        logits: `(B, K, *S)`, K >= 2.
        labels: integer `(B, *S)` in `[0, K)`, or `ignore_index`.
        right_weight: $\lambda$ in [0, 1], of the voxels that are right. The paper's rises as `exponential_ramp`: early
            in training errors have to become uncertain, later what is right has to become certain.
        ignore_index: label of voxels to leave out.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" is over all voxels of the batch; "none" gives
            `(B, *S)`, zero where a voxel is left out.

    Returns:
        A scalar >= 0, or `(B, *S)` with "none"; finite for any finite logits; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, `right_weight` is outside [0, 1] or `reduction` is unknown.

    Gradient: to `logits`, through $u$ and $\hat p$ and not through the choice of the class.
    Empty case: a volume without a valid voxel contributes an attached zero.
    Paper: Huang et al., "Uncertainty-aware Cross-training", IEEE TIP 2025, arXiv 2508.09014; accuracy versus
        uncertainty is due to Krishnan and Tickoo, NeurIPS 2020, arXiv 2012.07923. The form follows the authors' public
        code. Differs from it: the logarithms come from log-odds of evidence and stay finite.
    """
    check_class_maps(logits=logits)
    check_labels(labels, logits)
    check_mask(mask, logits)
    check_range(right_weight, 0, 1, name="right_weight")
    log_u, log_certain = log_vacuity(logits)
    top, guess = upcast(logits).max(1)
    # alpha / S in logarithms: S overflows before its logarithm does
    confidence = (torch.log1p(F.softplus(top)) - math.log(logits.shape[1]) + log_u).exp().clamp_max(1)
    right = -right_weight * confidence * log_certain
    wrong = -(1 - right_weight) * (1 - confidence) * log_u
    valid = valid_voxels(labels, ignore_index, mask)
    return reduce_volumes(torch.where(guess == labels, right, wrong), valid, reduction)


@LOSSES.register(
    "evidential_calibration",
    example=Example(call={"logits": "logits", "labels": "labels", "mask": "mask"}, student=("logits",)),
)
class EvidentialCalibration(nn.Module):
    """Accuracy versus uncertainty of evidence; see `evidential_calibration`."""

    def __init__(self, *, right_weight: float = 0.5, ignore_index: int = -1, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.right_weight = right_weight
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return evidential_calibration(
            logits,
            labels,
            right_weight=self.right_weight,
            ignore_index=self.ignore_index,
            mask=mask,
            reduction=self.reduction,
        )
