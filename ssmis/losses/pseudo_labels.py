# SPDX-License-Identifier: Apache-2.0
"""Hard pseudo-labels from logits."""

import torch
from torch import Tensor

from ssmis._checks import check_class_maps, check_range
from ssmis._classes import top_class


@torch.no_grad()
def hard_labels(logits: Tensor, *, threshold: float | None = None) -> Tensor:
    """Return one class a voxel.

    Args:
        logits: `(B, K, *S)`, K >= 2.
        threshold: None is the argmax. A number is for logits of independent sigmoid maps: the most probable foreground
            class whose probability reaches it, else the background, whatever the background's own map says.

    Returns:
        int64 `(B, *S)` in [0, K).

    Raises:
        ValueError: logits are not `(B, K, *S)`, or the threshold is outside [0, 1].

    Gradient: none.

    >>> logits = torch.tensor([[[2.0, 0.0], [1.0, -1.0]]])
    >>> hard_labels(logits), hard_labels(logits, threshold=0.5)
    (tensor([[0, 0]]), tensor([[1, 0]]))
    """
    check_class_maps(logits=logits)
    if threshold is None:
        return top_class(logits)
    check_range(threshold, 0, 1, name="threshold")
    top, foreground = logits[:, 1:].max(1)
    return torch.where(top.float().sigmoid() >= threshold, foreground + 1, 0)
