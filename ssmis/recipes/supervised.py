# SPDX-License-Identifier: Apache-2.0
"""Labelled volumes only: the row every semi-supervised method has to beat."""

from collections.abc import Mapping, Sequence

from torch import nn

from ssmis._checks import check_not_negative
from ssmis.data.batch import Batch
from ssmis.losses import dice_ce
from ssmis.nets import VNet
from ssmis.recipes.base import Recipe, Terms
from ssmis.registry import RECIPES


@RECIPES.register("supervised")
class Supervised(Recipe):
    """Cross-entropy and soft Dice on the labelled volumes; several nets are trained side by side and averaged.

    Args:
        nets: name -> net; default: one V-Net.
        dice_weight: weight of the soft Dice loss.
        ce_weight: weight of the cross-entropy.
        predict_with: names of the nets averaged in `predict`; default: all.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module] | None = None,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        predict_with: Sequence[str] | None = None,
    ) -> None:
        check_not_negative(dice_weight=dice_weight, ce_weight=ce_weight)
        super().__init__(nets or {"vnet": VNet()}, predict_with=predict_with)
        self.dice_weight, self.ce_weight = dice_weight, ce_weight

    def forward(self, batch: Batch, progress: float) -> Terms:
        """Terms `supervised/<net>`; unlabelled volumes are not looked at."""
        terms = Terms()
        for name in self.students:
            logits = self.run_net(name, batch.labelled).logits
            loss = dice_ce(logits, batch.labels, dice_weight=self.dice_weight, ce_weight=self.ce_weight)
            terms.add(f"supervised/{name}", loss, reaches=[name])
        return terms
