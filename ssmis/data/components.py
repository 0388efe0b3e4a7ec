# SPDX-License-Identifier: Apache-2.0
"""The largest connected component of each class of a label map, on the CPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmis._optional import require


def largest_component(labels: Tensor, *, classes: Sequence[int]) -> Tensor:
    """Keep the largest face-connected component of each class; the rest of the class becomes background (0).

    It looks at the values on the host, one copy of a byte a voxel there and back, and searches the box around each
    class only.

    Args:
        labels: integer `(*S)`.
        classes: the foreground classes to clean; others stay as they are.

    Returns:
        A new tensor of the same dtype on the same device. Of components of equal size the first in memory order stays.

    Raises:
        ValueError: the labels are not integers, or 0 is among the classes.
    """
    return largest_components(labels[None], classes=classes)[0]


def largest_components(labels: Tensor, *, classes: Sequence[int]) -> Tensor:
    """`largest_component` of each volume of a batch `(B, *S)`, such as pseudo-labels within a training step.

    Args:
        labels: integer `(B, *S)`.
        classes: see `largest_component`.

    Returns:
        A new tensor of the same dtype on the same device.

    Raises:
        ValueError: see `largest_component`.

    Gradient: none.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels has dtype {labels.dtype}; expected integer class indices")
    if 0 in classes:
        raise ValueError(f"classes is {tuple(classes)}; expected foreground classes, without the background 0")
    found = labels.detach().clone()
    if not classes:
        return found
    dtype = torch.uint8 if len(classes) < 256 else torch.int32
    keys = torch.zeros(labels.shape, dtype=dtype, device=labels.device)  # position in `classes`, from 1
    for position, label in enumerate(classes, start=1):
        keys.masked_fill_(labels == label, position)
    volumes = keys.cpu().numpy()
    islands = np.zeros(volumes.shape, dtype=bool)
    for volume, island in zip(volumes, islands):
        for position in range(1, len(classes) + 1):
            _mark_islands(volume == position, island)
    return found.masked_fill_(torch.from_numpy(islands).to(labels.device), 0)


def pieces_of(components: bool | Sequence[int], *, classes: int) -> Sequence[int]:
    """Foreground classes of which the largest component is to be kept: all, none, or those named.

    Args:
        components: True for all, False for none, or class indices.
        classes: K, with the background.

    Raises:
        ValueError: a class that is no foreground class.
    """
    if isinstance(components, bool):
        return range(1, classes) if components else ()
    listed = isinstance(components, Sequence) and not isinstance(components, str)
    if not listed or any(type(index) is not int or not 0 < index < classes for index in components):
        told = f"true, false, or a list of classes from 1 to {classes - 1}"
        raise ValueError(f"components is {components!r}; expected {told}, in the order of their label values")
    return tuple(components)


def largest_sizes(labels: NDArray[Any], *, values: Sequence[int]) -> dict[int, int]:
    """Voxels of the largest component of each label value in `(*S)`; 0 of a value that is not there.

    Voxels that are not annotated (below 0) part nothing: what is annotated on every fifth slice may be one piece.
    """
    ndimage = require("scipy.ndimage", extra="medical", purpose="the largest component")
    found = {}
    for value in values:
        inside = labels == value
        box = bounding_box(inside)
        if box is None:
            found[int(value)] = 0
            continue
        components, _ = ndimage.label(inside[box] | (labels[box] < 0))
        found[int(value)] = int(np.bincount(components[inside[box]]).max())
    return found


def _mark_islands(inside: NDArray[Any], islands: NDArray[Any]) -> None:
    """Set `islands` where a voxel of `inside` is not in its largest component."""
    ndimage = require("scipy.ndimage", extra="medical", purpose="the largest component")
    box = bounding_box(inside)
    if box is None:
        return
    cut = inside[box]
    components, count = ndimage.label(cut)
    if count > 1:
        sizes = np.bincount(components.ravel())[1:]
        islands[box] |= cut & (components != sizes.argmax() + 1)


def bounding_box(inside: NDArray[Any]) -> tuple[slice, ...] | None:
    """The smallest box around the true voxels; None if there are none."""
    box = []
    for axis in range(inside.ndim):
        line = np.flatnonzero(inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis)))
        if len(line) == 0:
            return None
        box.append(slice(int(line[0]), int(line[-1]) + 1))
    return tuple(box)
