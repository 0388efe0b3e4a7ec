# SPDX-License-Identifier: Apache-2.0
"""Volumes as stacks of 2-D slices, each brought to one size for the net and back."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmis.data import Volume
from ssmis.engine.infer import Predictor
from ssmis.recipes.base import Prediction
from ssmis.uncertainty import entropy_of_probs


class SlicePredictor:
    """Predicts a volume slice by slice: each is resized (bilinear), predicted, and its probabilities brought back.

    Args:
        predictor: of 2-D images.
        size: of the slices it gets.
    """

    def __init__(self, predictor: Predictor, size: tuple[int, int]) -> None:
        self.predictor, self.size = predictor, size

    def predict(self, image: Tensor | npt.NDArray[Any]) -> Prediction:
        """Predict a volume `(C, D, H, W)`, or one slice `(C, H, W)`; as `Predictor.predict`.

        Raises:
            ValueError: the image has other axes.
        """
        volume = torch.as_tensor(np.asarray(image, dtype=np.float32)) if not isinstance(image, Tensor) else image
        if volume.ndim not in (3, 4):
            raise ValueError(f"image has shape {tuple(volume.shape)}; expected (C, D, H, W) or (C, H, W)")
        slices = volume[:, None] if volume.ndim == 3 else volume
        parts = []
        for plane in slices.unbind(1):
            probs = self.predictor.predict(_resized(plane, self.size)).probs
            parts.append(_resized(probs, tuple(slices.shape[2:])))
        stacked = torch.stack(parts, dim=1)
        whole = stacked[:, 0] if volume.ndim == 3 else stacked
        return Prediction(whole, entropy_of_probs(whole[None])[0])


def resize_slice(volume: Volume, size: tuple[int, int]) -> Volume:
    """Bring a slice `(C, H, W)` to `size`: the image linearly, the label by the nearest pixel."""
    label, spacing = volume.label, volume.spacing_mm
    if label is not None:
        rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(size, label.shape))
        label = label[np.ix_(rows, columns)]
    old_size = volume.image.shape[1:]
    spacing = tuple(mm * old / new for mm, old, new in zip(spacing, old_size, size))
    return Volume(_resized(torch.from_numpy(volume.image), size).numpy(), label, spacing)


def _resized(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    """`(C, H, W)` -> `(C, *size)`, linearly, pixel areas aligned."""
    return F.interpolate(planes.float()[None], size=size, mode="bilinear", align_corners=False)[0]
