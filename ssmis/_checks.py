# SPDX-License-Identifier: Apache-2.0
"""Argument checks shared by all components: one wording, shapes only, no look at the values on the device."""

import operator
import sys
from collections.abc import Collection
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all named tensors have the first one's shape."""
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected {tuple(reference.shape)} to match {first}"
            )


def check_class_maps(**tensors: Tensor) -> None:
    """Raise ValueError unless every named tensor is floating point `(B, K, *S)` with K >= 2 and a spatial axis."""
    for name, tensor in tensors.items():
        if tensor.ndim < 3 or tensor.shape[1] < 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                "expected floating point (B, K, *S) with K >= 2 classes and at least one spatial axis"
            )


def check_labels(labels: Tensor, maps: Tensor, *, name: str = "labels", maps_name: str = "logits") -> None:
    """Raise ValueError unless `labels` is integer `(B, *S)` to match `maps` `(B, K, *S)`."""
    expected = (maps.shape[0], *maps.shape[2:])
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}; expected {expected} to match {maps_name} {tuple(maps.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} has dtype {labels.dtype}; expected integer class indices")


def check_mask(mask: Tensor | None, maps: Tensor, *, name: str = "mask", maps_name: str = "logits") -> None:
    """Raise ValueError unless `mask` is None or bool `(B, *S)` to match `maps` `(B, K, *S)`."""
    if mask is None:
        return
    expected = (maps.shape[0], *maps.shape[2:])
    if tuple(mask.shape) != expected or mask.dtype != torch.bool:
        raise ValueError(
            f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; "
            f"expected bool {expected} to match {maps_name} {tuple(maps.shape)}"
        )


def check_choice(value: str, choices: Collection[str], *, name: str) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_not_negative(**values: float) -> None:
    """Raise ValueError unless every named value is a finite number of at least 0."""
    for name, value in values.items():
        check_range(value, 0, sys.float_info.max, name=name)


def check_range(value: float, low: float, high: float, *, name: str, open_low: bool = False) -> None:
    """Raise ValueError unless `low <= value <= high` (`low < value` with `open_low`)."""
    if not (low < value if open_low else low <= value) or not value <= high:
        raise ValueError(f"{name} is {value}; expected a number in {'(' if open_low else '['}{low}, {high}]")


def check_whole(value: SupportsIndex, least: int, *, name: str) -> int:
    """Return a whole number (numpy's too) as int; raise ValueError unless it is one, no bool, and at least `least`."""
    try:
        number = least - 1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return number
