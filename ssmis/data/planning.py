# SPDX-License-Identifier: Apache-2.0
"""The choices of a `Plan`: classes, intensity, grid, patch, pooling, from what the training cases are like."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ssmis.data.cases import DataError
from ssmis.data.plan import Channel, Plan
from ssmis.data.suffixes import says_size
from ssmis.data.survey import MOST_CLASSES, CaseFacts

BYTES_PER_VOXEL = 220  # of a training step, for each channel of the first level; an estimate for the dual nets
LEVELS = 5
ONE_PIECE = 0.98  # of a class's voxels are in the largest component of their case
ANISOTROPIC = 2.0  # an axis this much coarser than the finest is neither pooled nor mixed by kernels


def make_plan(
    facts: Sequence[CaseFacts],
    *,
    label_names: Mapping[int, str] | None = None,
    channel_names: Sequence[str] = (),
    spacing_mm: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
    batch: int | None = None,
    width: int | None = None,
    intensity: str | None = None,
    memory_gb: float = 2.0,
) -> Plan:
    """Decide how a data set is prepared.

    Args:
        facts: of the training cases, labelled and unlabelled (`survey`).
        label_names: label value -> name, where the data set declares them; else the values that are there.
        channel_names: such as "CT"; an image that says so is clipped.
        spacing_mm: of the training grid; None: the median of the cases, made coarser where a patch within the memory
            would hold less than a quarter of the median image.
        patch: None: as large as the memory allows.
        batch: None: 2, in two dimensions up to 8.
        width: channels at the first level; None: 8 below 6 GB, else 16.
        intensity: "zscore", "clip" or "unit" for all channels; None: by the images.
        memory_gb: of a training step.

    Raises:
        DataError: no case, no label, cases of different axes or channels, or labels of too many values.
    """
    if not facts:
        raise DataError("there is no training case that can be read")
    dims, count = len(facts[0].shape), max(own.channels for own in facts)
    for own in facts:
        if len(own.shape) != dims or own.channels not in (1, count):
            raise DataError(
                f"{own.case.image}: {len(own.shape)} axes and {own.channels} channels; expected {dims} and {count}"
            )
    values = {0} | set(label_names or {}) | {value for own in facts for value in own.volumes or {} if value >= 0}
    if not any(value > 0 for own in facts for value in own.volumes or {}):
        raise DataError("no training label has a foreground; expected at least one labelled case with a structure")
    if len(values) > MOST_CLASSES:
        raise DataError(f"the labels have {len(values)} different values; expected at most {MOST_CLASSES} classes")
    ordered = tuple(sorted(values))
    names = tuple((label_names or {}).get(value, "background" if value == 0 else f"label {value}") for value in ordered)
    notes: list[str] = []
    width = width or (16 if memory_gb >= 6 else 8)
    widths = tuple(min(width * 2**level, 16 * width) for level in range(LEVELS))
    if spacing_mm is not None and (len(spacing_mm) != dims or min(spacing_mm) <= 0):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; expected {dims} positive lengths")
    median = np.median([own.spacing_mm for own in facts], axis=0)
    spacing = tuple(float(mm) for mm in (median if spacing_mm is None else spacing_mm))
    size = _median_size(facts, spacing)
    batch = batch or (2 if dims == 3 else max(2, min(8, _budget(memory_gb, width, 4) // max(math.prod(size), 1))))
    most = _budget(memory_gb, width, 2 * batch)
    if math.prod(size) > 4 * most and patch is None and spacing_mm is None:
        spacing = _coarser(spacing, (math.prod(size) / (4 * most)) ** (1 / dims))
        notes.append(f"the grid is coarser than the images, so that a patch of {most} voxels holds a quarter of one")
    size = _median_size(facts, spacing)
    pooling, kernels = shape_of_nets(spacing, patch or size)
    if patch is None:
        patch = _patch(size, most, pooling)
        pooling, kernels = shape_of_nets(spacing, patch)
    elif len(patch) != dims or min(patch) < 1:
        raise ValueError(f"patch is {tuple(patch)}; expected {dims} positive lengths")
    if len(set(map(tuple, pooling))) > 1 or len(set(kernels[0])) > 1:
        notes.append(f"pooling follows the spacing: {pooling}")
    channels = tuple(_channel(facts, index, channel_names, intensity) for index in range(count))
    return Plan(
        dims, channels, ordered, names, spacing, size, tuple(patch), int(batch), pooling, kernels, widths, tuple(notes),
        all(own.case.spacing_mm or says_size(own.case.image) for own in facts), _one_piece(facts, ordered),
    )  # fmt: skip


def _one_piece(facts: Sequence[CaseFacts], values: Sequence[int]) -> tuple[int, ...]:
    """Classes of which the largest components of the labels hold nearly everything."""
    labelled = [own for own in facts if own.volumes]
    if any(own.largest is None for own in labelled):
        return ()

    def share(value: int) -> float:
        total = sum((own.volumes or {}).get(value, 0) for own in labelled)
        return sum((own.largest or {}).get(value, 0) for own in labelled) / max(total, 1)

    return tuple(index for index, value in enumerate(values) if value > 0 and share(value) >= ONE_PIECE)


def shape_of_nets(
    spacing_mm: Sequence[float], patch: Sequence[int], *, levels: int = LEVELS
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Pooling factors between the levels, and kernels at each level.

    From level to level an axis is halved if it has at least 4 samples left and its voxels are less than twice as long
    as those of the finest axis; a kernel covers 3 voxels along such axes, and 1 along the others.

    >>> shape_of_nets((1.0, 1.0, 5.0), (64, 64, 12), levels=4)
    (((2, 2, 1), (2, 2, 1), (2, 2, 2)), ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)))
    """
    lengths, sizes = [float(mm) for mm in spacing_mm], [int(n) for n in patch]
    pooling, kernels = [], []
    for level in range(levels):
        fine = [length < ANISOTROPIC * min(lengths) for length in lengths]
        kernels.append(tuple(3 if near else 1 for near in fine))
        if level < levels - 1:
            factors = tuple(2 if near and n >= 4 else 1 for near, n in zip(fine, sizes))
            pooling.append(factors)
            lengths = [length * factor for length, factor in zip(lengths, factors)]
            sizes = [-(-n // factor) for n, factor in zip(sizes, factors)]
    return tuple(pooling), tuple(kernels)


def _budget(memory_gb: float, width: int, volumes: int) -> int:
    """Voxels of a patch when so many are trained at once."""
    return max(4096, int(memory_gb * 2**30 / (BYTES_PER_VOXEL * width * volumes)))


def _median_size(facts: Sequence[CaseFacts], spacing: Sequence[float]) -> tuple[int, ...]:
    extents = np.array([[n * mm for n, mm in zip(own.shape, own.spacing_mm)] for own in facts])
    return tuple(max(1, round(n)) for n in (np.median(extents, axis=0) / spacing).tolist())


def _coarser(spacing: Sequence[float], factor: float) -> tuple[float, ...]:
    """Lengthen the voxels to `factor**dims` times the volume, the finest axes first."""
    lengths, want = list(spacing), math.prod(spacing) * factor ** len(spacing)
    for _ in range(200):
        if math.prod(lengths) >= want:
            break
        lengths[int(np.argmin(lengths))] *= 1.02
    return tuple(round(mm, 6) for mm in lengths)


def _patch(size: Sequence[int], most: int, pooling: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The patch nearest to the median image that pooling divides, and that has at most `most` voxels."""
    steps = [min(math.prod(factors), 16) for factors in zip(*pooling)]
    patch = [max(step, step * math.floor(n / step + 0.5)) for n, step in zip(size, steps)]
    while math.prod(patch) > most:
        axis = max(
            range(len(patch)), key=lambda axis: (patch[axis] / steps[axis] > 1, patch[axis] / size[axis], patch[axis])
        )
        if patch[axis] <= steps[axis]:
            break
        patch[axis] -= steps[axis]
    return tuple(patch)


def _channel(facts: Sequence[CaseFacts], index: int, names: Sequence[str], intensity: str | None) -> Channel:
    name = names[index] if index < len(names) else ""
    own = [min(index, f.channels - 1) for f in facts]
    low, high = (np.array([getattr(f, q)[i] for f, i in zip(facts, own)]) for q in ("low", "high"))
    kinds = Counter(f.kind for f in facts)
    kind = intensity
    if kind is None:
        kind = "zscore"
        if name.upper().startswith("CT") or (
            np.median(low) <= -500 and np.median(low) > -5000 and np.median(high) < 5000
        ):
            kind = "clip"
        elif len(facts[0].shape) == 2 and all(k in ("uint8", "uint16", "bool") for k in kinds):
            kind = "unit"
    if kind == "unit":
        top = 255.0 if set(kinds) <= {"uint8"} else 1.0 if set(kinds) <= {"bool"} else float(max(high.max(), 1))
        return Channel(name, kind, low=0.0, high=top)
    if kind == "clip":
        inside = [f.foreground[i] for f, i in zip(facts, own) if f.foreground.size]
        values = np.concatenate(inside)
        bounds = np.quantile(values, (0.005, 0.995)).tolist()
        clipped = np.clip(values, *bounds)
        return Channel(name, kind, low=bounds[0], high=bounds[1], mean=float(clipped.mean()), std=float(clipped.std()))
    floor = float(np.median([f.floor[i] for f, i in zip(facts, own)]))
    return Channel(name, "zscore", nonzero=floor > 0.3)
