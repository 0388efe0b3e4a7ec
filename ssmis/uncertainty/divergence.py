# SPDX-License-Identifier: Apache-2.0
"""How far two predictions are apart at each voxel."""

import math

import torch
from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_same_shape
from ssmis.registry import UNCERTAINTY, Example

_PAIR = Example(call={"logits_p": "logits", "logits_q": "logits"}, student=("logits_p", "logits_q"))


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence over classes, in nats.

    $D_v = \sum_k p_{vk} (\log p_{vk} - \log q_{vk})$ with $p, q$ the two softmax maps. It does not rise when `logits_q`
    moves on a straight line to `logits_p`.

    Args:
        logits_p: `(B, K, *S)`, the reference; half precision is computed in float32.
        logits_q: `(B, K, *S)`, the approximation.

    Returns:
        `(B, *S)`, at least 0 up to rounding (about -2e-7 in float32), unbounded above.

    Raises:
        ValueError: the shapes differ or are not `(B, K, *S)` with K >= 2.

    Gradient: to both; nothing is detached here, a caller with a teacher detaches it.
    """
    log_p, log_q = _log_softmax_pair(logits_p, logits_q)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def js_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence over classes, over log 2; symmetric and bounded.

    $J_v = \frac{1}{2 \log 2} [\mathrm{KL}(p_v \| m_v) + \mathrm{KL}(q_v \| m_v)]$ with $m = (p + q) / 2$.

    Args:
        logits_p: `(B, K, *S)`; half precision is computed in float32.
        logits_q: `(B, K, *S)`.

    Returns:
        `(B, *S)` in [0, 1].

    Raises:
        ValueError: the shapes differ or are not `(B, K, *S)` with K >= 2.

    Gradient: to both; nothing is detached here.
    """
    log_p, log_q = _log_softmax_pair(logits_p, logits_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    both = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return (both.sum(1) / (2 * math.log(2))).clamp(0, 1)


def _log_softmax_pair(logits_p: Tensor, logits_q: Tensor) -> tuple[Tensor, Tensor]:
    check_class_maps(logits_p=logits_p)
    check_same_shape(logits_p=logits_p, logits_q=logits_q)
    dtype = torch.promote_types(torch.promote_types(logits_p.dtype, logits_q.dtype), torch.float32)
    return logits_p.to(dtype).log_softmax(1), logits_q.to(dtype).log_softmax(1)


@UNCERTAINTY.register("kl_divergence", example=_PAIR)
class KLDivergence(nn.Module):
    """Kullback-Leibler divergence of two predictions; see `kl_divergence`."""

    def forward(self, logits_p: Tensor, logits_q: Tensor) -> Tensor:
        """See `kl_divergence`."""
        return kl_divergence(logits_p, logits_q)


@UNCERTAINTY.register("js_divergence", example=_PAIR)
class JSDivergence(nn.Module):
    """Jensen-Shannon divergence of two predictions; see `js_divergence`."""

    def forward(self, logits_p: Tensor, logits_q: Tensor) -> Tensor:
        """See `js_divergence`."""
        return js_divergence(logits_p, logits_q)
