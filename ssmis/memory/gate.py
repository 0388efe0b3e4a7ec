# SPDX-License-Identifier: Apache-2.0
"""Which volumes are segmented well enough for their features to be remembered."""

import torch
from torch import Tensor

from ssmis._checks import check_range, check_same_shape


@torch.no_grad()
def reliable_volumes(guess: Tensor, labels: Tensor, *, classes: int, threshold: float) -> Tensor:
    r"""Return bool `(B,)`: volumes whose Dice with their labels exceeds a threshold, for `labels.where(...)` of a bank.

    The Dice of a volume is the mean over the foreground classes that occur in the guess or in the labels, of
    $2 |G_k \cap Y_k| / (|G_k| + |Y_k|)$.

    Args:
        guess: integer `(B, *S)`, what the net predicts.
        labels: integer `(B, *S)`; voxels with a negative label do not count.
        classes: K, with the background.
        threshold: in [0, 1]; a schedule of the caller's may raise it.

    Raises:
        ValueError: shapes or dtypes do not match, K < 2, or the threshold is out of range.

    Gradient: none.
    Empty case: a volume without foreground in both has a Dice of 1; one without a labelled voxel is not reliable.
    """
    check_same_shape(labels=labels, guess=guess)
    check_range(threshold, 0, 1, name="threshold")
    if classes < 2:
        raise ValueError(f"classes is {classes}; expected at least 2 (background included)")
    for name, tensor in (("guess", guess), ("labels", labels)):
        if tensor.is_floating_point() or tensor.ndim < 2:
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected integer (B, *S)")
    known = labels >= 0
    dice, count = torch.zeros(len(labels), device=labels.device), torch.zeros(len(labels), device=labels.device)
    for k in range(1, classes):
        own, truth = ((maps == k) & known for maps in (guess, labels))
        overlap, size = (own & truth).flatten(1).sum(1), own.flatten(1).sum(1) + truth.flatten(1).sum(1)
        dice += 2 * overlap / size.clamp_min(1)
        count += size > 0
    quality = (dice / count.clamp_min(1)).where(count > 0, 1)
    return (quality > threshold) & known.flatten(1).any(1)
