# SPDX-License-Identifier: Apache-2.0
"""Two different nets whose uncertainties are fused into one prediction, which teaches both."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ssmis._checks import check_choice, check_not_negative, check_range
from ssmis._classes import top_class
from ssmis.data.batch import Batch
from ssmis.data.components import largest_components
from ssmis.data.mixing import box_mix
from ssmis.losses import (
    bce_consistency,
    dice_ce,
    evidential_calibration,
    hard_labels,
    prototype_contrast,
    region_contrast,
    sigmoid_dice_bce,
)
from ssmis.memory import Bank, class_prototypes, gather_candidates, reliable_volumes
from ssmis.nets import CrossAttentionGate, FusedNets, FusionHead, GatedFusion
from ssmis.nets.output import NetOutput
from ssmis.recipes._nets import encoder_space, two_nets, uc_seg_nets
from ssmis.recipes.base import Recipe, Terms
from ssmis.registry import BANKS, RECIPES, Example
from ssmis.schedules import exponential_ramp, gaussian_ramp
from ssmis.uncertainty import vacuity


@dataclass(frozen=True)
class UCSegConfig:
    """Coefficients of `UCSeg`; the defaults are those of 3-D, and `IN_2D` holds those that differ in 2-D.

    Attributes:
        pair: segmentation loss of labels and pseudo-labels: "softmax" cross-entropy and Dice over the volume, or
            "sigmoid" maps of each class with the Dice of each depth slice.
        calibration_weight: of the calibration of evidence, labelled volumes, both nets and the fused head.
        calibration_start: of the weight of right voxels, which rises from it to 1 as `exponential_ramp`.
        fused_weight: of the segmentation and calibration of the fused head.
        consistency_weight: of the binary cross-entropy with the peer's probabilities, all volumes.
        pseudo_weight: of the pseudo-labels (w_max), at the end of the ramp.
        ramp_end: progress at which the ramp exp(-5 (1 - t)^2) of the pseudo-labels reaches 1.
        components: keep only the largest component of each class of a pseudo-label.
        prototype_weight: of the contrast of prototypes with the banks, mean of both nets.
        prototype_masks: where the prototypes of labelled volumes are taken: "truth", or the net's own "guess", which
            then serves the unlabelled volumes too.
        prototype_over: divide their sums by the voxels of the "class" or of the "volume".
        region_weight: of the contrast of regions.
        symmetric: both nets ask in it, or only the first one.
        cells: of the regions, along each axis.
        normalize: cosines in both contrasts, else inner products.
        temperature: of both contrasts.
        levels: number of encoder levels, from the coarsest, whose features are contrasted.
        bank: of prototypes, one a net and level: "fifo", "ema", "batch" or "fifo_shared_pointer".
        slots: prototypes a class, for both kinds of "fifo".
        quality_start: Dice a labelled volume must exceed at the start for its prototypes to be remembered.
        quality_end: the same at the end; it rises on a straight line.
        mix_from: progress from which mixed volumes are learned from too (t_mix); 1: never.
        mix_side: side of the pasted box, as a share of each axis.
        gate_patch: voxels of a patch of the gate along each axis; divides the size of all images.
        positions: patches along each axis of the gate's table of positions, best those of a training crop; for other
            sizes it is interpolated.
        embedding: channels of the gate's tokens.
        gate_heads: of the gate's attention.
        gate_hidden: channels of the gate's perceptron.
        gate_dropout: of the gate.
        fused_widths: channels of the fused head.
        fused_activated: the fused head ends with a norm and LeakyReLU.
    """

    pair: Literal["softmax", "sigmoid"] = "softmax"
    calibration_weight: float = 1.0
    calibration_start: float = 0.01
    fused_weight: float = 1.0
    consistency_weight: float = 0.5
    pseudo_weight: float = 1.0
    ramp_end: float = 0.6
    components: bool = True
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
    gate_patch: int = 16
    positions: Sequence[int] = (7, 7, 5)
    embedding: int = 1024
    gate_heads: int = 8
    gate_hidden: int = 384
    gate_dropout: float = 0.0
    fused_widths: Sequence[int] = (16, 32, 64, 32, 16)
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
        check_range(self.temperature, 0.0, sys.float_info.max, name="temperature", open_low=True)


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
        gate_dropout=0.1,
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


@RECIPES.register(
    "uc_seg",
    example=Example(create={"gate_patch": 4, "embedding": 16, "gate_hidden": 16, "fused_widths": (8,), "slots": 8}),
)
class UCSeg(Recipe):
    """Uncertainty-aware cross-training: two nets, a fused head that predicts, and what each can learn from the others.

    `1/2 sum_n [pair + calibration + 0.5 consistency + w(t) pseudo + 0.2 prototype]`, plus pair and calibration of the
    fused head, plus `0.1 region`, n over both nets; from `mix_from` on, `pseudo`, `prototype` and `region` are averaged
    with the same on volumes mixed of labelled and unlabelled ones. The fused head makes the pseudo-labels and the
    prediction. `docs/recipes/uc_seg.md` compares each choice with the paper and with the authors' public code.

    Args:
        nets: name -> net, two that agree in the channels of their coarse encoder maps; default: U-Net and V-Net of
            width 16 in 3-D, see `uc_seg_nets`.
        preset: "ours", or "release": what the public code computes.
        predict_with: names of the nets averaged in `predict` instead of the fused head.
        overrides: fields of `UCSegConfig`.

    Paper: Huang, Zhou, Fu, Zhang, Zhou, Wu, "Uncertainty-aware Cross-training for Semi-supervised Medical Image
        Segmentation", IEEE TIP 34, 2025 (arXiv 2508.09014).
    """

    passes: ClassVar[int] = 2  # the mixed volumes need the pseudo-labels of the first pass

    def __init__(
        self,
        nets: Mapping[str, nn.Module] | None = None,
        *,
        preset: str = "ours",
        predict_with: Sequence[str] | None = None,
        **overrides: Any,
    ) -> None:
        check_choice(preset, tuple(PRESETS), name="preset")
        nets = two_nets(nets or uc_seg_nets(vnet_norm="none" if preset == "release" else None))
        classes, dims, channels = encoder_space(nets, levels=overrides.get("levels", PRESETS[preset].levels))
        c = replace(PRESETS[preset], **{**(IN_2D if dims == 2 else {}), **overrides})
        gate = CrossAttentionGate(
            dims=dims,
            size=[c.gate_patch * count for count in c.positions],
            patch=c.gate_patch,
            embedding=c.embedding,
            heads=c.gate_heads,
            hidden=c.gate_hidden,
            dropout=c.gate_dropout,
        )
        head = FusionHead(classes, dims=dims, widths=c.fused_widths, activated=c.fused_activated)
        fusion = GatedFusion(gate, head, uncertainty=vacuity)
        super().__init__(nets, heads={"fusion": fusion}, predict_with=predict_with)
        self.config, self.classes, self.fused_predicts = c, classes, predict_with is None
        self.banks = nn.ModuleDict()
        if c.prototype_weight > 0:
            kept = {"slots": c.slots, "normalize": c.normalize} if c.bank.startswith("fifo") else {}
            for name in nets:
                for level, width in enumerate(channels):
                    self.banks[f"{name}_{level}"] = BANKS.create(c.bank, classes=classes, channels=width, **kept)
        self._candidates: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._ready: set[str] = set()  # banks that hold two classes; they never lose one

    def forward(self, batch: Batch, progress: float) -> Terms:
        """Terms `supervised`, `calibration`, `consistency`, `pseudo` and `prototype`, each `/<net>`, the first two also
        `/fused`, and `region`; the last three also for mixed volumes, with `mixed_` before the name.
        """
        if len(batch.labelled) == 0 or len(batch.unlabelled) == 0:
            raise ValueError("the batch has no labelled or no unlabelled volumes; uc_seg needs some of both")
        c, images, labels, terms = self.config, batch.student_images, batch.labels, Terms()
        outputs: dict[str, NetOutput] = {name: net(images) for name, net in self.nets().items()}
        logits = {name: output.logits for name, output in outputs.items()}
        fused, fused_u = batch.split(self.students["fusion"](*logits.values()))
        pseudo = self._pseudo_labels(fused_u, batch.valid)
        targets, good = torch.cat([labels, pseudo]), {}

        right = exponential_ramp(progress, start=c.calibration_start)
        taught: dict[str, tuple[Tensor, float, tuple[str, ...]]]
        taught = {name: (batch.split(own)[0], 0.5, (name,)) for name, own in logits.items()}
        taught["fused"] = (fused, c.fused_weight, tuple(self.students))
        for name, (own, weight, reaches) in taught.items():
            terms.add(f"supervised/{name}", self._pair(own, labels), weight, reaches=reaches)
            calibration = evidential_calibration(own, labels, right_weight=right)
            terms.add(f"calibration/{name}", calibration, weight * c.calibration_weight, reaches=reaches)
        for name, peer in zip(logits, reversed(logits)):
            if c.consistency_weight > 0:
                gap = bce_consistency(logits[name], logits[peer], mask=targets >= 0)
                terms.add(f"consistency/{name}", gap, c.consistency_weight / 2, reaches=[name])
            guess = top_class(taught[name][0])
            quality = c.quality_start + (c.quality_end - c.quality_start) * progress
            good[name] = reliable_volumes(guess, labels, classes=self.classes, threshold=quality)
            terms.notes[f"remembered/{name}"] = good[name].sum()

        mixes = progress >= c.mix_from
        share = 0.5 if mixes else 1.0  # of the terms on these and on mixed volumes
        self._learn(terms, "", outputs, targets, progress, share=share, good=good)
        if mixes:
            mixed = box_mix(images[: len(labels)], labels, images[len(labels) :], pseudo, side=c.mix_side)
            twins = {name: net(mixed.images) for name, net in self.nets().items()}
            self._learn(terms, "mixed_", twins, mixed.labels, progress, share=share, good={})
        return terms

    def begin_step(self) -> None:
        """Forget the candidates of a step that was skipped, and look which banks can be contrasted with."""
        self._candidates = {}
        self._ready |= {name for name, bank in self.banks.items() if name not in self._ready and cast(Bank, bank).ready}

    def after_step(self, progress: float) -> None:
        """Write the prototypes of all micro-steps and processes into the banks."""
        for name, found in self._candidates.items():
            cast(Bank, self.banks[name]).write(*gather_candidates(found))
        self._candidates = {}

    def deployed(self) -> Mapping[str, nn.Module]:
        """Both nets and their fusion as one net, or the nets of `predict_with`."""
        if not self.fused_predicts:
            return super().deployed()
        return {"fused": FusedNets(list(self.nets().values()), self.students["fusion"], names=self.net_names)}

    def _pair(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.pair == "softmax":
            return dice_ce(logits, labels)
        return sigmoid_dice_bce(logits, labels, per_slice=True)

    def _pseudo_labels(self, logits: Tensor, valid: Tensor | None) -> Tensor:
        """One class a voxel `(U, *S)`, -1 where a voxel is padding."""
        guess = hard_labels(logits, threshold=0.5 if self.config.pair == "sigmoid" else None)
        guess = guess if valid is None else guess.where(valid, -1)
        return largest_components(guess, classes=range(1, self.classes)) if self.config.components else guess

    def _learn(
        self,
        terms: Terms,
        prefix: str,
        outputs: Mapping[str, NetOutput],
        targets: Tensor,
        progress: float,
        *,
        share: float,
        good: Mapping[str, Tensor],
    ) -> None:
        """Add the terms that need no ground truth; volumes in front, one for each of `good`, have it all the same."""
        c, ramp = self.config, gaussian_ramp(progress, end=self.config.ramp_end)
        for name, output in outputs.items():
            own = good.get(name, targets.new_zeros(0, dtype=torch.bool))
            pseudo = self._pair(output.logits[len(own) :], targets[len(own) :])
            terms.add(f"{prefix}pseudo/{name}", pseudo, share / 2 * c.pseudo_weight * ramp, reaches=[name])
            if self.banks:
                contrast, ready = self._contrast(name, output, targets, own)
                weight = share / 2 * c.prototype_weight if ready else 0.0
                terms.add(f"{prefix}prototype/{name}", contrast, weight, reaches=[name])
        if c.region_weight > 0:
            pairs = zip(*(output.pyramid[-c.levels :] for output in outputs.values()), strict=True)
            how: dict[str, Any] = {"cells": c.cells, "temperature": c.temperature, "symmetric": c.symmetric}
            regions = [region_contrast(*pair, normalize=c.normalize, **how) for pair in pairs]
            terms.add(f"{prefix}region", torch.stack(regions).mean(), share * c.region_weight, reaches=list(outputs))

    def _contrast(self, name: str, output: NetOutput, targets: Tensor, good: Tensor) -> tuple[Tensor, bool]:
        """Prototypes against the banks, mean over levels, and whether these are ready; collects the good ones."""
        c, losses, ready = self.config, [], True
        if c.prototype_masks == "guess":
            targets = top_class(output.logits).where(targets >= 0, -1)
        for level, features in enumerate(output.pyramid[-c.levels :]):
            how: dict[str, Any] = {"normalize": c.normalize, "over": c.prototype_over}
            vectors, labels = class_prototypes(features, targets, classes=self.classes, **how)
            kept = vectors[: len(good)].detach().transpose(1, 2).flatten(0, 1)
            candidates = kept, labels[: len(good)].where(good[:, None], -1).flatten()
            key = f"{name}_{level}"
            self._candidates.setdefault(key, []).append(candidates)
            stored = self.banks[key](*candidates)
            losses.append(
                prototype_contrast(vectors, labels, *stored, temperature=c.temperature, normalize=c.normalize)
            )
            ready = ready and key in self._ready
        return torch.stack(losses).mean(), ready
