# SPDX-License-Identifier: Apache-2.0
"""Predictive entropy of each voxel, over log K."""

import math

import torch
from torch import Tensor, nn

from ssmis._checks import check_class_maps
from ssmis.registry import UNCERTAINTY, Example


def entropy(logits: Tensor) -> Tensor:
    r"""Entropy of the softmax over classes, divided by its maximum.

    $u_v = -\frac{1}{\log K} \sum_k p_{vk} \log p_{vk}$ with $p = \mathrm{softmax}(z)$.

    Args:
        logits: `(B, K, *S)`; half precision is computed in float32.

    Returns:
        `(B, *S)` in [0, 1], float32 (float64 for float64 logits); finite for logits of +-1e4.

    Raises:
        ValueError: logits are not `(B, K, *S)` with K >= 2.

    Gradient: to logits.

    >>> entropy(torch.zeros(1, 3, 1)), entropy(torch.tensor([[[1e4], [-1e4]]]))
    (tensor([[1.]]), tensor([[0.]]))
    """
    check_class_maps(logits=logits)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    return ((log_p.exp() * -log_p).sum(1) / math.log(logits.shape[1])).clamp(0, 1)


def entropy_of_probs(probs: Tensor) -> Tensor:
    r"""Entropy of given probabilities over classes, divided by its maximum; $0 \log 0 = 0$.

    Args:
        probs: `(B, K, *S)`, non-negative, sum 1 over K; half precision is computed in float32.

    Returns:
        `(B, *S)` in [0, 1], float32 (float64 for float64 probabilities).

    Raises:
        ValueError: probs are not `(B, K, *S)` with K >= 2.

    Gradient: to probs; finite where a probability is 0.
    """
    check_class_maps(probs=probs)
    p = probs.to(torch.promote_types(probs.dtype, torch.float32))
    return (-(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(1) / math.log(p.shape[1])).clamp(0, 1)


@UNCERTAINTY.register("entropy", example=Example(call={"logits": "logits"}, student=("logits",)))
class Entropy(nn.Module):
    """Entropy of logits; see `entropy`."""

    def forward(self, logits: Tensor) -> Tensor:
        """See `entropy`."""
        return entropy(logits)


@UNCERTAINTY.register("entropy_of_probs", example=Example(call={"probs": "probs"}, student=("probs",)))
class EntropyOfProbs(nn.Module):
    """Entropy of probabilities; see `entropy_of_probs`."""

    def forward(self, probs: Tensor) -> Tensor:
        """See `entropy_of_probs`."""
        return entropy_of_probs(probs)
