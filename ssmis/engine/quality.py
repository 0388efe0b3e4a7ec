# SPDX-License-Identifier: Apache-2.0
"""Curves of pseudo-label quality: what the nets would teach each other, against labels that training never sees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmis._classes import top_class
from ssmis.recipes.base import Recipe
from ssmis.uncertainty import kl_divergence, lowest_entropy


class PseudoLabelQuality:
    """Engine callback: pseudo-labels of each net, trained or predicting, on fixed volumes, in eval mode.

    Columns, a net: `dice/<net>` over all foreground voxels, `accuracy_kept/<net>` and `accuracy/<net>` inside the
    entropy filter's keep-set and everywhere, `foreground/<net>` (share of the voxels); and `kl`, the mean divergence
    between the first two nets.

    Args:
        images: `(N, C, *S)` of unlabelled cases.
        labels: int64 `(N, *S)`, their hidden labels; they are used for these numbers and nothing else.
        keep_fraction: of the filter.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, keep_fraction: float = 0.5) -> None:
        if images.shape[2:] != labels.shape[1:] or len(images) != len(labels):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}; expected {(len(images), *images.shape[2:])} to match images"
            )
        self.images, self.labels, self.keep_fraction = images, labels, keep_fraction

    def __call__(self, step: int, recipe: Recipe) -> dict[str, float]:
        """Measure; the recipe is in eval mode and no gradient is recorded."""
        device = next(recipe.parameters()).device
        logits = {
            name: torch.cat([net(image[None].to(device)).logits.float().cpu() for image in self.images])
            for name, net in {**recipe.nets(), **recipe.deployed()}.items()
        }
        numbers: dict[str, float] = {}
        for name, own in logits.items():
            guess = top_class(own)
            right = guess == self.labels
            keep = lowest_entropy(own, self.keep_fraction)
            both = ((guess > 0) & (self.labels > 0) & right).sum()
            numbers |= {
                f"dice/{name}": float(2 * both / ((guess > 0).sum() + (self.labels > 0).sum()).clamp_min(1)),
                f"accuracy_kept/{name}": float(right[keep].float().mean()),
                f"accuracy/{name}": float(right.float().mean()),
                f"foreground/{name}": float((guess > 0).float().mean()),
            }
        names: Sequence[str] = list(logits)
        if len(names) > 1:
            numbers["kl"] = float(kl_divergence(logits[names[0]], logits[names[1]]).mean())
        return numbers
