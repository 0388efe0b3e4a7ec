# SPDX-License-Identifier: Apache-2.0
"""Two nets that teach each other with hard pseudo-labels."""

from collections.abc import Mapping, Sequence

from torch import nn

from ssmis._checks import check_not_negative, check_range
from ssmis.data.batch import Batch
from ssmis.losses import dice_ce, pseudo_ce
from ssmis.recipes._nets import two_nets
from ssmis.recipes.base import Recipe, Terms
from ssmis.registry import RECIPES
from ssmis.schedules import ramp_to


@RECIPES.register("cross_pseudo")
class CrossPseudo(Recipe):
    """Supervised loss plus cross-entropy of each net on the other's argmax, on the unlabelled volumes.

    Args:
        nets: name -> net, two; default: ResNet-34 encoder-decoder and V-Net of width 16.
        cross_weight: weight of the cross term at the end of its ramp.
        ramp_end: progress at which the ramp exp(-5 (1 - t)^2) reaches 1; 0: no ramp.
        dice_weight: weight of the soft Dice loss.
        ce_weight: weight of the cross-entropy, on labels.
        predict_with: names of the nets averaged in `predict`; default: both.

    Paper: Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021
        (arXiv 2106.01226). Differs from the paper: two architectures, a ramp, the cross term on unlabelled volumes
        only, soft Dice besides cross-entropy.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module] | None = None,
        *,
        cross_weight: float = 1.0,
        ramp_end: float = 0.4,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        predict_with: Sequence[str] | None = None,
    ) -> None:
        check_range(ramp_end, 0, 1, name="ramp_end")
        check_not_negative(cross_weight=cross_weight, dice_weight=dice_weight, ce_weight=ce_weight)
        super().__init__(two_nets(nets), predict_with=predict_with)
        self.cross_weight, self.ramp_end = cross_weight, ramp_end
        self.dice_weight, self.ce_weight = dice_weight, ce_weight

    def forward(self, batch: Batch, progress: float) -> Terms:
        """Terms `supervised/<net>` and `cross/<net>`."""
        if len(batch.unlabelled) == 0:
            raise ValueError("the batch has no unlabelled volumes; cross_pseudo needs some in every batch")
        images = batch.images
        split = {name: batch.split(self.run_net(name, images).logits) for name in self.students}
        first, second = split
        weight = self.cross_weight * ramp_to(progress, self.ramp_end)
        terms = Terms()
        for name, peer in ((first, second), (second, first)):
            labelled, unlabelled = split[name]
            supervised = dice_ce(labelled, batch.labels, dice_weight=self.dice_weight, ce_weight=self.ce_weight)
            terms.add(f"supervised/{name}", supervised, reaches=[name])
            cross = pseudo_ce(unlabelled, split[peer][1], mask=batch.valid)
            terms.add(f"cross/{name}", cross, weight, reaches=[name])
        return terms
