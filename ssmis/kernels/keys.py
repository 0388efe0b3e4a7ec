# SPDX-License-Identifier: Apache-2.0
"""Keys of a voxel contrast, normalised and numbered by class once a call, and the class of each voxel among them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssmis._vectors import SHORTEST


class Keys(NamedTuple):
    """Keys prepared once a call.

    Attributes:
        directions: `(M, E)`, normalised if asked for, zero for a slot that takes no part.
        lengths: `(M, 1)` divisor between keys and directions; infinite where no gradient passes.
        one_hot: `(M, K)` class of each key, a zero row for a slot that takes no part.
        counts: `(K,)` keys of each class.
        classes: `(M,)` class position of each key, -1 for a slot that takes no part.
        ordered: `(M,)` key labels in rising order; `position`: their class positions. They translate voxel labels.
    """

    directions: Tensor
    lengths: Tensor
    one_hot: Tensor
    counts: Tensor
    classes: Tensor
    ordered: Tensor
    position: Tensor


def prepare_keys(keys: Tensor, key_labels: Tensor, *, ignore_index: int, normalize: bool, dtype: torch.dtype) -> Keys:
    """Normalise keys `(M, E)` and number their classes 0..K-1; on a device K is bounded by M, to spare a host sync."""
    live = key_labels != ignore_index
    directions = keys.to(dtype).masked_fill(~live[:, None], 0)
    directions, lengths = direct(directions, 1) if normalize else (directions, torch.ones_like(directions[:, :1]))
    ordered, order = key_labels.masked_fill(~live, torch.iinfo(key_labels.dtype).max).sort()
    position = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).long()]).cumsum(0)
    classes = torch.empty_like(position).scatter(0, order, position).masked_fill(~live, -1)
    bound = int(position[-1]) + 1 if keys.device.type == "cpu" else len(keys)
    one_hot = (classes[:, None] == torch.arange(bound, device=keys.device)).to(dtype)
    return Keys(directions, lengths, one_hot, one_hot.sum(0), classes, ordered, position)


def classify(labels: Tensor, keys: Keys, *, ignore_index: int, denominator: str) -> tuple[Tensor, Tensor]:
    """Class position of each voxel `(B, V)`, and whether it counts: labelled, with a key (and a negative)."""
    countable = keys.counts > 0
    if denominator == "negatives":
        countable = countable & (keys.counts < keys.counts.sum())
    if labels.device.type == "cpu":
        return _compare(labels, keys, countable)
    classes, found = _search(labels, keys, countable)
    return classes, found & (labels != ignore_index)


def _compare(labels: Tensor, keys: Keys, countable: Tensor) -> tuple[Tensor, Tensor]:
    # one comparison a class: faster than a search, and the classes are few; the label of no live key is ignore_index
    classes = torch.full(labels.shape, -1, dtype=torch.int32)
    first = torch.searchsorted(keys.position, torch.arange(len(keys.counts)))
    for position in countable.nonzero().flatten().tolist():
        classes.add_(labels == keys.ordered[first[position]], alpha=position + 1)
    return classes, classes >= 0


def _search(labels: Tensor, keys: Keys, countable: Tensor) -> tuple[Tensor, Tensor]:
    # no look at the values on the host
    slot = torch.searchsorted(keys.ordered, labels.contiguous()).clamp_max(len(keys.ordered) - 1)
    classes = keys.position[slot]
    return classes, (keys.ordered[slot] == labels) & countable[classes]


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Zero, even in place of NaN, where the mask is not set."""
    integers = {torch.float32: torch.int32, torch.float64: torch.int64}.get(values.dtype)
    if values.device.type != "cpu" or integers is None or values.layout != torch.strided:
        return values.where(mask, 0)
    return (values.view(integers) * mask).view(values.dtype)  # a random mask costs `where` 8 times as much


def direct(
    vectors: Tensor, dim: int, scratch: Tensor | None = None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors over their lengths, and the lengths; shorter than 1e-12: zero, and an infinite length (no gradient).

    `scratch` and `out`, of the vectors' shape, are memory to use for squares and result.
    """
    lengths = torch.mul(vectors, vectors, out=scratch).sum(dim, keepdim=True).sqrt_()
    lengths = lengths.masked_fill_(lengths < SHORTEST, math.inf)
    return torch.div(vectors, lengths, out=out), lengths


def keys_gradient(by_directions: Tensor, keys: Keys, *, normalize: bool) -> Tensor:
    """Gradient `(M, E)` by the keys, given that by their directions; zero for a slot that takes no part."""
    if normalize:
        along = (keys.directions * by_directions).sum(1, keepdim=True)
        by_directions = (by_directions - keys.directions * along) / keys.lengths
    return by_directions.masked_fill((keys.classes < 0)[:, None], 0)
