# SPDX-License-Identifier: Apache-2.0
"""Entropy minimisation: make a network sure of what it predicts on unlabelled volumes."""

from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_mask
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.registry import LOSSES, Example
from ssmis.uncertainty import entropy


def entropy_minimisation(
    student_logits: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Entropy of the class probabilities of each voxel, over its maximum.

    $\ell_v = -\frac{1}{\log K} \sum_k p_{vk} \log p_{vk}$ with $p = \mathrm{softmax}(z)$ over classes.

    Args:
        student_logits: `(B, K, *S)`, K >= 2. Receives gradient.
        mask: bool `(B, *S)`; voxels outside are left out.
        reduction: "mean" is per volume, then over volumes; "pooled" is over all voxels of the batch; "none" gives
            `(B, *S)`, zero outside the mask.

    Returns:
        A scalar, or `(B, *S)` with "none", in [0, 1]; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes or dtypes do not match, or `reduction` is unknown.

    Gradient: to `student_logits`; zero at a voxel whose classes are exactly equally likely, a stationary point.
    Empty case: a volume without a voxel in the mask contributes an attached zero.
    Paper: Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NIPS 2004; for segmentation Vu et
        al., ADVENT, CVPR 2019, arXiv 1811.12833.
    """
    check_class_maps(student_logits=student_logits)
    check_mask(mask, student_logits, maps_name="student_logits")
    return reduce_volumes(entropy(student_logits), mask, reduction)


@LOSSES.register(
    "entropy_minimisation",
    example=Example(call={"student_logits": "logits", "mask": "mask"}, student=("student_logits",)),
)
class EntropyMinimisation(nn.Module):
    """Entropy of the predictions; see `entropy_minimisation`."""

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, student_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss."""
        return entropy_minimisation(student_logits, mask=mask, reduction=self.reduction)
