# SPDX-License-Identifier: Apache-2.0
"""Monte-Carlo dropout: several passes with dropout on, everything else in eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssmis.uncertainty.entropy import entropy_of_probs

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class MCDropout(NamedTuple):
    """Result of `mc_dropout`.

    Attributes:
        probs: mean softmax `(B, K, *S)`.
        entropy: entropy of the mean over log K, `(B, *S)` in [0, 1]: all uncertainty.
        mutual_information: entropy of the mean minus mean entropy, over log K, `(B, *S)` in [0, 1]: the model's part.
    """

    probs: Tensor
    entropy: Tensor
    mutual_information: Tensor


@torch.no_grad()
def mc_dropout(net: nn.Module, images: Tensor, *, samples: int = 8, seed: int = 0) -> MCDropout:
    r"""Predict with dropout active and average over the draws.

    $\bar p = \frac{1}{T} \sum_t p^t$, $u = H(\bar p) / \log K$, $I = u - \frac{1}{T} \sum_t H(p^t) / \log K$.
    Only dropout modules are in train mode during the passes, so normalisation statistics do not move; every module's
    mode and the global random state are restored afterwards.

    Args:
        net: returns logits `(B, K, *S)` or an object with `.logits`.
        images: `(B, C, *S)`.
        samples: number of passes, at least 1.
        seed: of the dropout masks; the same seed gives the same result.

    Returns:
        `MCDropout(probs, entropy, mutual_information)` in float32.

    Raises:
        ValueError: samples < 1, or the net has no dropout module with a rate > 0.

    Gradient: none.

    Paper: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016 (arXiv 1506.02142).
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1")
    devices = [images.device] if images.device.type == "cuda" else []
    with _only_dropout_trains(net), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        mean, own_entropy = _pass(net, images)
        for _ in range(samples - 1):
            probs, each = _pass(net, images)
            mean, own_entropy = mean + probs, own_entropy + each
    mean = mean / samples
    total = entropy_of_probs(mean)
    return MCDropout(mean, total, (total - own_entropy / samples).clamp_min(0))


def _pass(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    output = net(images)
    probs = (output if isinstance(output, Tensor) else output.logits).float().softmax(1)
    return probs, entropy_of_probs(probs)


@contextmanager
def _only_dropout_trains(net: nn.Module) -> Iterator[None]:
    active = [module for module in net.modules() if isinstance(module, DROPOUTS) and module.p > 0]
    if not active:
        raise ValueError(
            f"net {type(net).__name__} has no dropout module with a rate > 0: every pass would be the same"
        )
    modes = [(module, module.training) for module in net.modules()]
    try:
        for module, _ in modes:
            module.training = False
        for module in active:
            module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode
