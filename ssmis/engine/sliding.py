# SPDX-License-Identifier: Apache-2.0
"""The sliding windows of a predictor: rows leave the running sums as soon as no window can add to them."""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmis.data.regrid import apply_axis, axis_weights, resample_axis, resample_maps
from ssmis.engine.runtime import Precision
from ssmis.engine.windows import Blending, blend_weight, window_starts
from ssmis.recipes.base import Prediction

Model = Callable[[Tensor], Prediction | Tensor]
Slabs = Iterator[tuple[int, Tensor]]  # first row, probabilities `(K, *S)` of some rows

Window = tuple[tuple[int, ...], tuple[int, ...]]  # where it starts, and the axes that are flipped

CHUNK_BYTES = 2**28  # of probabilities that are brought to another grid at once


class Sliding:
    """Weighted mean of windows, for `Predictor`; the arguments are its."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        patch: tuple[int, ...],
        stride: tuple[int, ...],
        blending: Blending,
        flips: tuple[int, ...],
        batch_size: int,
        device: torch.device,
        precision: Precision,
        accumulate_on: torch.device,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.models, self.patch, self.stride, self.blending, self.flips = models, patch, stride, blending, flips
        self.batch_size, self.device, self.precision, self.accumulate_on = batch_size, device, precision, accumulate_on
        self.chunk_bytes = chunk_bytes

    def with_sizes(self, *, batch_size: int, chunk_bytes: int) -> "Sliding":
        """The same, with other numbers of windows and bytes at once."""
        other = copy(self)
        other.batch_size, other.chunk_bytes = batch_size, chunk_bytes
        return other

    @property
    def copies(self) -> int:
        """Padded copies of a volume that is smaller than the patch: one a combination of flips."""
        return 2 ** len(self.flips)

    def rows(self, size: Sequence[int], axis: int) -> int:
        """Rows along `axis` of a volume of `size` that the running sums hold: what windows of a batch reach over."""
        starts = [[at for (at,) in window_starts((n,), (p,), (s,))] for n, p, s in zip(size, self.patch, self.stride)]
        along = torch.tensor(starts[axis])
        if axis in self.flips:
            along = torch.cat([along, max(size[axis] - self.patch[axis], 0) - along]).sort().values
        every = math.prod(map(len, starts)) // len(starts[axis]) * 2 ** (len(self.flips) - (axis in self.flips))
        first = torch.arange(0, len(along) * every, self.batch_size)
        last = (first + self.batch_size - 1).clamp_max(len(along) * every - 1)
        reach = int((along[last // every] - along[first // every]).max()) + self.patch[axis]
        return min(reach, size[axis])

    def slabs(self, volume: Tensor, *, axis: int = 0, whole: bool = False) -> Slabs:
        """Yield finished rows along `axis`, in order: `(C, *S)` -> first row, probabilities `(K, *rows)`.

        Args:
            volume: `(C, *S)` float32.
            axis: spatial axis along which rows are finished.
            whole: keep all rows: one slab, of everything. Else what was yielded is overwritten afterwards.

        Raises:
            ValueError: a volume without voxels, a model that returns something else than probabilities, or models with
                different numbers of classes.
        """
        size = tuple(volume.shape[1:])
        if min(size) < 1:
            raise ValueError(f"image has spatial size {size}; expected at least one voxel")
        chunks = self._chunks(size, axis)
        rows = size[axis] if whole else self.rows(size, axis)
        weight = blend_weight(self.patch, self.blending, device=self.accumulate_on)
        sums = _Sums(size, axis, rows, device=self.accumulate_on)
        padded = {axes: self._padded(volume, flipped=axes) for axes in _subsets(self.flips)}
        for chunk in chunks:
            begin = chunk[0][0][axis]
            if not whole and begin > sums.first:
                yield sums.first, sums.mean(begin)
                sums.drop(begin)
            cuts = [padded[axes][0][:, *_box(start, self.patch)].flip([a + 1 for a in axes]) for start, axes in chunk]
            for own, (start, axes) in zip(self._forward(torch.stack(cuts)), chunk):
                inside, outside = _clip(start, padded[axes][1], self.patch, size)
                sums.add(own.flip([a + 1 for a in axes])[:, *inside], weight[inside], outside)
        yield sums.first, sums.mean(size[axis])

    def _chunks(self, size: Sequence[int], axis: int) -> list[list[Window]]:
        """The windows that go at once, those first whose rows are finished first."""
        starts = window_starts(size, self.patch, self.stride)
        windows = [(self._mirrored(start, size, axes), axes) for axes in _subsets(self.flips) for start in starts]
        windows.sort(key=lambda window: window[0][axis])
        return [windows[first : first + self.batch_size] for first in range(0, len(windows), self.batch_size)]

    def _forward(self, windows: Tensor) -> Tensor:
        """Mean probabilities of the models for `(B, C, *patch)` windows, float32."""
        windows = windows.to(self.device)
        total: Tensor | None = None
        for model in self.models:
            with self.precision.autocast():
                output = model(windows)
            probs = output.probs if isinstance(output, Prediction) else output
            own = _checked(probs, windows).to(self.accumulate_on, torch.float32)
            if total is not None and own.shape[1] != total.shape[1]:
                raise ValueError(f"a model has {own.shape[1]} classes; expected {total.shape[1]}, as the first one has")
            total = own if total is None else total + own
        assert total is not None
        return total if len(self.models) == 1 else total / len(self.models)

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


class _Sums:
    """Sums of weighted probabilities and of weights, for `rows` rows of the volume from `first` on."""

    def __init__(self, size: tuple[int, ...], axis: int, rows: int, *, device: torch.device) -> None:
        self.size = (*size[:axis], rows, *size[axis + 1 :])
        self.axis, self.rows, self.first, self.device = axis, rows, 0, device
        self.weights = torch.zeros(self.size, device=device)
        self.total: Tensor | None = None

    def add(self, probs: Tensor, weight: Tensor, where: tuple[slice, ...]) -> None:
        if self.total is None:
            self.total = torch.zeros((len(probs), *self.size), device=self.device)
        own = list(where)
        own[self.axis] = slice(where[self.axis].start - self.first, where[self.axis].stop - self.first)
        self.total[:, *own].addcmul_(probs, weight)
        self.weights[tuple(own)].add_(weight)

    def mean(self, end: int) -> Tensor:
        """Probabilities of the rows before `end`, in place."""
        assert self.total is not None
        count = end - self.first
        part = self.total.narrow(self.axis + 1, 0, count)
        return part.div_(self.weights.narrow(self.axis, 0, count))

    def drop(self, end: int) -> None:
        """Forget the rows before `end`."""
        assert self.total is not None
        count = min(end - self.first, self.rows)
        for sums, axis in ((self.total, self.axis + 1), (self.weights, self.axis)):
            for row in range(count, self.rows, count):  # in blocks that do not overlap where they go
                length = min(count, self.rows - row)
                sums.narrow(axis, row - count, length).copy_(sums.narrow(axis, row, length))
            sums.narrow(axis, self.rows - count, count).zero_()
        self.first = end


def brought_back(
    slabs: Slabs, axis: int, size: tuple[int, ...], target: tuple[int, ...], *, chunk_bytes: int = CHUNK_BYTES
) -> Slabs:
    """Interpolate slabs of a grid of `size` linearly to the grid of `target`, about `chunk_bytes` at a time."""
    if size == target:
        yield from slabs
        return
    index, weight = axis_weights(size[axis], target[axis])
    used = torch.where(weight > 0, index, -1).amax(1)  # last source row of each target row
    needed = torch.where(weight > 0, index, size[axis]).amin(1)
    held: Tensor | None = None
    begin, done = 0, 0  # first source row that is held; target rows that are out
    for _, slab in slabs:
        step = max(1, chunk_bytes // (4 * len(slab) * largest_row(axis, size, target)))
        if slab.shape[axis + 1] == size[axis] and 4 * len(slab) * math.prod(target) <= chunk_bytes:
            yield 0, resample_maps(slab, target)
            return
        for piece in slab.split(step, dim=axis + 1):
            for other in (a for a in range(len(size)) if a != axis):
                piece = resample_axis(piece, other + 1, target[other])
            rows = piece if held is None else torch.cat([held, piece], dim=axis + 1)
            end = begin + rows.shape[axis + 1]
            del piece
            ready = int((used < end).sum())
            for out in range(done, ready, step):
                part = slice(out, min(out + step, ready))
                local = (index[part] - begin).clamp(0, rows.shape[axis + 1] - 1).to(rows.device)
                yield out, apply_axis(rows, axis + 1, local, weight[part].to(rows.device))
            done = max(done, ready)
            keep = max(begin, int(needed[done]) if done < target[axis] else end)
            held = rows.narrow(axis + 1, keep - begin, end - keep).clone()
            begin = keep


def largest_row(axis: int, size: Sequence[int], target: Sequence[int]) -> int:
    """Most voxels that a row along `axis` has on its way from a grid of `size` to one of `target`."""
    return math.prod(max(pair) for other, pair in enumerate(zip(size, target)) if other != axis)


def as_callable(model: Model) -> Model:
    """A recipe's `predict`, or the callable itself."""
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
    if not torch.isfinite(worst):
        raise ValueError("the model returned probabilities that are NaN or infinite; its weights may be, too")
    if not worst < 0.05:
        raise ValueError(
            f"the model's classes add up to 1 only within {float(worst):.3g}; expected probabilities, not logits"
        )
    return probs
