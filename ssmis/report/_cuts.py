# SPDX-License-Identifier: Apache-2.0
"""Where pictures of a case are cut, and the checks of what goes into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
ArrayLike = Array | torch.Tensor

# Okabe and Ito's colours that stand out on grey: told apart with any colour vision
METHOD_COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00")


@dataclass(frozen=True)
class Panel:
    """A cut across `axis` at `index` (None: a 2-D image as it is), the aspect of its pixels (height over width) and its
    shape (width over height, within limits).
    """

    axis: int | None
    index: int
    aspect: float
    shape: float

    def cut(self, volume: Array) -> Array:
        return volume if self.axis is None else volume.take(self.index, axis=self.axis)


def panels(image: Array, masks: Mapping[str, Array], reference: str, spacing: tuple[float, ...]) -> list[Panel]:
    found = []
    for axis, index in _cuts(image, masks, reference):
        down, across = (other for other in range(image.ndim) if other != axis)
        shape = image.shape[across] * spacing[across] / (image.shape[down] * spacing[down])
        found.append(Panel(axis, index, spacing[down] / spacing[across], min(max(shape, 0.3), 2.5)))
    return found


def checked_case(title: str, image: ArrayLike, masks: Mapping[str, ArrayLike]) -> tuple[str, Array, dict[str, Array]]:
    picture = as_array(image).astype(np.float32)
    if picture.ndim not in (2, 3):
        raise ValueError(f"the image of {title!r} has shape {picture.shape}; expected a 2-D or 3-D image")
    arrays = {name: as_array(mask) for name, mask in masks.items()}
    for name, mask in arrays.items():
        if mask.shape != picture.shape:
            raise ValueError(f"mask {name!r} of {title!r} has shape {mask.shape}; expected {picture.shape}")
    return title, picture, arrays


def as_array(values: ArrayLike) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def checked_spacing(spacing_mm: Sequence[float] | None, ndim: int) -> tuple[float, ...]:
    spacing = (1.0,) * ndim if spacing_mm is None else tuple(float(value) for value in spacing_mm)
    if len(spacing) != ndim or not all(0 < value < inf for value in spacing):
        raise ValueError(f"spacing_mm is {spacing}; expected {ndim} positive numbers")
    return spacing


def _cuts(image: Array, masks: Mapping[str, Array], reference: str) -> list[tuple[int | None, int]]:
    """Where to cut a case: (axis, index) for each axis of a volume, (None, 0) for a 2-D image."""
    if image.ndim == 2:
        return [(None, 0)]
    guides = [masks[reference]] if reference in masks else list(masks.values())
    area = sum(((guide > 0).astype(np.int64) for guide in guides), np.zeros(image.shape, np.int64))
    cuts: list[tuple[int | None, int]] = []
    for axis in range(3):
        profile = area.sum(axis=tuple(other for other in range(3) if other != axis))
        largest = np.flatnonzero(profile == profile.max())
        cuts.append((axis, int(largest[len(largest) // 2])))  # the middle one of equals
    return cuts
