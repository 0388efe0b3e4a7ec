# SPDX-License-Identifier: Apache-2.0
"""Coefficients of `UCSeg` and its presets."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ssmis._checks import check_choice, check_not_negative, check_range


@dataclass(frozen=True)
class UCSegConfig:
    """Coefficients of `UCSeg`; the defaults are those of 3-D, and `IN_2D` holds those that differ in 2-D.

    Attributes:
        unlabelled_from: progress from which unlabelled volumes are learned from; before it they are not looked at, so
            steps are cheap, and nets and fused head learn from labels alone. The ramp counts from there. None: from the
            start.
        pair: segmentation loss of labels and pseudo-labels: "softmax" cross-entropy and Dice over the volume, or
            "sigmoid" maps of each class with the Dice of each depth slice.
        calibration_weight: of the calibration of evidence, labelled volumes, both nets and the fused head.
        calibration_start: of the weight of right voxels, which rises from it to 1 as `exponential_ramp`.
        fused_weight: of the segmentation and calibration of the fused head, above 0: nothing else trains it.
        consistency_weight: of the binary cross-entropy with the peer's probabilities, all volumes.
        pseudo_weight: of the pseudo-labels (w_max), at the end of the ramp.
        ramp_end: progress since `unlabelled_from`, as a share of what is left there, at which the ramp
            exp(-5 (1 - t)^2) of the pseudo-labels reaches 1.
        components: keep only the largest component of each class of a pseudo-label, or of the classes named.
        prototype_weight: of the contrast of prototypes with the banks, mean of both nets.
        prototype_masks: where the prototypes of labelled volumes are taken: "truth", or the net's own "guess", which
            then serves the unlabelled volumes too.
        prototype_over: divide their sums by the voxels of the "class" or of the "volume".
        region_weight: of the contrast of regions.
        symmetric: both nets ask in it, or only the first one.
        cells: of the regions, along each axis; one region has no other to be told from.
        normalize: cosines in both contrasts, else inner products.
        temperature: of both contrasts.
        levels: number of encoder levels, from the coarsest, whose features are contrasted.
        bank: of prototypes, one a net and level: "fifo", "ema" or "fifo_shared_pointer"; "batch" remembers nothing
            from steps in which volumes were segmented well.
        slots: prototypes a class, for both kinds of "fifo".
        quality_start: Dice a labelled volume must exceed at the start for its prototypes to be remembered.
        quality_end: the same at the end; it rises on a straight line.
        mix_from: progress from which mixed volumes are learned from too (t_mix), but not before `unlabelled_from`; 1:
            never.
        mix_side: side of the pasted box, as a share of each axis.
        gate_patch: voxels of a patch of the gate along every axis, or along each; divides the size of all images.
        positions: patches along each axis of the gate's table of positions, best those of a training crop; for other
            sizes it is interpolated.
        embedding: channels of the gate's tokens.
        gate_heads: of the gate's attention.
        gate_hidden: channels of the gate's perceptron.
        gate_dropout: of the gate.
        fused_widths: channels of the fused head, which works at every voxel at full resolution.
        fused_activated: the fused head ends with a norm and LeakyReLU.
    """

    unlabelled_from: float | None = None  # so that runs of before this field can be resumed
    pair: Literal["softmax", "sigmoid"] = "softmax"
    calibration_weight: float = 1.0
    calibration_start: float = 0.01
    fused_weight: float = 1.0
    consistency_weight: float = 0.5
    pseudo_weight: float = 1.0
    ramp_end: float = 0.6
    components: bool | Sequence[int] = True
    prototype_weight: float = 0.2
    prototype_masks: Literal["truth", "guess"] = "truth"
    prototype_over: Literal["class", "volume"] = "class"
    region_weight: float = 0.1
    symmetric: bool = True
    cells: int = 3
    normalize: bool = True
    temperature: float = 0.3
    levels: int = 3
    bank: str = "fifo"
    slots: int = 144
    quality_start: float = 0.2
    quality_end: float = 0.76
    mix_from: float = 0.12
    mix_side: float = 2 / 3
    gate_patch: int | Sequence[int] = 16
    positions: Sequence[int] = (7, 7, 5)
    embedding: int = 256
    gate_heads: int = 8
    gate_hidden: int = 384
    gate_dropout: float = 0.0
    fused_widths: Sequence[int] = (16, 16)
    fused_activated: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown choices, negative weights and shares outside [0, 1]."""
        check_choice(self.pair, ("softmax", "sigmoid"), name="pair")
        check_choice(self.prototype_masks, ("truth", "guess"), name="prototype_masks")
        check_choice(self.prototype_over, ("class", "volume"), name="prototype_over")
        for name, value in vars(self).items():
            if name.endswith("_weight"):
                check_not_negative(**{name: value})
            elif name in ("quality_start", "quality_end", "mix_from", "mix_side", "ramp_end", "calibration_start"):
                check_range(value, 0.0, 1.0, name=name, open_low=name in ("ramp_end", "calibration_start"))
            elif name in ("levels", "slots", "cells"):
                check_range(value, 1, sys.float_info.max, name=name)
        check_range(self.unlabelled_from or 0.0, 0.0, 1.0, name="unlabelled_from")
        if self.unlabelled_from == 1:
            raise ValueError("unlabelled_from is 1, so that no step learns from unlabelled volumes; expected less")
        check_range(self.temperature, 0.0, sys.float_info.max, name="temperature", open_low=True)
        own = self.gate_patch if isinstance(self.gate_patch, list | tuple) else [self.gate_patch]
        if any(type(length) is not int or length < 1 for length in own):
            raise ValueError(f"gate_patch is {self.gate_patch!r}; expected a number of voxels, or one for each axis")
        if self.fused_weight == 0:
            raise ValueError(
                "fused_weight is 0, so that nothing trains the head that makes pseudo-labels; expected more"
            )
        if self.bank == "batch" and self.prototype_weight > 0:
            told = "which is empty where no volume of a step is segmented well enough"
            raise ValueError(f"bank is 'batch', {told}; expected 'fifo', 'ema' or 'fifo_shared_pointer'")
        if self.cells == 1 and self.region_weight > 0:
            raise ValueError("cells is 1, so that a region has no other to be told from; expected 2 or more")


PRESETS = {
    "ours": UCSegConfig(),
    "release": UCSegConfig(
        pair="sigmoid",
        consistency_weight=0.0,
        pseudo_weight=15.0,
        prototype_masks="guess",
        prototype_over="volume",
        symmetric=False,
        normalize=False,
        bank="fifo_shared_pointer",
        embedding=1024,
        gate_dropout=0.1,
        fused_widths=(16, 32, 64, 32, 16),
        fused_activated=True,
    ),
}
IN_2D: dict[str, Any] = {
    "components": False,
    "slots": 1440,
    "quality_start": 0.5,
    "quality_end": 0.96,
    "mix_from": 0.24,
    "positions": (16, 16),
    "embedding": 96,
}
