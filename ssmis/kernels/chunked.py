# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast in torch, a few thousand voxels at a time, with its gradient in the same pass.

Similarities of one chunk, `(M, n)`, fit in the cache of a CPU core; nothing of size voxels x keys exists. Sums over the
keys of a class are products with a one-hot matrix, so no step looks at the values on the host.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssmis.kernels.reference import SHORTEST

CPU_CHUNK = 2**18  # similarities per chunk: 1 MB in float32
DEVICE_CHUNK = 2**25
_LARGEST_EXPONENT = 30.0  # exp(+-30), its ratios and sums over keys are far from the ends of float32


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
    directions, lengths = _direct(directions, 1) if normalize else (directions, torch.ones_like(directions[:, :1]))
    ordered, order = key_labels.masked_fill(~live, torch.iinfo(key_labels.dtype).max).sort()
    position = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).long()]).cumsum(0)
    classes = torch.empty_like(position).scatter(0, order, position).masked_fill(~live, -1)
    bound = int(position[-1]) + 1 if keys.device.type == "cpu" else len(keys)
    one_hot = (classes[:, None] == torch.arange(bound, device=keys.device)).to(dtype)
    return Keys(directions, lengths, one_hot, one_hot.sum(0), classes, ordered, position)


def classify(labels: Tensor, keys: Keys, *, ignore_index: int, denominator: str) -> tuple[Tensor, Tensor]:
    """Class position of each voxel `(B, V)`, and whether it counts: labelled, with a key (and a negative)."""
    slot = torch.searchsorted(keys.ordered, labels.contiguous()).clamp_max(len(keys.ordered) - 1)
    classes = keys.position[slot]
    counted = (keys.ordered[slot] == labels) & (labels != ignore_index) & (keys.counts > 0)[classes]
    if denominator == "negatives":
        counted &= (keys.counts < keys.counts.sum())[classes]
    return classes, counted


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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss of each voxel and, if `scale` is given, the gradients of `(scale * loss).sum()`.

    Args:
        features: `(B, E, V)`, any strides.
        classes: `(B, V)` class positions.
        counted: bool `(B, V)`; other voxels get loss and gradient zero, whatever their features.
        keys: what `prepare_keys` returned.
        temperature: divisor of the similarities.
        normalize: cosine similarity, else the plain inner product.
        denominator: "all" or "negatives".
        scale: `(B, V)`, zero where not counted.

    Returns:
        Losses `(B, V)`, gradient `(B, E, V)` and gradient `(M, E)` in the dtype of the prepared keys.
    """
    dtype = keys.directions.dtype
    narrow = normalize and 1 / temperature <= _LARGEST_EXPONENT
    to_similarity = keys.directions * ((math.log2(math.e) if narrow else 1.0) / temperature)
    to_feature = (keys.directions.T / temperature).contiguous()
    mean_key = (keys.one_hot / keys.counts.clamp_min(1)).T @ keys.directions / temperature  # (K, E)
    grad_features = torch.empty_like(features, dtype=dtype) if scale is not None else None
    grad_directions, grad_means = torch.zeros_like(keys.directions), torch.zeros_like(mean_key)
    losses = features.new_empty(classes.shape, dtype=dtype)
    of_class = torch.arange(len(keys.counts), device=features.device)[:, None]
    size = (CPU_CHUNK if features.device.type == "cpu" else DEVICE_CHUNK) // len(keys.directions)
    size = min(max(size, 64), max(features.shape[2], 1))
    for volume in range(len(features)):
        for part in (slice(start, start + size) for start in range(0, features.shape[2], size)):
            count, here = counted[volume, part], classes[volume, part]
            own = features[volume, :, part].to(dtype).masked_fill(~count, 0)  # (E, n)
            lengths = None
            if normalize:
                own, lengths = _direct(own, 0)
            member = (of_class == here).to(dtype)  # (K, n)
            similarity = to_similarity @ own  # (M, n)
            if denominator == "all":
                top, grad, factor = (_all_narrow if narrow else _all)(similarity, keys)
                loss = top - ((mean_key @ own) * member).sum(0)
            else:
                step = _negatives_narrow if narrow else _negatives
                loss, grad, factor = step(similarity, keys, here, member, scale is not None)
            losses[volume, part] = loss.masked_fill(~count, 0)
            if scale is None or grad_features is None:
                continue
            upstream = scale[volume, part].to(dtype)
            factor = (factor * upstream).masked_fill(~count, 0)
            grad_own = (to_feature @ grad).mul_(factor)  # (E, n)
            grad_directions.addmm_(grad, (own * factor).T)
            if denominator == "all":
                member = member * upstream
                grad_own.addmm_(mean_key.T, member, alpha=-1)
                grad_means.addmm_(member, own.T)
            if lengths is not None:
                grad_own.addcmul_(own, (own * grad_own).sum(0), value=-1).div_(lengths)
            grad_features[volume, :, part] = grad_own
    if scale is None:
        return losses, None, None
    grad_keys = (grad_directions - keys.one_hot @ (grad_means / keys.counts.clamp_min(1)[:, None])) / temperature
    if normalize:
        along = (keys.directions * grad_keys).sum(1, keepdim=True)
        grad_keys = (grad_keys - keys.directions * along) / keys.lengths
    return losses, grad_features, grad_keys.masked_fill((keys.classes < 0)[:, None], 0)


def _direct(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    lengths = vectors.square().sum(dim, keepdim=True).sqrt_()
    lengths = lengths.masked_fill_(lengths < SHORTEST, math.inf)  # no direction: zero, and no gradient
    return vectors / lengths, lengths


# Each returns the loss (or its first part), a matrix (M, n) and a factor (n,) whose product is the derivative of the
# loss by the similarities. The narrow forms know that no exponential leaves the range, so they need no maximum.


def _all_narrow(similarity: Tensor, keys: Keys) -> tuple[Tensor, Tensor, Tensor]:
    power = similarity.exp2_()
    total = (keys.one_hot.T @ power).sum(0)
    return total.log(), power, total.reciprocal()


def _all(similarity: Tensor, keys: Keys) -> tuple[Tensor, Tensor, Tensor]:
    similarity.masked_fill_((keys.classes < 0)[:, None], -math.inf)
    top = similarity.logsumexp(0)
    return top, (similarity - top).exp_(), torch.ones_like(top)


def _negatives_narrow(
    similarity: Tensor, keys: Keys, classes: Tensor, member: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    power = similarity.exp2_()
    # sums of the other classes, not total minus own: the difference would lose a small rest
    rest = ((keys.one_hot.T @ power) * (1 - member)).sum(0)
    share = 1 / (member * keys.counts[:, None]).sum(0).clamp_min(1)
    odds = rest / power
    terms, above = _log1p(odds)
    loss = ((keys.one_hot.T @ terms) * member).sum(0) * share
    if with_gradient:
        odds.div_(above)  # sigmoid(LSE of negatives - similarity)
        pushed = ((keys.one_hot.T @ odds) * member).sum(0)
        power.mul_(-pushed / rest.clamp_min(torch.finfo(rest.dtype).tiny))
        power.lerp_(odds, torch.mm(keys.one_hot, member, out=terms))  # exact: the weights are 0 and 1
    return loss, power, -share


def _negatives(
    similarity: Tensor, keys: Keys, classes: Tensor, member: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    positive = keys.classes[:, None] == classes
    negatives = similarity.masked_fill(positive | (keys.classes < 0)[:, None], -math.inf)
    rest = negatives.logsumexp(0)
    rest = rest.masked_fill(rest == -math.inf, 0)  # no negatives: not counted, but must stay a number
    share = 1 / (member * keys.counts[:, None]).sum(0).clamp_min(1)
    against = rest - similarity
    terms = against.clamp_min(0) + _log1p(against.abs().neg_().exp_())[0]  # softplus
    loss = (terms * positive).sum(0) * share
    if with_gradient:
        against.sigmoid_()
        pushed = (against * positive).sum(0)
        negatives.sub_(rest).exp_().mul_(-pushed)
        negatives = torch.where(positive, against, negatives)
    return loss, negatives, -share


def _log1p(values: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + values) and 1 + values; like `log1p` in accuracy, but vectorised on CPU (ten times as fast)."""
    above = values + 1
    lost = above - 1
    torch.sub(values, lost, out=lost).div_(above)  # what rounding took from the sum, to first order
    return above.log().add_(lost), above
