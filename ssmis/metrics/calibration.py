# SPDX-License-Identifier: Apache-2.0
"""Calibration of predicted probabilities: expected calibration error, Brier score, data of a reliability diagram."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from ssmis._checks import check_whole
from ssmis.metrics._masks import Array, ArrayLike, as_array, bounding_box, class_numbers


@dataclass(frozen=True, eq=False)
class Reliability:
    """Data of a reliability diagram: voxels by confidence, in M bins of equal width over [0, 1], closed above.

    Attributes:
        count: `(M,)` voxels in each bin.
        confidence: `(M,)` mean confidence of each bin, nan where it is empty.
        frequency: `(M,)` share of the voxels of each bin where the prediction came true, nan where it is empty.
    """

    count: Array
    confidence: Array
    frequency: Array

    @property
    def ece(self) -> float:
        """Mean of |confidence - frequency| over the bins, weighted by `count`; nan without a voxel."""
        gaps = np.nan_to_num(np.abs(self.confidence - self.frequency))
        return float((self.count * gaps).sum() / self.count.sum()) if self.count.any() else nan


@dataclass(frozen=True, eq=False)
class Calibration:
    """Expected calibration error in [0, 1], Brier score, the number of voxels they are over, and the bins."""

    ece: float
    brier: float
    n: int
    reliability: Reliability


def calibration(
    probs: ArrayLike, reference_labels: ArrayLike, *, bins: int = 15, foreground_margin: int | None = None
) -> Calibration:
    r"""Measure whether the confidence in the predicted class is the share of voxels where it is right.

    With confidence $c_v = \max_k p_{kv}$ and $V_m$ the voxels whose confidence is in bin $m$,
    $\mathrm{ECE} = \sum_m \frac{|V_m|}{V} |\mathrm{mean}_{V_m} c - \mathrm{mean}_{V_m} [\arg\max_k p_{kv} = y_v]|$ and
    $\mathrm{Brier} = \frac{1}{V} \sum_v \sum_k (p_{kv} - [y_v = k])^2$, which is in [0, 2].

    Args:
        probs: `(K, *S)`, sum 1 over K, of one case, numpy or torch.
        reference_labels: integer `(*S)` in 0..K-1; voxels marked -1 are left out.
        bins: how many of equal width.
        foreground_margin: None counts the whole image, where a large and certain background hides everything else. A
            number counts the box around the foreground of the reference only, widened by so many voxels on each side:
            the same voxels for every method.

    Raises:
        ValueError: probs are not floating point `(K, *S)` with K >= 2, do not sum to 1, or do not fit the labels;
            `bins` or `foreground_margin` is no whole number of at least 1 or 0.

    Empty case: without a voxel to count (with `foreground_margin`: without foreground in the reference) both are nan.

    Paper: Guo et al., On calibration of modern neural networks, ICML 2017 (arXiv 1706.04599); Brier, Verification of
    forecasts expressed in terms of probability, Monthly Weather Review 1950.

    >>> found = calibration(np.array([[0.9, 0.9], [0.1, 0.1]]), np.array([0, 1]))  # 90 % sure, right in half
    >>> round(found.ece, 6), round(found.brier, 6)
    (0.4, 0.82)
    """
    flat, labels = _voxels(probs, reference_labels, bins, foreground_margin)
    squares = sum(_square_sum(flat[label], labels == label) for label in range(len(flat)))
    return _calibration(flat.max(axis=0), flat.argmax(axis=0) == labels, squares, bins)


def calibration_per_class(
    probs: ArrayLike,
    reference_labels: ArrayLike,
    *,
    classes: Sequence[int],
    bins: int = 15,
    foreground_margin: int | None = None,
) -> dict[int, Calibration]:
    r"""Return class -> `Calibration` of its probability $p_{kv}$ as a forecast of $[y_v = k]$.

    The mean of `ece` over all K classes is the static calibration error, the sum of `brier` over them the Brier score
    of `calibration`.

    Args:
        probs: as in `calibration`, like all arguments but `classes`.
        reference_labels: as in `calibration`.
        classes: which to measure, in 0..K-1.
        bins: as in `calibration`.
        foreground_margin: as in `calibration`.

    Raises:
        ValueError: what `calibration` raises, or a class outside of 0..K-1 or there twice.

    Paper: Nixon et al., Measuring calibration in deep learning, CVPR Workshops 2019 (arXiv 1904.01685).
    """
    flat, labels = _voxels(probs, reference_labels, bins, foreground_margin)
    numbers = class_numbers(classes)
    if unknown := [label for label in numbers if not 0 <= label < len(flat)]:
        raise ValueError(f"classes has {unknown[0]}; expected 0..{len(flat) - 1} to match probs of {len(flat)} classes")
    found = {}
    for label in numbers:
        true = labels == label
        found[label] = _calibration(flat[label], true, _square_sum(flat[label], true), bins)
    return found


def pool_reliability(parts: Sequence[Reliability]) -> Reliability:
    """Return the bins of all voxels of several cases together.

    Raises:
        ValueError: no part, or parts with different numbers of bins.
    """
    if len({len(part.count) for part in parts}) != 1:
        raise ValueError(
            f"parts have {[len(part.count) for part in parts]} bins; expected at least one part, all alike"
        )
    count = sum(part.count for part in parts)
    sums = [
        sum(part.count * np.nan_to_num(getattr(part, name)) for part in parts) for name in ("confidence", "frequency")
    ]
    return _from_sums(np.asarray(count), *sums)


def pool_calibration(parts: Sequence[Calibration]) -> Calibration:
    """Return the calibration of all voxels of several cases, or of the parts of one, together.

    Raises:
        ValueError: no part, or parts with different numbers of bins.
    """
    reliability = pool_reliability([part.reliability for part in parts])
    n = sum(part.n for part in parts)
    squares = sum(part.n * part.brier for part in parts if part.n)
    return Calibration(reliability.ece, squares / n if n else nan, n, reliability)


def _voxels(
    probs: ArrayLike, reference_labels: ArrayLike, bins: int, foreground_margin: int | None
) -> tuple[Array, Array]:
    """The voxels that count: probs `(K, V)` and labels `(V,)`."""
    values, labels = as_array(probs), as_array(reference_labels)
    if values.ndim < 2 or len(values) < 2 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"probs is {values.dtype} of shape {values.shape}; expected floating point (K, *S) with K >= 2 classes"
        )
    if labels.shape != values.shape[1:] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"reference_labels is {labels.dtype} of shape {labels.shape}; "
            f"expected integers of shape {values.shape[1:]} to match probs {values.shape}"
        )
    check_whole(bins, 1, name="bins")
    if foreground_margin is not None:
        box = bounding_box(labels > 0, margin=check_whole(foreground_margin, 0, name="foreground_margin"))
        values, labels = values[:, *box], labels[box]
    known = labels >= 0
    values, labels = values[:, known], labels[known]
    if labels.size and labels.max() >= len(values):
        raise ValueError(f"reference_labels has class {labels.max()}; expected 0..{len(values) - 1} to match probs")
    values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
    if labels.size:
        off = float(np.abs(values.sum(axis=0) - 1).max())
        if not (off <= 0.02 and values.min() >= -1e-3):  # the rounding of half precision is within
            raise ValueError(
                f"probs has a minimum of {values.min()} and sums over K that are off 1 by up to {off}; "
                "expected probabilities (apply the softmax to logits first)"
            )
    return values, labels


def _square_sum(forecast: Array, true: Array) -> float:
    return float(np.square(forecast - true).sum(dtype=np.float64))


def _calibration(confidence: Array, true: Array, squares: float, bins: int) -> Calibration:
    """Bin the forecasts `(V,)`; the first bin takes 0 too."""
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    count, confident, came_true = (
        np.bincount(index, weights=weights, minlength=bins) for weights in (None, confidence, true)
    )
    reliability = _from_sums(count, confident, came_true)
    n = len(confidence)
    return Calibration(reliability.ece, squares / n if n else nan, n, reliability)


def _from_sums(count: Array, confidence: Array, frequency: Array) -> Reliability:
    some = np.where(count > 0, count, nan)
    return Reliability(count, confidence / some, frequency / some)
