# SPDX-License-Identifier: Apache-2.0
"""The meaning of voxel contrast: one voxel at a time, plain autograd, for small sizes and for tests."""

import torch
from torch import Tensor

from ssmis._vectors import direction


def voxel_losses(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
) -> tuple[Tensor, Tensor]:
    """Loss of each voxel and whether it counts; see `ssmis.kernels.voxel_contrast` for the formulas.

    Args:
        features: `(B, E, V)`.
        labels: `(B, V)`.
        keys: `(M, E)`.
        key_labels: `(M,)`.
        temperature: divisor of the similarities.
        ignore_index: label of voxels and keys that take no part.
        normalize: cosine similarity, else the plain inner product.
        denominator: "all" or "negatives".

    Returns:
        Losses `(B, V)`, zero where the voxel does not count, and bool `(B, V)`.
    """
    dtype = torch.promote_types(torch.promote_types(features.dtype, keys.dtype), torch.float32)
    features, keys = features.to(dtype), keys.to(dtype)
    live = key_labels != ignore_index
    keys, key_labels = keys[live], key_labels[live]
    positive = labels[:, :, None] == key_labels  # (B, V, M)
    counted = (labels != ignore_index) & positive.any(2)
    if denominator == "negatives":
        counted = counted & ~positive.all(2)
    features = features.where(counted[:, None], 0)  # elsewhere may stand anything, and no gradient goes there
    if normalize:
        features, keys = direction(features, 1), direction(keys, 1)
    zero = (0 * features).sum() + (0 * keys).sum()
    losses = []
    for volume, volume_counted, volume_positive in zip(features, counted, positive):
        for feature, voxel_counted, own in zip(volume.T, volume_counted, volume_positive):
            if not voxel_counted:
                losses.append(zero)
                continue
            similarity = keys @ feature / temperature  # (M,)
            losses.append(_all(similarity, own) if denominator == "all" else _negatives(similarity, own))
    stacked = torch.stack(losses) if losses else zero.expand(0)
    return stacked.view(labels.shape), counted


def _all(similarity: Tensor, positive: Tensor) -> Tensor:
    return similarity.logsumexp(0) - similarity[positive].mean()


def _negatives(similarity: Tensor, positive: Tensor) -> Tensor:
    against = similarity[~positive].logsumexp(0) - similarity[positive]
    return torch.logaddexp(against, torch.zeros_like(against)).mean()


def reduce(losses: Tensor, counted: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Weighted "mean" over the voxels that count, weighted "sum", or "none"; nothing to count is an attached zero."""
    own = torch.ones_like(losses) if weight is None else weight.to(losses.dtype)
    own = own.where(counted, 0)
    if reduction == "none":
        return losses * own
    total = own.sum() if reduction == "mean" else own.new_ones(())
    return (losses * own).sum() / total.where(total > 0, 1)
