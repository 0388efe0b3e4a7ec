# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast in torch on a device without a kernel: chunks of voxels, classes told apart by masks.

Nothing of size voxels x keys exists, and no step looks at the values on the host.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmis.kernels.keys import Keys, direct, keys_gradient

CHUNK = 2**25  # similarities


def contrast(
    features: Tensor,
    classes: Tensor,
    counted: Tensor,
    keys: Keys,
    *,
    temperature: float,
    normalize: bool,
    denominator: str,
    scale: Tensor | None = None,
    with_keys: bool = True,
    storage: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss of each voxel and the gradients of `(scale * loss).sum()`; see `ssmis.kernels.chunked.contrast`."""
    dtype = keys.directions.dtype
    losses = features.new_empty(classes.shape, dtype=dtype)
    grad_features = torch.empty_like(features, dtype=storage or dtype) if scale is not None else None
    grad_directions = torch.zeros_like(keys.directions)
    scaled, unused = keys.directions / temperature, (keys.classes < 0)[:, None]
    size = min(max(CHUNK // len(keys.directions), 64), max(features.shape[2], 1))
    for volume in range(len(features)):
        for part in (slice(start, start + size) for start in range(0, features.shape[2], size)):
            count, here = counted[volume, part], classes[volume, part]
            own = features[volume, :, part].to(dtype).masked_fill(~count, 0)  # (E, n)
            own, lengths = direct(own, 0) if normalize else (own, None)
            step = _all if denominator == "all" else _negatives
            loss, by_similarity = step(scaled @ own, keys.classes[:, None] == here, unused)
            losses[volume, part] = loss.masked_fill(~count, 0)
            if scale is None or grad_features is None:
                continue
            by_similarity.mul_(scale[volume, part].to(dtype)).masked_fill_(~count, 0)
            grad_own = scaled.T @ by_similarity
            if with_keys:
                grad_directions.addmm_(by_similarity, own.T, alpha=1 / temperature)
            if lengths is not None:
                grad_own.addcmul_(own, (own * grad_own).sum(0), value=-1).div_(lengths)
            grad_features[volume, :, part] = grad_own
    if scale is None:
        return losses, None, None
    return losses, grad_features, keys_gradient(grad_directions, keys, normalize=normalize)


# Each returns the loss (n,) and its derivative by the similarities (M, n).


def _all(similarity: Tensor, positive: Tensor, unused: Tensor) -> tuple[Tensor, Tensor]:
    share = _share(positive, similarity)
    top = similarity.masked_fill(unused, -math.inf).logsumexp(0)
    return top - (similarity * share).sum(0), (similarity - top).exp_().masked_fill_(unused, 0).sub_(share)


def _negatives(similarity: Tensor, positive: Tensor, unused: Tensor) -> tuple[Tensor, Tensor]:
    negatives = similarity.masked_fill(positive | unused, -math.inf)
    rest = negatives.logsumexp(0)
    rest = rest.masked_fill(rest == -math.inf, 0)  # no negatives: not counted, but must stay a number
    against = rest - similarity
    share = _share(positive, similarity)
    loss = (F.softplus(against, threshold=80) * share).sum(0)
    pushed = against.sigmoid_().mul_(share)
    return loss, negatives.sub_(rest).exp_().mul_(pushed.sum(0)).sub_(pushed)


def _share(positive: Tensor, similarity: Tensor) -> Tensor:
    weight = positive.to(similarity.dtype)
    return weight / weight.sum(0).clamp_min(1)
