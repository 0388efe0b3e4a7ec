# SPDX-License-Identifier: Apache-2.0
"""Dice and Jaccard of two masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from ssmis.metrics._masks import ArrayLike, class_numbers, label_pair, mask_pair


@dataclass(frozen=True)
class Overlap:
    """Overlap of one class: Dice, Jaccard and the voxel counts they come from."""

    dice: float
    jaccard: float
    n_prediction: int
    n_reference: int


def mask_overlap(prediction: ArrayLike, reference: ArrayLike) -> Overlap:
    r"""Compare two masks voxel by voxel.

    $\mathrm{Dice} = 2 |P \cap R| / (|P| + |R|)$ and $\mathrm{Jaccard} = |P \cap R| / |P \cup R|$.

    Args:
        prediction: bool `(*S)`, numpy or torch.
        reference: bool `(*S)`.

    Raises:
        ValueError: a mask is not bool or the shapes differ.

    Empty case: both empty is not applicable (nan); one empty is 0.
    """
    predicted, true = mask_pair(prediction, reference)
    n_prediction, n_reference = int(np.count_nonzero(predicted)), int(np.count_nonzero(true))
    common = int(np.count_nonzero(predicted & true))
    total = n_prediction + n_reference
    if total == 0:
        return Overlap(nan, nan, 0, 0)
    return Overlap(2 * common / total, common / (total - common), n_prediction, n_reference)


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the Dice coefficient of two bool masks; see `mask_overlap`.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    return mask_overlap(prediction, reference).dice


def jaccard(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the Jaccard index (intersection over union) of two bool masks; see `mask_overlap`."""
    return mask_overlap(prediction, reference).jaccard


def overlap_per_class(
    prediction_labels: ArrayLike, reference_labels: ArrayLike, *, classes: Sequence[int]
) -> dict[int, Overlap]:
    """Return class -> `Overlap` for two integer label maps; voxels the reference marks -1 are left out.

    Raises:
        ValueError: a label map is not of integers, the shapes differ, or a class is no whole number of at least 0 or
            there twice.
    """
    predicted, true = label_pair(prediction_labels, reference_labels)
    return {label: mask_overlap(predicted == label, true == label) for label in class_numbers(classes)}
