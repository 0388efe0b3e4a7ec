# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy against labels, per volume first."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_labels, check_mask
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.losses._voxels import upcast, valid_voxels
from ssmis.registry import LOSSES, Example


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -1,
    class_weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of voxels with their labels.

    $\ell_v = -w_{y_v} \log p_{v, y_v}$ with $p = \mathrm{softmax}(z)$ over classes.

    Args:
        logits: `(B, K, *S)`, K >= 2.
        labels: integer `(B, *S)` in `[0, K)`, or `ignore_index`. That range is not checked, since it would wait for the
            device: a label outside raises on the CPU and is a device-side assertion on a GPU.
        ignore_index: label of voxels to leave out.
        class_weight: `(K,)`, multiplies the voxels of each class. The sum is divided by the number of voxels, not by
            the sum of their weights as in `torch.nn.functional.cross_entropy`, so that a weight also counts in a
            volume that holds one class only.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" is over all voxels of the batch; "none" gives
            `(B, *S)`, zero where a voxel is left out.

    Returns:
        A scalar, or `(B, *S)` with "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, or `reduction` is unknown.

    Gradient: to `logits`; exactly zero at voxels that are left out.
    Empty case: a volume without a valid voxel contributes an attached zero.

    >>> cross_entropy(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    tensor(0.6931)
    """
    check_class_maps(logits=logits)
    check_labels(labels, logits)
    check_mask(mask, logits)
    if class_weight is not None and class_weight.shape != (logits.shape[1],):
        raise ValueError(f"class_weight has shape {tuple(class_weight.shape)}; expected ({logits.shape[1]},)")
    valid = valid_voxels(labels, ignore_index, mask)
    index = labels.long().where(valid, 0)
    values = -upcast(logits).log_softmax(1).gather(1, index.unsqueeze(1)).squeeze(1)  # (B, *S)
    if class_weight is not None:
        values = values * class_weight.to(values)[index]
    return reduce_volumes(values, valid, reduction)


@LOSSES.register(
    "cross_entropy",
    example=Example(call={"logits": "logits", "labels": "labels", "mask": "mask"}, student=("logits",)),
)
class CrossEntropy(nn.Module):
    """Cross-entropy with labels; see `cross_entropy`. `class_weight` may also be a sequence of K numbers."""

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        ignore_index: int = -1,
        class_weight: Tensor | Sequence[float] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if class_weight is not None:
            class_weight = torch.as_tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", class_weight, persistent=False)  # a setting, not state
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return cross_entropy(
            logits,
            labels,
            ignore_index=self.ignore_index,
            class_weight=self.class_weight,
            mask=mask,
            reduction=self.reduction,
        )
