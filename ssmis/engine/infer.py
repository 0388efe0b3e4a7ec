# SPDX-License-Identifier: Apache-2.0
"""Whole volumes from windows: blended, with flips and ensembles averaged, on the grid they came on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ssmis._checks import check_choice, check_range
from ssmis.data.plan import Plan
from ssmis.data.resample import area_downsample, scaled_size
from ssmis.engine.runtime import Precision
from ssmis.engine.segmentation import Segmentation, collect, entropy_in_pieces
from ssmis.engine.sliding import Model, Slabs, Sliding, as_callable, brought_back
from ssmis.engine.window_memory import Task, fit_windows
from ssmis.engine.windows import BLENDINGS, Blending, window_starts
from ssmis.recipes.base import Prediction


class Predictor:
    """Predicts a volume of any size with a model that sees patches.

    Windows slide over the volume; the last one on each axis ends at the border, a volume smaller than the patch is
    padded with zeros on both sides. Probabilities are averaged over windows (weighted), flips and models in float32, in
    two running sums, so memory does not grow with the number of windows.

    Args:
        models: a recipe, or any callable from images `(B, C, *S)` to a `Prediction` or probabilities `(B, K, *S)`; a
            sequence of them is averaged. A plain net must be in eval mode.
        patch: window size, in voxels of the grid that the models see.
        stride: step between windows; None derives it from `overlap`.
        overlap: share of a window its neighbour covers, where `stride` is None.
        blending: "gaussian" trusts the middle of a window more, "uniform" is the plain mean.
        flips: spatial axes (0 is the first of `*S`); predictions are averaged over every combination of them.
        batch_size: windows per forward pass.
        scale: predict on a grid of `round(size * scale)` voxels: the image is area-averaged to it, the probabilities
            are brought back linearly.
        plan: how images are prepared: intensity, channels and voxel size; probabilities are brought back linearly.
            Without one, images go in as they are.
        device: where the models run; the models must be there already.
        precision: of the forward passes; None is float32.
        accumulate_on: where the running sums live; None is `device`. "cpu" for volumes too large for a GPU.
        memory_gb: budget, in GiB: of the process where the running sums live in its memory, else of what is taken on
            the GPU. Where that keeps within it, fewer windows than `batch_size` go at once and smaller pieces are
            resampled. What is needed is added up before anything is taken; the nets' share is an estimate by the
            plan's widths. Reading the file, if there is one, is not counted.

    Raises:
        ValueError: an argument out of range, lengths that do not fit the patch, or a budget without a plan.
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
        plan: Plan | None = None,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
        accumulate_on: torch.device | str | None = None,
        memory_gb: float | None = None,
    ) -> None:
        check_choice(blending, BLENDINGS, name="blending")
        check_range(overlap, 0.0, 0.99, name="overlap")
        check_range(scale, 0.0, 1.0, name="scale", open_low=True)
        check_range(batch_size, 1, float("inf"), name="batch_size")
        given = list(models) if isinstance(models, Sequence) else [models]
        self.models = [as_callable(model) for model in given]
        if not self.models:
            raise ValueError("models is empty; expected at least one")
        self._net_bytes = sum(p.nbytes for model in given if isinstance(model, nn.Module) for p in model.parameters())
        self.patch = tuple(patch)
        self.stride = tuple(stride or (max(1, int(length * (1 - overlap) + 1e-6)) for length in self.patch))
        window_starts(self.patch, self.patch, self.stride)  # checks both
        if len(set(flips)) != len(flips) or not set(flips) <= set(range(len(self.patch))):
            raise ValueError(f"flips is {tuple(flips)}; expected distinct axes out of {tuple(range(len(self.patch)))}")
        self.flips = tuple(flips)
        self.blending: Blending = blending
        self.batch_size = int(batch_size)
        self.scale = float(scale)
        self.plan = plan
        self.device = torch.device(device)
        self.precision = precision or Precision("fp32", self.device.type)
        self.accumulate_on = torch.device(self.device if accumulate_on is None else accumulate_on)
        if memory_gb is not None:
            check_range(memory_gb, 0.0, float("inf"), name="memory_gb", open_low=True)
            if plan is None:
                raise ValueError("memory_gb needs a plan, which has the number of classes and the width of the nets")
        self.memory_gb = memory_gb

    @classmethod
    def load(
        cls, run: Path | str | Sequence[Path | str], *, flips: bool = False, device: str = "auto", **options: Any
    ) -> "Predictor":
        """Load what `train` wrote, ready to predict: nets, preprocessing, window.

        Args:
            run: run folder, or several of the same data (seeds): their probabilities are averaged. A folder that holds
                run folders stands for all of them.
            flips: average over flips of every axis.
            device: "auto", or a torch device.
            options: further arguments of `Predictor`, instead of those of the training.

        Raises:
            DataError: no such run, or runs of different preprocessing.
            CheckpointError: a checkpoint that cannot be read.
        """
        from ssmis.engine.trained import load_predictor

        return load_predictor(cls, run, flips=flips, device=device, **options)

    @torch.no_grad()
    def predict(self, image: Tensor | npt.NDArray[Any], spacing_mm: Sequence[float] | None = None) -> Prediction:
        """Predict one volume.

        Args:
            image: `(C, *S)`. With a plan: of any intensity scale, its axes running right, anterior, superior.
            spacing_mm: size of its voxels; needed with a plan.

        Returns:
            A `Prediction` without the batch axis: float32 `probs` `(K, *S)` and `uncertainty` `(*S)`, the normalised
            entropy of these probabilities.

        Raises:
            ValueError: the image does not have the patch's axes or is not finite, a model returns something else than
                probabilities, models have different numbers of classes, or the memory of the budget is too little.
            DataError: the image does not fit the plan.
        """
        sliding = self._within(image, spacing_mm, 0, whole=True, label_bytes=0)
        volume, size = self._prepared(image, spacing_mm)
        if tuple(volume.shape[1:]) == size:
            ((_, probs),) = sliding.slabs(volume, whole=True)
        else:
            slabs = self._slabs(sliding, volume, 0, size)
            probs = torch.empty(0, device=self.accumulate_on)
            for first, slab in slabs:
                if not probs.numel():
                    probs = torch.empty((len(slab), *size), device=slab.device)
                probs[:, first : first + slab.shape[1]] = slab
        return Prediction(probs, entropy_in_pieces(probs))

    def segment(
        self,
        image: Tensor | npt.NDArray[Any],
        spacing_mm: Sequence[float] | None = None,
        *,
        uncertainty: bool = False,
        probs: bool | npt.NDArray[np.float32] = False,
        largest: bool = False,
    ) -> Segmentation:
        """Predict label values, in less memory: what is finished leaves the running sums while windows go on.

        Args:
            image: as for `predict`.
            spacing_mm: as for `predict`.
            uncertainty: return the uncertainty map too.
            probs: return the probabilities too; an array `(K, *S)`, such as a memory map, is written into.
            largest: keep the largest component of each foreground class only.

        Raises:
            ValueError: as `predict`.
        """
        sliding = self._within(image, spacing_mm, uncertainty=uncertainty, probs=probs is True, largest=largest)
        volume, size = self._prepared(image, spacing_mm)
        axis = self._longest(volume.shape[1:])
        slabs = self._slabs(sliding, volume, axis, size)
        return collect(slabs, axis, size, plan=self.plan, uncertainty=uncertainty, probs=probs, largest=largest)

    def stream(
        self, image: Tensor | npt.NDArray[Any], spacing_mm: Sequence[float] | None = None, *, axis: int = 0
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the probabilities in slabs along an axis: first row, and `(K, *S)` of some rows, on the image's grid.

        A slab is overwritten when the next one is asked for.
        """
        with torch.no_grad():
            sliding = self._within(image, spacing_mm, axis, label_bytes=0)
            volume, size = self._prepared(image, spacing_mm)
            yield from self._slabs(sliding, volume, axis, size)

    def _within(
        self,
        image: Tensor | npt.NDArray[Any],
        spacing_mm: Sequence[float] | None,
        axis: int | None = None,
        **wanted: Any,
    ) -> Sliding:
        """The windows as the budget allows them, rows being finished along `axis` (None: see `_longest`).

        Without a budget, or for an image that `_prepared` will refuse, they are as they are.
        """
        plan, dims, size = self.plan, len(self.patch), tuple(image.shape[1:])
        if self.memory_gb is None or plan is None or spacing_mm is None:
            return self._sliding
        if len(size) != dims or len(spacing_mm) != dims or min(image.shape) < 1:
            return self._sliding
        inner = plan.training_size(size, spacing_mm)
        task = Task(
            size, inner, len(plan.channels), plan.classes, plan.widths[0], image.nbytes, self._net_bytes,
            host=self.accumulate_on.type == "cpu", nets_inside=self.device.type == self.accumulate_on.type,
            **{"label_bytes": np.min_scalar_type(max(plan.label_values)).itemsize, **wanted},
        )  # fmt: skip
        return fit_windows(task, self._sliding, self.memory_gb, axis=self._longest(inner) if axis is None else axis)

    def _longest(self, size: Sequence[int]) -> int:
        """The axis with most windows: rows that are finished along it need the smallest running sums."""
        return max(range(len(size)), key=lambda axis: size[axis] / self.patch[axis])

    def _slabs(self, sliding: Sliding, volume: Tensor, axis: int, size: tuple[int, ...]) -> Slabs:
        inner = tuple(volume.shape[1:])
        return brought_back(sliding.slabs(volume, axis=axis), axis, inner, size, chunk_bytes=sliding.chunk_bytes)

    def _prepared(
        self, image: Tensor | npt.NDArray[Any], spacing_mm: Sequence[float] | None
    ) -> tuple[Tensor, tuple[int, ...]]:
        """The image as the models see it, and the size to come back to."""
        if image.ndim != len(self.patch) + 1:
            raise ValueError(
                f"image has shape {tuple(image.shape)}; expected (C, *S) with {len(self.patch)} spatial axes"
            )
        size = tuple(image.shape[1:])
        if self.plan is not None:
            if spacing_mm is None:
                raise ValueError("spacing_mm is None; expected the size of a voxel, as the model works on its own grid")
            return self.plan.prepare(image, spacing_mm).to(self.accumulate_on), size
        if not isinstance(image, Tensor):
            image = torch.from_numpy(np.array(image, dtype=np.float32))  # a copy: any byte order, strides or memory map
        volume = image.to(self.accumulate_on, torch.float32)
        if not torch.isfinite(volume.sum(dtype=torch.float64)):
            bad = int((~torch.isfinite(volume)).sum())
            if bad:
                raise ValueError(f"image has {bad} NaN or infinite voxels of {volume.numel()}")
        if self.scale != 1.0:
            volume = area_downsample(volume[None], scaled_size(size, self.scale))[0]
        return volume, size

    @property
    def _sliding(self) -> Sliding:
        return Sliding(
            self.models,
            patch=self.patch,
            stride=self.stride,
            blending=self.blending,
            flips=self.flips,
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
            accumulate_on=self.accumulate_on,
        )
