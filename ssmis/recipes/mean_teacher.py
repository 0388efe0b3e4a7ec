# SPDX-License-Identifier: Apache-2.0
"""A student held consistent with the moving average of itself."""

from collections.abc import Mapping

import torch
from torch import nn

from ssmis._checks import check_not_negative, check_range
from ssmis.data.batch import Batch
from ssmis.losses import dice_ce, mse_consistency
from ssmis.nets import EMA, VNet
from ssmis.recipes.base import Recipe, Terms
from ssmis.registry import RECIPES
from ssmis.schedules import ramp_to


@RECIPES.register("mean_teacher")
class MeanTeacher(Recipe):
    """Supervised loss plus the squared distance of student and teacher probabilities on unlabelled volumes.

    The teacher is the exponential moving average of the student, buffers included, and runs in eval mode on the weak
    view with Gaussian noise; the student sees the first strong view if the batch has one, else the weak one.

    Args:
        nets: name -> net, exactly one; default: a V-Net.
        consistency_weight: weight of the consistency term at the end of its ramp.
        ramp_end: progress at which the ramp exp(-5 (1 - t)^2) reaches 1; 0: no ramp.
        ema_decay: decay of the teacher.
        ema_warmup: let the teacher follow faster at first, see `EMA`.
        noise: standard deviation of the noise on the teacher's images, in units of the image.
        dice_weight: weight of the soft Dice loss.
        ce_weight: weight of the cross-entropy.
        predict_with: "teacher" or "student".

    Paper: Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017 (arXiv 1703.01780). Differs from
        the paper: softmax maps of a segmentation net, soft Dice besides cross-entropy.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module] | None = None,
        *,
        consistency_weight: float = 1.0,
        ramp_end: float = 0.4,
        ema_decay: float = 0.99,
        ema_warmup: bool = True,
        noise: float = 0.1,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        predict_with: str = "teacher",
    ) -> None:
        nets = nets or {"vnet": VNet()}
        if len(nets) != 1:
            raise ValueError(f"nets are {list(nets)}; expected exactly one, its average is the teacher")
        if predict_with not in ("teacher", "student"):
            raise ValueError(f"predict_with is {predict_with!r}; expected 'teacher' or 'student'")
        check_range(ramp_end, 0, 1, name="ramp_end")
        check_not_negative(consistency_weight=consistency_weight, noise=noise)
        check_not_negative(dice_weight=dice_weight, ce_weight=ce_weight)
        super().__init__(nets)
        (self.name,) = nets
        self.teacher = EMA(self.students[self.name], decay=ema_decay, warmup=ema_warmup)
        self.consistency_weight, self.ramp_end, self.noise = consistency_weight, ramp_end, noise
        self.dice_weight, self.ce_weight = dice_weight, ce_weight
        self.with_teacher = predict_with == "teacher"

    def forward(self, batch: Batch, progress: float) -> Terms:
        """Terms `supervised/<net>` and `consistency/<net>`."""
        if len(batch.unlabelled) == 0:
            raise ValueError("the batch has no unlabelled volumes; mean_teacher needs some in every batch")
        output = self.run_net(self.name, batch.student_images)
        labelled, unlabelled = batch.split(output.logits)
        with torch.no_grad():
            noisy = batch.unlabelled + self.noise * torch.randn_like(batch.unlabelled)
            teacher = self.teacher(noisy).logits
        terms = Terms()
        supervised = dice_ce(labelled, batch.labels, dice_weight=self.dice_weight, ce_weight=self.ce_weight)
        terms.add(f"supervised/{self.name}", supervised, reaches=[self.name])
        terms.add(
            f"consistency/{self.name}",
            mse_consistency(unlabelled, teacher, mask=batch.valid),
            self.consistency_weight * ramp_to(progress, self.ramp_end),
            reaches=[self.name],
        )
        return terms

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.update(self.students[self.name])

    def deployed(self) -> Mapping[str, nn.Module]:
        """The teacher, or the student."""
        return {"teacher": self.teacher} if self.with_teacher else super().deployed()
