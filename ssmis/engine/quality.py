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
    between the first two nets. Voxels without a label, such as the padding of a small volume, count nowhere.

    Args:
        images: `(N, C, *S)` of unlabelled cases.
        labels: int64 `(N, *S)`, their hidden labels; they are used for these numbers and nothing else.
        keep_fraction: of the filter.
        ignore_index: label of voxels that are not counted.

    Raises:
        ValueError: labels do not fit the images, or none counts.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, keep_fraction: float = 0.5, ignore_index: int = -1) -> None:
        if images.shape[2:] != labels.shape[1:] or len(images) != len(labels):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}; expected {(len(images), *images.shape[2:])} to match images"
            )
        self.images, self.labels, self.keep_fraction = images, labels, keep_fraction
        self.valid = labels != ignore_index
        if not self.valid.any():
            raise ValueError(f"labels are {ignore_index} everywhere; expected voxels to count")

    def __call__(self, step: int, recipe: Recipe) -> dict[str, float]:
        """Measure; the recipe is in eval mode and no gradient is recorded."""
        device = next(recipe.parameters()).device
        logits = {
            name: torch.cat([net(image[None].to(device)).logits.float().cpu() for image in self.images])
            for name, net in {**recipe.nets(), **recipe.deployed()}.items()
        }
        numbers: dict[str, float] = {}
        for name, own in logits.items():
            guess, true = top_class(own)[self.valid], self.labels[self.valid]
            right = guess == true
            keep = lowest_entropy(own, self.keep_fraction, valid=self.valid)[self.valid]
            both = ((guess > 0) & (true > 0) & right).sum()
            numbers |= {
                f"dice/{name}": float(2 * both / ((guess > 0).sum() + (true > 0).sum()).clamp_min(1)),
                f"accuracy_kept/{name}": float(right[keep].float().mean()),
                f"accuracy/{name}": float(right.float().mean()),
                f"foreground/{name}": float((guess > 0).float().mean()),
            }
        names: Sequence[str] = list(logits)
        if len(names) > 1:
            numbers["kl"] = float(kl_divergence(logits[names[0]], logits[names[1]])[self.valid].mean())
        return numbers
