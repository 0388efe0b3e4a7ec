# SPDX-License-Identifier: Apache-2.0
"""A prediction within a budget of memory: what it needs is added up before anything is taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ssmis.engine.segmentation import PIECE_BYTES
from ssmis.engine.sliding import CHUNK_BYTES, Sliding, largest_row

GB = 2**30
LIBRARIES = 768 * 2**20  # resident with torch, nibabel and scipy, nets not counted
NET_BYTES = 64  # of a net's activations, for each voxel of a window and channel of its first level; an estimate
CLASS_BYTES = 32  # of logits, probabilities and their entropy, for each voxel of a window and class
LARGEST_BYTES = 12  # a voxel, of finding components


@dataclass(frozen=True)
class Task:
    """What memory depends on.

    Attributes:
        size: of the image.
        inner: its size on the grid of the nets.
        channels: of it.
        classes: of the nets.
        width: of the nets at full resolution.
        image_bytes: the image as it was given.
        net_bytes: the weights of the nets.
        label_bytes: a voxel of the label map; 0 without one.
        whole: all probabilities are kept, those of `Predictor.predict`.
        probs: they are returned besides the label map.
        uncertainty: so is the uncertainty.
        largest: the largest components are looked for.
        host: the running sums live in the memory of the process, not in that of a GPU.
        nets_inside: the nets run where the running sums live.
    """

    size: tuple[int, ...]
    inner: tuple[int, ...]
    channels: int
    classes: int
    width: int
    image_bytes: int
    net_bytes: int = 0
    label_bytes: int = 1
    whole: bool = False
    probs: bool = False
    uncertainty: bool = False
    largest: bool = False
    host: bool = True
    nets_inside: bool = True


def fit_windows(task: Task, sliding: Sliding, memory_gb: float, *, axis: int) -> Sliding:
    """Choose how many windows go at once, and how much is resampled at once.

    Args:
        task: what is to be predicted.
        sliding: with the numbers that are taken where they fit; else they are smaller.
        memory_gb: the budget.
        axis: along which rows are finished.

    Raises:
        ValueError: even one window at a time needs more; the message says what would be needed, and for what.
    """
    found: dict[str, int] = {}
    for batch in range(sliding.batch_size, 0, -1):
        for chunk in (CHUNK_BYTES, CHUNK_BYTES // 8):
            own = sliding.with_sizes(batch_size=batch, chunk_bytes=chunk)
            found = needed(task, own, axis=axis)
            if sum(found.values()) <= memory_gb * GB:
                return own
    parts = ", ".join(f"{gb(size)} for {what}" for what, size in sorted(found.items(), key=lambda p: -p[1]) if size)
    raise ValueError(
        f"memory_gb is {memory_gb:g}, but an image of {task.size} voxels in {task.classes} classes needs "
        f"{gb(sum(found.values()))}: {parts}"
    )


def needed(task: Task, sliding: Sliding, *, axis: int) -> dict[str, int]:
    """Bytes that the prediction takes when it takes most, by what they are for."""
    voxels = math.prod(task.size)
    base = {"libraries and nets": task.net_bytes * task.nets_inside + LIBRARIES * task.host}
    if task.host:
        base["the image"] = task.image_bytes
    prepared = 4 * task.channels * math.prod(task.inner)
    working = base | {"the image on the nets' grid": prepared + sliding.copies * _padded(task, sliding.patch)}
    working |= _sums(task, sliding, axis)
    results = (4 * task.uncertainty + 4 * task.classes * task.probs + (task.label_bytes > 0)) * voxels * task.host
    moments = [working | {"results": results} if not task.whole else working]
    if task.host:
        moments.append(base | {"preparing the image": 4 * task.channels * _resampling(task.size, task.inner)})
        mapped = task.label_bytes if task.label_bytes > 1 else 0
        last = max(LARGEST_BYTES * task.largest, mapped) * voxels
        moments.append(base | {"the image on the nets' grid": prepared, "results": results + last})
    return max(moments, key=lambda own: sum(own.values()))


def gb(size: float) -> str:
    """Bytes as text, rounded up: what is said to be enough is.

    >>> gb(2**30 + 1)
    '1.01 GB'
    """
    return f"{math.ceil(size / GB * 100) / 100:.2f} GB"


def _sums(task: Task, sliding: Sliding, axis: int) -> dict[str, int]:
    """Running sums, windows, and the way back to the grid of the image."""
    same = task.inner == task.size
    batch, rows = sliding.batch_size, task.inner[axis] if task.whole and same else sliding.rows(task.inner, axis)
    row = math.prod(task.inner) // task.inner[axis]
    patch = math.prod(sliding.patch)
    each = task.width * NET_BYTES * task.nets_inside + task.classes * CLASS_BYTES + 8 * task.channels
    found = {
        "running sums": 4 * (task.classes + 1) * rows * row + 8 * patch,
        f"{batch} windows at once" if batch > 1 else "one window": batch * patch * each,
    }
    if task.uncertainty or task.whole:
        found["entropy"] = 4 * max(PIECE_BYTES, 4 * task.classes * math.prod(task.size[1:]))
    if same:
        found["labels of a slab"] = 10 * rows * row if not task.whole else 4 * math.prod(task.size)
        return found
    whole = 4 * task.classes * math.prod(task.size)
    most = max(whole, 4 * task.classes * math.prod(task.inner))
    row = 4 * task.classes * largest_row(axis, task.inner, task.size)
    found["resampling of probabilities"] = 5 * min(most, max(sliding.chunk_bytes, row)) + 4 * row
    if task.whole:
        found["results"] = whole + 4 * math.prod(task.size)
    return found


def _padded(task: Task, patch: Sequence[int]) -> int:
    """Bytes of one copy of the image that is padded to the patch; 0 where none is needed."""
    sizes = [max(own, length) for own, length in zip(task.inner, patch)]
    return 4 * task.channels * math.prod(sizes) if tuple(sizes) != task.inner else 0


def _resampling(size: Sequence[int], inner: Sequence[int]) -> int:
    """Voxels of float32 that are alive at once when `resample_maps` brings an image of `size` to `inner`."""
    first = math.prod(size)
    most = 9 * first // 4  # a mask and the values inside, of the normalisation
    if all(new >= old for new, old in zip(inner, size)):
        return max(most, first + math.prod(inner) * (tuple(inner) != tuple(size)))
    now = list(size)
    for axis in sorted(range(len(size)), key=lambda axis: inner[axis] / size[axis]):
        before, now[axis] = math.prod(now), inner[axis]
        if before != math.prod(now):
            most = max(most, first + (before if before != first else 0) + 2 * math.prod(now))
    return most
