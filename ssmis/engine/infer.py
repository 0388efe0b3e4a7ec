# SPDX-License-Identifier: Apache-2.0
"""Whole volumes from windows: blended, with flips and ensembles averaged."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmis._checks import check_choice, check_range
from ssmis.data.resample import area_downsample, scaled_size, upsample_probs
from ssmis.engine.runtime import Precision
from ssmis.engine.windows import BLENDINGS, Blending, blend_weight, window_starts
from ssmis.recipes.base import Prediction
from ssmis.uncertainty import entropy_of_probs

Model = Callable[[Tensor], Prediction | Tensor]


class Predictor:
    """Predicts a volume of any size with a model that sees patches.

    Windows slide over the volume; the last one on each axis ends at the border, a volume smaller than the patch is
    padded with zeros on both sides. Probabilities are averaged over windows (weighted), flips and models in float32, in
    two running sums, so memory does not grow with the number of windows.

    Args:
        models: a recipe, or any callable from images `(B, C, *S)` to a `Prediction` or probabilities `(B, K, *S)`; a
            sequence of them is averaged. A plain net must be in eval mode.
        patch: window size, in voxels of the scaled grid.
        stride: step between windows; None derives it from `overlap`.
        overlap: share of a window its neighbour covers, where `stride` is None.
        blending: "gaussian" trusts the middle of a window more, "uniform" is the plain mean.
        flips: spatial axes (0 is the first of `*S`); predictions are averaged over every combination of them.
        batch_size: windows per forward pass.
        scale: predict on a grid of `round(size * scale)` voxels: the image is area-averaged to it, the probabilities
            are brought back linearly.
        device: where the models run; the models must be there already.
        precision: of the forward passes; None is float32.
        accumulate_on: where the running sums live; None is `device`. "cpu" for volumes too large for a GPU.

    Raises:
        ValueError: an argument out of range, or lengths that do not fit the patch.
    """

    def __init__(
        self,
        models: Model | Sequence[Model],
        *,
        patch: Sequence[int],
        stride: Sequence[int] | None = None,
        overlap: float = 0.5,
        blending: Blending = "gaussian",
        flips: Sequence[int] = (),
        batch_size: int = 4,
        scale: float = 1.0,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
        accumulate_on: torch.device | str | None = None,
    ) -> None:
        check_choice(blending, BLENDINGS, name="blending")
        check_range(overlap, 0.0, 0.99, name="overlap")
        check_range(scale, 0.0, 1.0, name="scale", open_low=True)
        check_range(batch_size, 1, float("inf"), name="batch_size")
        self.models = [_as_callable(model) for model in (models if isinstance(models, Sequence) else [models])]
        if not self.models:
            raise ValueError("models is empty; expected at least one")
        self.patch = tuple(patch)
        self.stride = tuple(stride or (max(1, int(length * (1 - overlap) + 1e-6)) for length in self.patch))
        window_starts(self.patch, self.patch, self.stride)  # checks both
        if len(set(flips)) != len(flips) or not set(flips) <= set(range(len(self.patch))):
            raise ValueError(f"flips is {tuple(flips)}; expected distinct axes out of {tuple(range(len(self.patch)))}")
        self.flips = tuple(flips)
        self.blending: Blending = blending
        self.batch_size = int(batch_size)
        self.scale = float(scale)
        self.device = torch.device(device)
        self.precision = precision or Precision("fp32", self.device.type)
        self.accumulate_on = torch.device(self.device if accumulate_on is None else accumulate_on)

    @torch.no_grad()
    def predict(self, image: Tensor | npt.NDArray[Any]) -> Prediction:
        """Predict one volume.

        Args:
            image: `(C, *S)`.

        Returns:
            A `Prediction` without the batch axis: float32 `probs` `(K, *S)` and `uncertainty` `(*S)`, the normalised
            entropy of these probabilities.

        Raises:
            ValueError: the image does not have the patch's axes, or a model returns something else than probabilities.
        """
        if not isinstance(image, Tensor):
            image = torch.from_numpy(np.array(image, dtype=np.float32))  # a copy: any byte order, strides or memory map
        volume = image.to(self.accumulate_on, torch.float32)
        if volume.ndim != len(self.patch) + 1:
            raise ValueError(
                f"image has shape {tuple(volume.shape)}; expected (C, *S) with {len(self.patch)} spatial axes"
            )
        size = volume.shape[1:]
        if self.scale != 1.0:
            volume = area_downsample(volume[None], scaled_size(size, self.scale))[0]
        probs = self._slide(volume)
        if self.scale != 1.0:
            probs = upsample_probs(probs[None], tuple(size))[0]
        return Prediction(probs, entropy_of_probs(probs[None])[0])

    def _slide(self, volume: Tensor) -> Tensor:
        """Weighted mean of all windows of all flips: `(C, *S)` -> `(K, *S)`."""
        size = tuple(volume.shape[1:])
        starts = window_starts(size, self.patch, self.stride)
        weight = blend_weight(self.patch, self.blending, device=self.accumulate_on)
        total: Tensor | None = None
        weights = torch.zeros(size, device=self.accumulate_on)
        for axes in _subsets(self.flips):
            padded, before = self._padded(volume, flipped=axes)
            dims = [axis + 2 for axis in axes]  # of (B, C, *S)
            for first in range(0, len(starts), self.batch_size):
                # windows are cut where the flipped volume would have them: then flipping the input flips the result
                chunk = [self._mirrored(start, size, axes) for start in starts[first : first + self.batch_size]]
                windows = torch.stack([padded[:, *_box(start, self.patch)] for start in chunk])
                probs = self._forward(windows.flip(dims)).flip(dims)
                for own, start in zip(probs, chunk):
                    inside, outside = _clip(start, before, self.patch, size)
                    part = weight[inside]
                    if total is None:
                        total = torch.zeros((len(own), *size), device=self.accumulate_on)
                    total[:, *outside].addcmul_(own[:, *inside], part)
                    weights[outside].add_(part)
        if total is None:
            raise ValueError(f"image has spatial size {size}; expected at least one voxel")
        return total.div_(weights)

    def _forward(self, windows: Tensor) -> Tensor:
        """Mean probabilities of the models for `(B, C, *patch)` windows, float32."""
        windows = windows.to(self.device)
        total = torch.zeros((), device=self.accumulate_on)
        for model in self.models:
            with self.precision.autocast():
                output = model(windows)
            probs = output.probs if isinstance(output, Prediction) else output
            total = total + _checked(probs, windows).to(self.accumulate_on, torch.float32)
        return total / len(self.models)

    def _padded(self, volume: Tensor, *, flipped: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """Zero-pad axes shorter than the patch; an odd voxel goes behind, on flipped axes in front."""
        missing = [max(length - whole, 0) for length, whole in zip(self.patch, volume.shape[1:])]
        before = tuple(gap - gap // 2 if axis in flipped else gap // 2 for axis, gap in enumerate(missing))
        pads = [side for gap, low in zip(reversed(missing), reversed(before)) for side in (low, gap - low)]
        return (F.pad(volume, pads) if any(missing) else volume), before

    def _mirrored(self, start: tuple[int, ...], size: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
        """Where the window at `start` of the flipped volume lies in the unflipped one."""
        last = [max(whole - length, 0) for whole, length in zip(size, self.patch)]
        return tuple(last[axis] - at if axis in axes else at for axis, at in enumerate(start))


def _as_callable(model: Model) -> Model:
    return model.predict if hasattr(model, "predict") else model


def _subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for count in range(len(axes) + 1):
        yield from combinations(axes, count)


def _box(start: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(at, at + length) for at, length in zip(start, patch))


def _clip(
    start: Sequence[int], before: Sequence[int], patch: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a window that lies in the volume: in coordinates of the window, and of the volume."""
    inside, outside = [], []
    for at, pad, length, whole in zip(start, before, patch, size):
        low, high = max(at - pad, 0), min(at - pad + length, whole)
        inside.append(slice(low - (at - pad), high - (at - pad)))
        outside.append(slice(low, high))
    return tuple(inside), tuple(outside)


def _checked(probs: Tensor, windows: Tensor) -> Tensor:
    expected = (len(windows), *windows.shape[2:])
    if not isinstance(probs, Tensor) or probs.ndim != windows.ndim or (len(probs), *probs.shape[2:]) != expected:
        found = tuple(probs.shape) if isinstance(probs, Tensor) else type(probs).__name__
        raise ValueError(
            f"the model returned {found}; expected probabilities (B, K, *S) for windows {tuple(windows.shape)}"
        )
    worst = (probs.float().sum(1) - 1).abs().max()
    if not worst < 0.05:
        raise ValueError(
            f"the model's classes add up to 1 only within {float(worst):.3g}; expected probabilities, not logits"
        )
    return probs
