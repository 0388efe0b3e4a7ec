# SPDX-License-Identifier: Apache-2.0
"""Masks and label maps as numpy arrays, checked once for all metrics."""

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ssmis._checks import check_whole

Array = npt.NDArray[Any]
ArrayLike = Array | torch.Tensor


def as_array(values: ArrayLike) -> Array:
    """Return `values` as a numpy array; a tensor is brought to the host, bfloat16 as float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()


def mask_pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[Array, Array]:
    """Return two bool arrays of one shape.

    Raises:
        ValueError: a mask is not bool (a label map would count its classes as one), has no axis, or the shapes differ.
    """
    masks = as_array(prediction), as_array(reference)
    for name, mask in zip(("prediction", "reference"), masks):
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} has dtype {mask.dtype}; expected a bool mask, for example `labels == 1`")
    _check_shapes(*masks)
    return masks


def label_pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[Array, Array]:
    """Return two integer arrays of one shape; where the reference is -1 (not annotated) the prediction is too.

    Raises:
        ValueError: a label map is not of integers, has no axis, or the shapes differ.
    """
    labels = as_array(prediction), as_array(reference)
    for name, array in zip(("prediction_labels", "reference_labels"), labels):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} has dtype {array.dtype}; expected integer class indices")
    _check_shapes(*labels, suffix="_labels")
    outside = labels[1] < 0
    return (np.where(outside, -1, labels[0].astype(np.int64)), labels[1]) if outside.any() else labels


def class_numbers(classes: Iterable[int]) -> list[int]:
    """Return the classes as int, in their order.

    Raises:
        ValueError: one is no whole number of at least 0 (-1 marks what is left out), or is there twice.
    """
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise ValueError(f"classes is {classes!r}; expected whole numbers, one a class")
    numbers: list[int] = []
    for index, value in enumerate(classes):
        number = check_whole(value, 0, name=f"classes[{index}]")
        if number in numbers:
            raise ValueError(f"classes has {number} twice; expected every class once")
        numbers.append(number)
    return numbers


def spacing_of(spacing_mm: Sequence[float], ndim: int) -> Array:
    """Return the spacing as float64, one positive number per axis.

    Raises:
        ValueError: another count than `ndim`, or a value that is not positive and finite.
    """
    try:
        values = () if isinstance(spacing_mm, str) else spacing_mm
        sizes = [float(value) for value in values if np.asarray(value).dtype != np.bool_]  # True is no length
    except (TypeError, ValueError):  # one number, None, or values that are none
        sizes = []
    if len(sizes) != ndim or not all(0 < size < inf for size in sizes):
        raise ValueError(f"spacing_mm is {spacing_mm!r}; expected {ndim} positive numbers, one per axis")
    return np.array(sizes, dtype=np.float64)


def bounding_box(mask: Array, *, margin: int = 0) -> tuple[slice, ...]:
    """Return the box around a mask, widened by `margin` voxels within the image; empty for an empty mask."""
    box: list[slice] = []
    for axis, length in enumerate(mask.shape):
        used = np.flatnonzero(mask[*box].any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        low, high = (int(used[0]), int(used[-1])) if len(used) else (length, -1 - margin)
        box.append(slice(max(low - margin, 0), min(high + 1 + margin, length)))
    return tuple(box)


def _check_shapes(prediction: Array, reference: Array, *, suffix: str = "") -> None:
    if not prediction.ndim:
        raise ValueError(f"prediction{suffix} has shape (); expected at least one axis")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction{suffix} has shape {prediction.shape}; expected {reference.shape} to match reference{suffix}"
        )
