# SPDX-License-Identifier: Apache-2.0
"""How many pairs of nets name different classes."""

from itertools import combinations

import torch
from torch import Tensor, nn

from ssmis._checks import check_class_maps, check_same_shape
from ssmis._classes import top_class
from ssmis.registry import UNCERTAINTY, Example


def disagreement(*logits: Tensor) -> Tensor:
    r"""Fraction of pairs of predictions whose arg max differs.

    $d_v = \binom{N}{2}^{-1} \sum_{i < j} 1[\arg\max z^i_v \ne \arg\max z^j_v]$ for N nets.

    Args:
        logits: two or more `(B, K, *S)`; logits or probabilities, only their order counts.

    Returns:
        float32 `(B, *S)` in [0, 1].

    Raises:
        ValueError: fewer than two predictions, or their shapes differ.

    Gradient: none, the arg max is a step.

    >>> disagreement(torch.eye(2)[:, :, None], torch.eye(2).flip(0)[:, :, None]).flatten()
    tensor([1., 1.])
    """
    if len(logits) < 2:
        raise ValueError(f"logits has {len(logits)} predictions; expected at least 2 to compare")
    named = {f"logits[{index}]": one for index, one in enumerate(logits)}
    check_class_maps(**named)
    check_same_shape(**named)
    pairs = list(combinations([top_class(one) for one in logits], 2))
    return torch.stack([a != b for a, b in pairs]).float().mean(0)


@UNCERTAINTY.register("disagreement", example=Example(call={"a": "logits", "b": "logits"}, teacher=("a", "b")))
class Disagreement(nn.Module):
    """Fraction of pairs of nets that differ; see `disagreement`."""

    def forward(self, *logits: Tensor) -> Tensor:
        """See `disagreement`."""
        return disagreement(*logits)
