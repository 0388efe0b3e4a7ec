# SPDX-License-Identifier: Apache-2.0
"""Label maps from slabs of probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmis.data.plan import Plan
from ssmis.engine.postprocess import largest_component
from ssmis.engine.sliding import Slabs
from ssmis.uncertainty import entropy_of_probs

PIECE_BYTES = 2**23  # of probabilities whose entropy is taken at once


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmented image.

    Attributes:
        labels: `(*S)`, unsigned integers: the label values of the training files, else class indices.
        uncertainty: float32 `(*S)` in [0, 1], normalised entropy; None if not asked for.
        probs: float32 `(K, *S)`; None likewise.
    """

    labels: NDArray[Any]
    uncertainty: NDArray[np.float32] | None = None
    probs: NDArray[np.float32] | None = None


@torch.no_grad()
def collect(
    slabs: Slabs,
    axis: int,
    size: tuple[int, ...],
    *,
    plan: Plan | None,
    uncertainty: bool,
    probs: bool | NDArray[np.float32],
    largest: bool,
) -> Segmentation:
    """Take the labels, and what else is asked for, from slabs along `axis` of a volume of `size`."""
    labels = torch.zeros(size, dtype=torch.uint8)
    unsure = torch.zeros(size) if uncertainty else None
    out = probs if isinstance(probs, np.ndarray) else None
    classes = 0
    for first, slab in slabs:
        classes, count = len(slab), slab.shape[axis + 1]
        if classes > 256:
            raise ValueError(f"the model has {classes} classes; expected at most 256")
        _argmax(slab, labels.narrow(axis, first, count))
        if unsure is not None:
            unsure.narrow(axis, first, count).copy_(entropy_in_pieces(slab))
        if out is None and probs is True:
            out = np.empty((classes, *size), dtype=np.float32)
        if out is not None:
            where = [slice(None)] * (len(size) + 1)
            where[axis + 1] = slice(first, first + count)
            out[tuple(where)] = slab.cpu().numpy()
    if largest:
        labels = largest_component(labels, classes=range(1, classes))
    values = labels.numpy() if plan is None else plan.values_of(labels.numpy())
    return Segmentation(values, None if unsure is None else unsure.numpy(), out)


def entropy_in_pieces(probs: Tensor) -> Tensor:
    """Normalised entropy of `(K, *S)`, some rows at a time: of all at once it would take thrice their memory."""
    found = torch.empty(probs.shape[1:], device=probs.device)
    rows = max(1, PIECE_BYTES * probs.shape[1] // max(probs.numel() * probs.element_size(), 1))
    for part, out in zip(probs.split(rows, dim=1), found.split(rows)):
        out.copy_(entropy_of_probs(part[None])[0])
    return found


def _argmax(probs: Tensor, out: Tensor) -> None:
    """Class of the greatest of `(K, *S)`, the first of equals; classes one by one read memory in order."""
    best, labels = probs[0], torch.zeros(out.shape, dtype=torch.uint8, device=probs.device)
    for index in range(1, len(probs)):
        labels.masked_fill_(probs[index] > best, index)
        best = torch.maximum(best, probs[index]) if index + 1 < len(probs) else best
    out.copy_(labels)
