# SPDX-License-Identifier: Apache-2.0
"""Vacuity of evidence: how little a net has seen that speaks for any class."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmis._checks import check_class_maps
from ssmis.registry import UNCERTAINTY, Example

_LINEAR_BELOW = -17.0  # log(softplus(z)) and z agree to 2e-8 from here down


def vacuity(logits: Tensor) -> Tensor:
    r"""Share of the Dirichlet strength that is prior, not evidence.

    $u_v = K / S_v$ with $S_v = \sum_k (e_{vk} + 1)$ and evidence $e = \mathrm{softplus}(z)$.

    Args:
        logits: `(B, K, *S)`; half precision is computed in float32.

    Returns:
        `(B, *S)` in [0, 1]: 1 without evidence (very negative logits), falling in every logit.

    Raises:
        ValueError: logits are not `(B, K, *S)` with K >= 2.

    Gradient: to logits.

    Paper: Sensoy et al., NeurIPS 2018 (arXiv 1806.01768); used for pseudo-labels by Huang et al., IEEE TIP 2025
        (arXiv 2508.09014).
    """
    return log_vacuity(logits)[0].exp()


def log_vacuity(logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logarithms of the vacuity and of its complement, finite for any finite logits.

    $\log u = \log K - \log S$ and $\log (1 - u) = \log \sum_k e_k - \log S$, both from $\log \sum_k e_k - \log K$, the
    log-odds of evidence, so that neither cancels.

    Args:
        logits: `(B, K, *S)`; half precision is computed in float32.

    Returns:
        `log u` and `log (1 - u)`, each `(B, *S)`, at most 0.

    Raises:
        ValueError: logits are not `(B, K, *S)` with K >= 2.

    Gradient: to logits, through both.
    """
    check_class_maps(logits=logits)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tail = z < _LINEAR_BELOW
    # the inner `where` keeps log(0), whose gradient is infinite, out of the branch that is not taken
    log_evidence = torch.where(tail, z, F.softplus(z.masked_fill(tail, 0)).log())
    log_odds = log_evidence.logsumexp(1) - math.log(z.shape[1])
    return F.logsigmoid(-log_odds), F.logsigmoid(log_odds)


@UNCERTAINTY.register("vacuity", example=Example(call={"logits": "logits"}, student=("logits",)))
class Vacuity(nn.Module):
    """Vacuity of evidence; see `vacuity`."""

    def forward(self, logits: Tensor) -> Tensor:
        """See `vacuity`."""
        return vacuity(logits)
