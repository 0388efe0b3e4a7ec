# SPDX-License-Identifier: Apache-2.0
"""Coefficients of `DualUncertainty` and its presets."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ssmis._checks import check_choice, check_not_negative, check_range
from ssmis.losses import Reduction
from ssmis.losses.cross_pseudo import Targets
from ssmis.uncertainty.masks import SCOPES, Scope


@dataclass(frozen=True)
class DualUncertaintyConfig:
    """Coefficients of `DualUncertainty`; A is the first net, B the second.

    Attributes:
        unlabelled_from: progress from which unlabelled volumes are learned from; before it they are not looked at, so
            steps are cheap, and no pseudo-label is made by nets that know nothing. Ramps count from there.
        ce_weight: of the cross-entropy, labelled volumes.
        dice_weight: of the soft Dice loss, labelled volumes.
        disagreement_weight: of the confidence disagreement, labelled volumes.
        disagreement_into: nets it trains: "both", "first" or "second".
        disagreement_threshold: probability from which a net counts as confident.
        rectified_weight: of the cross pseudo supervision with KL weight.
        rectified_into: "both" nets learn from each other, or only the "first" or "second" from the other.
        rectified_on: "unlabelled" volumes, or "all".
        kl_rectified: weight the cross pseudo supervision by KL; False is plain cross-entropy, to see what it is worth.
        teacher: what makes the pseudo-labels of a net, and their entropy: its "peer" on the same view, or "average":
            the mean of the moving averages of both nets, on the weak view.
        teacher_decay: of the moving averages.
        mix_side: side of the box, as a share of each axis, that a strong view takes from another volume, and its
            labels with it; 0: none. Only with the teacher "average", which sees whole volumes.
        mix_with: whose box it is: of the next "unlabelled" volume (CutMix), or of a "labelled" one, or, for half of
            them on average, all but the box (bidirectional copy-paste): the true labels then take the place of
            pseudo-labels; "labelled_only" is the same, and from `unlabelled_from` on the trained nets see labelled
            volumes in these mixtures only. It needs as many unlabelled volumes a step as labelled ones.
        components: keep only the largest component of each class of a pseudo-label, or of the classes named; the rest
            counts as background. For structures of which there is one; only with the teacher "average".
        detach_weight: treat the KL weight as a constant; None: only for more than 4 classes.
        targets: "hard" pseudo-labels, or "soft" ones, in the rectified, filtered and pseudo-Dice terms.
        sharpen_temperature: of soft targets in the cross-entropies; None: their default.
        filtered_weight: of the entropy-filtered supervision.
        keep_fraction: share of the voxels with the lowest entropy that are kept (q).
        filter_scope: how voxels are ranked: "volume", "class" (volume and class) or "batch".
        pseudo_dice_weight: of the Dice loss on the peer's pseudo-labels, unlabelled volumes; it does not shrink
            small structures, as cross-entropy on pseudo-labels does.
        cosine_weight: of the cosine consistency, unlabelled volumes.
        contrast_weight: of the contrast, mean of both nets, at the end of its ramp.
        contrast_ramp_end: progress at which the ramp exp(-5 (1 - t)^2) of the contrast reaches 1; 0: no ramp.
        temperature: of the contrast.
        bank: "fifo", "ema" or "batch".
        slots: prototypes a class, for "fifo".
        bank_decay: of the moving prototypes, for "ema".
        candidates: random reliable voxels a class and volume that enter a bank each step.
        anchors: random uncertain voxels a volume that are contrasted; None: all of them.
        anchor_labels: their class: the net's "own" guess, or the "pseudo" label it is taught.
        ramp_end: progress at which the ramp exp(-5 (1 - t)^2) of the unlabelled terms reaches 1; 0: no ramp.
        reduction: "mean" (a volume, then volumes) or "pooled" over the batch (rank-local under DDP).
    """

    unlabelled_from: float = 0.0
    ce_weight: float = 1.0
    dice_weight: float = 1.0
    disagreement_weight: float = 0.5
    disagreement_into: str = "both"
    disagreement_threshold: float = 0.6
    rectified_weight: float = 1.0
    rectified_into: str = "both"
    rectified_on: str = "unlabelled"
    kl_rectified: bool = True
    teacher: str = "peer"
    teacher_decay: float = 0.99
    mix_side: float = 0.0
    mix_with: str = "unlabelled"
    components: bool | Sequence[int] = False
    detach_weight: bool | None = None
    targets: Targets = "hard"
    sharpen_temperature: float | None = None
    filtered_weight: float = 1.0
    keep_fraction: float = 0.5
    filter_scope: Scope = "volume"
    pseudo_dice_weight: float = 0.0
    cosine_weight: float = 0.0
    contrast_weight: float = 0.1
    contrast_ramp_end: float = 1.0
    temperature: float = 0.1
    bank: str = "fifo"
    slots: int = 256
    bank_decay: float = 0.9
    candidates: int = 32
    anchors: int | None = 4096
    anchor_labels: str = "own"
    ramp_end: float = 0.4
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        """Refuse what no step could be computed with: a run should not find out after its data is prepared."""
        for name, value in vars(self).items():
            if name.endswith("_weight") and name != "detach_weight":
                check_not_negative(**{name: value})
        check_choice(self.disagreement_into, ("both", "first", "second"), name="disagreement_into")
        check_choice(self.rectified_into, ("both", "first", "second"), name="rectified_into")
        check_choice(self.rectified_on, ("unlabelled", "all"), name="rectified_on")
        check_choice(self.teacher, ("peer", "average"), name="teacher")
        check_choice(self.mix_with, ("unlabelled", "labelled", "labelled_only"), name="mix_with")
        check_choice(self.anchor_labels, ("own", "pseudo"), name="anchor_labels")
        check_choice(self.filter_scope, SCOPES, name="filter_scope")
        check_choice(self.targets, ("hard", "soft"), name="targets")
        check_choice(self.reduction, ("mean", "pooled"), name="reduction")
        for name in ("unlabelled_from", "mix_side", "keep_fraction", "disagreement_threshold", "teacher_decay",
                     "bank_decay", "ramp_end", "contrast_ramp_end"):  # fmt: skip
            check_range(getattr(self, name), 0.0, 1.0, name=name)
        if self.unlabelled_from == 1:
            raise ValueError("unlabelled_from is 1, so that no step learns from unlabelled volumes; expected less")
        check_range(self.temperature, 0.0, sys.float_info.max, name="temperature", open_low=True)
        for name in ("slots", "candidates", "anchors"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} is {count}; expected at least 1")
        if self.sharpen_temperature is not None:
            check_range(self.sharpen_temperature, 0.0, sys.float_info.max, name="sharpen_temperature", open_low=True)
            if self.targets == "hard":
                raise ValueError(f"sharpen_temperature is {self.sharpen_temperature}; expected None with hard targets")
        if self.mix_side > 0 and self.teacher == "peer":
            raise ValueError(
                f"mix_side is {self.mix_side} with teacher 'peer', which sees mixed volumes; expected 'average'"
            )
        if self.components and self.teacher == "peer":
            raise ValueError(f"components is {self.components} with teacher 'peer'; expected 'average'")
        if self.mix_with != "unlabelled" and self.mix_side == 0:
            raise ValueError(
                f"mix_with is {self.mix_with!r} with mix_side 0, so that nothing is mixed; expected a side above 0"
            )
        if self.teacher == "average" and self.rectified_on == "all":
            raise ValueError(
                "rectified_on is 'all' with teacher 'average', which sees unlabelled volumes; expected 'peer'"
            )


AVERAGED = DualUncertaintyConfig(
    filter_scope="class",
    teacher="average",
    targets="soft",
    mix_side=0.5,
    disagreement_weight=1.0,
    pseudo_dice_weight=1.0,
    anchor_labels="pseudo",
    ramp_end=1.0,
)
LATE = replace(AVERAGED, unlabelled_from=0.5, ramp_end=0.5, disagreement_weight=0.0)
PRESETS = {
    "paper": DualUncertaintyConfig(),
    "balanced": DualUncertaintyConfig(filter_scope="class", pseudo_dice_weight=1.0),
    "averaged": AVERAGED,
    "late": LATE,
    "copy_paste": replace(
        LATE, unlabelled_from=0.3, ramp_end=0.3, mix_side=2 / 3, mix_with="labelled", components=True
    ),
    "public_code": DualUncertaintyConfig(
        disagreement_into="second",
        rectified_into="first",
        rectified_on="all",
        filtered_weight=0.0,
        cosine_weight=1.0,
        contrast_weight=0.0,
        ramp_end=0.0,
        reduction="pooled",
    ),
}
