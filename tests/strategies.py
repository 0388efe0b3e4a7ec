# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for volumes: hypothesis draws sizes and a seed, torch fills the tensors."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

CLASSES, BATCHES, DIMS = st.integers(2, 5), st.integers(1, 3), st.sampled_from([2, 3])


def make_logits(seed: int, batch: int, classes: int, size: tuple[int, ...], scale: float = 3.0) -> Tensor:
    """Normal logits `(B, K, *S)` from a seed."""
    return scale * torch.randn(batch, classes, *size, generator=torch.Generator().manual_seed(seed))


def make_labels(seed: int, batch: int, classes: int, size: tuple[int, ...], low: int = 0) -> Tensor:
    """Uniform labels `(B, *S)` from a seed; `low=-1` leaves some voxels without a label."""
    return torch.randint(low, classes, (batch, *size), generator=torch.Generator().manual_seed(seed + 1))


def make_mask(seed: int, batch: int, size: tuple[int, ...]) -> Tensor:
    """Random bool mask `(B, *S)` from a seed, about half true."""
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(seed + 2)) < 0.5


def sizes(dims=DIMS, low: int = 1, high: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Spatial sizes in 2-D and 3-D."""
    return dims.flatmap(lambda d: st.tuples(*[st.integers(low, high)] * d))


@st.composite
def logits(draw, classes=CLASSES, batch=BATCHES, dims=DIMS, scale=3.0):
    """Logits `(B, K, *S)`."""
    return make_logits(draw(st.integers(0, 2**31)), draw(batch), draw(classes), draw(sizes(dims)), scale)


@st.composite
def logits_and_labels(draw, classes=CLASSES, batch=BATCHES, dims=DIMS, low=0):
    """Logits `(B, K, *S)` and labels `(B, *S)`."""
    seed, b, k, size = draw(st.integers(0, 2**31)), draw(batch), draw(classes), draw(sizes(dims))
    return make_logits(seed, b, k, size), make_labels(seed, b, k, size, low)


@st.composite
def pair_of_logits(draw, classes=CLASSES, batch=BATCHES, dims=DIMS):
    """Two logits tensors of one shape."""
    seed, b, k, size = draw(st.integers(0, 2**31)), draw(batch), draw(classes), draw(sizes(dims))
    return make_logits(seed, b, k, size), make_logits(seed + 7, b, k, size)


@st.composite
def supervised_pair(draw, classes=CLASSES, batch=BATCHES, dims=DIMS):
    """Two logits tensors `(B, K, *S)` in float64, labels with gaps and a mask `(B, *S)`, for brute-force twins."""
    seed, b, k, size = draw(st.integers(0, 2**31)), draw(batch), draw(classes), draw(sizes(dims, high=4))
    return (
        make_logits(seed, b, k, size).double(),
        make_logits(seed + 7, b, k, size).double(),
        make_labels(seed, b, k, size, low=-1),
        make_mask(seed, b, size),
    )


def voxels(maps: Tensor) -> list[list[list[float]]]:
    """`(B, K, *S)` as nested lists: volume, voxel, class."""
    return maps.flatten(2).transpose(1, 2).tolist()


def softmax(z: list[float]) -> list[float]:
    """Softmax of one voxel in plain Python."""
    top = max(z)
    e = [math.exp(a - top) for a in z]
    return [a / sum(e) for a in e]


def mean(values: list[float]) -> float:
    """Mean of a list; 0 of an empty one, as every masked mean here."""
    return math.fsum(values) / max(1, len(values))


def mean_over_volumes(values: list[list[float]], mask: Tensor) -> float:
    """Brute-force twin of the reduction "mean": over the voxels in the mask, then over volumes."""
    return mean(
        [mean([x for x, keep in zip(volume, inside) if keep]) for volume, inside in zip(values, mask.flatten(1))]
    )
