# SPDX-License-Identifier: Apache-2.0
"""Contrast of a few class prototypes with the contents of a memory bank."""

from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmis._checks import check_labels, check_range
from ssmis._vectors import direction
from ssmis.losses._reduce import Reduction, reduce_volumes
from ssmis.losses._voxels import upcast
from ssmis.registry import LOSSES, Example


def prototype_contrast(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float = 0.3,
    normalize: bool = True,
    ignore_index: int = -1,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""InfoNCE of prototypes: the positive is the mean of the class's keys, every key of another class a negative.

    $\ell_v = \log \Bigl(1 + \sum_{n : y_n \ne y_v} e^{(s(f_v, k_n) - s(f_v, m_{y_v})) / \tau}\Bigr)$ with
    $m_k$ the mean of the keys of class k and s the cosine, or the inner product.

    It makes a prototypes x keys matrix: for a few prototypes a volume, such as `class_prototypes` gives. For every
    voxel there is `voxel_contrast`.

    Args:
        features: `(B, E, *S)`, the prototypes of each volume along `*S`.
        labels: integer `(B, *S)`, the class of each, or `ignore_index`.
        keys: `(M, E)`, from a bank; detached here.
        key_labels: integer `(M,)`; a slot with `ignore_index` takes no part.
        temperature: $\tau$ > 0.
        normalize: cosine of features, keys and means, else their inner product.
        ignore_index: label of prototypes and slots that take no part.
        reduction: "mean" is over the prototypes of each volume, then over volumes; "pooled" is over all prototypes of
            the batch; "none" gives `(B, *S)`, zero where a prototype is skipped.

    Returns:
        A scalar >= 0, or `(B, *S)` with "none"; float32, or float64 for float64 features.

    Raises:
        ValueError: shapes or dtypes do not match, `temperature` is not positive or `reduction` is unknown.

    Gradient: to `features` only.
    Empty case: a prototype whose class has no key, or that finds no key of another class, is skipped; a volume without
        a prototype contributes an attached zero.
    Paper: the intra-class enhancement of Huang et al., IEEE TIP 2025, arXiv 2508.09014; the form follows the authors'
        public code. Differs from it: cosines, an empty class is skipped.

    >>> prototype_contrast(torch.eye(2)[None], torch.tensor([[0, 1]]), torch.eye(2), torch.tensor([0, 1]))
    tensor(0.0351)
    """
    if features.ndim < 3 or not features.is_floating_point():
        raise ValueError(
            f"features is {features.dtype} of shape {tuple(features.shape)}; expected floating point (B, E, *S)"
        )
    check_labels(labels, features, maps_name="features")
    if keys.ndim != 2 or keys.shape[1] != features.shape[1] or not keys.is_floating_point():
        raise ValueError(
            f"keys is {keys.dtype} of shape {tuple(keys.shape)}; "
            f"expected floating point (M, {features.shape[1]}) to match features {tuple(features.shape)}"
        )
    if key_labels.shape != keys.shape[:1] or key_labels.is_floating_point():
        raise ValueError(
            f"key_labels is {key_labels.dtype} of shape {tuple(key_labels.shape)}; "
            f"expected integer ({len(keys)},) to match keys {tuple(keys.shape)}"
        )
    check_range(temperature, 0, inf, name="temperature", open_low=True)
    with torch.autocast(features.device.type, enabled=False):
        vectors = upcast(features).flatten(2).transpose(1, 2)  # (B, V, E)
        used = key_labels != ignore_index
        stored = keys.detach().to(vectors.dtype).where(used[:, None], 0)
        if normalize:
            vectors, stored = direction(vectors, 2), direction(stored, 1)
        own = labels.flatten(1)  # (B, V)
        same = (own.unsqueeze(2) == key_labels) & used  # (B, V, M)
        other = (own.unsqueeze(2) != key_labels) & used
        means = (same.to(stored.dtype) @ stored) / same.sum(2, keepdim=True).clamp_min(1)
        if normalize:
            means = direction(means, 2)
        positive = (vectors * means).sum(2, keepdim=True)
        gaps = (vectors @ stored.T - positive) / temperature
        # the floor keeps a prototype without a negative finite; it is skipped below
        losses = F.softplus(gaps.masked_fill(~other, torch.finfo(gaps.dtype).min).logsumexp(2))
    counted = (own != ignore_index) & same.any(2) & other.any(2)
    return reduce_volumes(losses.view(labels.shape), counted.view(labels.shape), reduction)


@LOSSES.register(
    "prototype_contrast",
    example=Example(
        call={"features": "features", "labels": "labels", "keys": "keys", "key_labels": "key_labels"},
        student=("features",),
        teacher=("keys",),
    ),
)
class PrototypeContrast(nn.Module):
    """InfoNCE of class prototypes with a bank; see `prototype_contrast`."""

    def __init__(
        self,
        *,
        temperature: float = 0.3,
        normalize: bool = True,
        ignore_index: int = -1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, features: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor) -> Tensor:
        """Compute the loss."""
        return prototype_contrast(
            features,
            labels,
            keys,
            key_labels,
            temperature=self.temperature,
            normalize=self.normalize,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
