# SPDX-License-Identifier: Apache-2.0
"""From feature maps to class vectors: means, and random reliable samples of a fixed number."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmis._checks import check_choice, check_labels, check_mask
from ssmis._vectors import direction


def class_means(features: Tensor, labels: Tensor, *, classes: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Mean feature of each class over the voxels of the batch.

    $\mu_k = \frac{1}{n_k} \sum_{v : y_v = k} f_v$. The mean of a constant map does not depend on the mask's size.

    Args:
        features: `(B, E, *S)`; half precision is summed in float32.
        labels: integer `(B, *S)`; a voxel outside 0..K-1, such as -1, takes no part.
        classes: K.
        mask: bool `(B, *S)`; voxels outside take no part. None is all voxels.

    Returns:
        Means `(K, E)`, at least float32, and int64 counts `(K,)`.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Gradient: to features.
    Empty case: a class without a voxel has a zero row and count 0.
    """
    flat, flat_labels = _flatten(features, labels, mask, classes)
    with torch.autocast(features.device.type, enabled=False):
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        member = flat_labels[:, None] == torch.arange(classes, device=labels.device)[:, None]  # (B, K, V)
        used = flat.where(member.any(1, keepdim=True), 0)
        sums = (member.to(flat.dtype) @ used.transpose(1, 2)).sum(0)
    counts = member.sum((0, 2))
    return sums / counts.clamp_min(1)[:, None], counts


def class_prototypes(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    mask: Tensor | None = None,
    stride: int | Sequence[int] | None = None,
    normalize: bool = True,
    over: Literal["class", "volume"] = "class",
) -> tuple[Tensor, Tensor]:
    r"""Mean feature of each class of each volume, of features on any grid.

    $\mu_{bk} = \sum_v w_{bkv} f_{bv} / \sum_v w_{bkv}$ with w the share of a feature's cell that the class fills: the
    mean that the features would have at the resolution of the labels. The mean of a constant map does not depend on the
    mask's size.

    Args:
        features: `(B, E, *S')`, such as a coarse map of an encoder; half precision is summed in float32.
        labels: integer `(B, *S)` with as many axes; a voxel outside 0..K-1, such as -1, takes no part.
        classes: K.
        mask: bool `(B, *S)`; voxels outside take no part. None is all voxels.
        stride: voxels of a cell along every axis, or along each; the last cells may reach beyond the volume, as those
            of a net that pads at the end do. None: the cells divide each axis evenly.
        normalize: give means of length 1.
        over: what the sum is divided by: the voxels of the "class", or of the whole "volume", whose prototypes shrink
            with the class (seen in public code; with `normalize` the two are the same).

    Returns:
        Prototypes `(B, E, K)`, at least float32, and int64 labels `(B, K)`: the class, or -1 where it does not occur;
        as `prototype_contrast` takes them.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Gradient: to features.
    Empty case: a class without a voxel has a zero vector and label -1.
    """
    if features.ndim != labels.ndim + 1 or len(features) != len(labels) or not 3 <= features.ndim <= 5:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; expected (B, *S) with {len(features)} volumes and "
            f"{features.ndim - 2} spatial axes to match features {tuple(features.shape)}"
        )
    _check_features(features, classes)
    check_choice(over, ("class", "volume"), name="over")
    if mask is not None:
        check_mask(mask, labels.unsqueeze(1), maps_name="labels")
        labels = labels.where(mask, -1)
    if labels.is_floating_point():
        raise ValueError(f"labels has dtype {labels.dtype}; expected integer class indices")
    cells = float(features.shape[2:].numel())
    if stride is not None:
        cell = tuple(stride) if isinstance(stride, Sequence) else (stride,) * (labels.ndim - 1)
        fits = len(cell) == labels.ndim - 1 and all(type(own) is int and own >= 1 for own in cell)
        if not fits or tuple(-(-n // own) for n, own in zip(labels.shape[1:], cell)) != features.shape[2:]:
            raise ValueError(
                f"stride is {stride} for labels {tuple(labels.shape)} and features {tuple(features.shape)}; expected "
                "voxels of a cell along each axis, with as many cells as cover the labels"
            )
        beyond = [own * count - n for n, own, count in zip(labels.shape[1:], cell, features.shape[2:])]
        cells = labels.shape[1:].numel() / math.prod(cell)
        labels = F.pad(labels, [end for length in reversed(beyond) for end in (0, length)], value=-1)
    index = torch.arange(classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[features.ndim - 3]
    with torch.autocast(features.device.type, enabled=False):
        flat = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))
        member = (labels.unsqueeze(1) == index).to(flat.dtype)
        share = pool(member, features.shape[2:]).flatten(2)  # (B, K, V')
        sums = flat.where(share.sum(1, keepdim=True) > 0, 0) @ share.transpose(1, 2)  # (B, E, K)
        total = share.sum(2)
        count = total.where(total > 0, 1) if over == "class" else torch.full_like(total, cells or 1.0)
        means = sums / count.unsqueeze(1)
    vectors = direction(means, 1) if normalize else means
    return vectors, torch.arange(classes, device=labels.device).where(total > 0, -1)


@torch.no_grad()
def sample_per_class(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    per_class: int = 32,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw at most `per_class` random voxels of each class from each volume; the output's size never changes.

    Every voxel of a class is as likely as any other, and those drawn are spread over the volume: one of each of
    `per_class` equal parts of the class, in the order of the voxels, from a random start.

    Args:
        features: `(B, E, *S)`.
        labels: integer `(B, *S)`; a voxel outside 0..K-1, such as -1, is not drawn.
        classes: K.
        per_class: vectors a class and volume, at least 1.
        mask: bool `(B, *S)`; voxels outside are not drawn. None is all voxels.
        generator: of the draw; None is torch's global generator.

    Returns:
        L2-normalised vectors `(B * K * per_class, E)`, at least float32, in the order volume, class, slot, and int64
        labels `(B * K * per_class,)`; an unused slot is a zero vector with label -1.

    Raises:
        ValueError: shapes or dtypes that do not fit, or per_class < 1.

    Gradient: none, the vectors are detached.
    Empty case: a class without a voxel leaves all its slots unused.
    """
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; expected at least 1")
    flat, flat_labels = _flatten(features, labels, mask, classes)
    device = flat.device
    member = flat_labels[:, None] == torch.arange(classes, device=device)[:, None]  # (B, K, V)
    voxels, used = _spread_members(member, per_class, generator)
    index = voxels.flatten(1)[:, None].expand(-1, flat.shape[1], -1)  # (B, E, K * per_class)
    vectors = flat.gather(2, index).transpose(1, 2).unflatten(1, (classes, per_class))  # (B, K, per_class, E)
    vectors = F.normalize(vectors.to(torch.promote_types(flat.dtype, torch.float32)), dim=3).where(used[..., None], 0)
    vector_labels = torch.arange(classes, device=device)[:, None].where(used, -1)
    return vectors.flatten(0, 2), vector_labels.flatten()


def _spread_members(member: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Places `(..., count)` of distinct members of `(..., V)`, each as likely as any other, and which of them exist.

    One is drawn from each of `count` parts of the list of members, which begins anywhere and goes round.
    """
    running = member.cumsum(-1, dtype=torch.int32)
    total = running[..., -1:].long()  # (..., 1)
    device = generator.device if generator else member.device
    draws = torch.rand(*member.shape[:-1], count + 1, generator=generator, device=device, dtype=torch.float64)
    draws = draws.to(member.device)
    order = torch.arange(count, device=member.device)
    start, end = order * total // count, (order + 1) * total // count
    rank = start + (draws[..., :-1] * (end - start)).long().minimum((end - start - 1).clamp_min(0))
    rank = (rank + (draws[..., -1:] * total).long()) % total.clamp_min(1)
    rank = rank.where(total >= count, order)  # too few: all of them
    places = torch.searchsorted(running, (rank + 1).int())
    return places.clamp_max(member.shape[-1] - 1), order < total


def _flatten(features: Tensor, labels: Tensor, mask: Tensor | None, classes: int) -> tuple[Tensor, Tensor]:
    _check_features(features, classes)
    check_labels(labels, features, maps_name="features")
    check_mask(mask, features, maps_name="features")
    if mask is not None:
        labels = labels.where(mask, -1)
    return features.flatten(2), labels.flatten(1)


def _check_features(features: Tensor, classes: int) -> None:
    if features.ndim < 3 or not features.is_floating_point():
        raise ValueError(
            f"features is {features.dtype} of shape {tuple(features.shape)}; expected floating point (B, E, *S)"
        )
    if classes < 1:
        raise ValueError(f"classes is {classes}; expected at least 1")
