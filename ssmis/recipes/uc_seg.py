# SPDX-License-Identifier: Apache-2.0
"""Two different nets whose uncertainties are fused into one prediction, which teaches both."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssmis._checks import check_choice
from ssmis._classes import top_class
from ssmis.data.batch import Batch
from ssmis.data.components import largest_components, pieces_of
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
from ssmis.memory import Banks, class_prototypes, reliable_volumes
from ssmis.nets import FusedNets
from ssmis.nets.output import NetOutput
from ssmis.recipes._nets import coarse_strides, encoder_space, gate_arguments, gated_fusion, two_nets, uc_seg_nets
from ssmis.recipes._uc_settings import IN_2D, PRESETS, UCSegConfig
from ssmis.recipes.base import Recipe, Terms
from ssmis.registry import BANKS, RECIPES, Example
from ssmis.schedules import exponential_ramp, gaussian_ramp

Outputs = Mapping[str, NetOutput]  # by the name of a net
Maps = Mapping[str, Tensor]

__all__ = ["IN_2D", "PRESETS", "UCSeg", "UCSegConfig"]


@RECIPES.register(
    "uc_seg",
    example=Example(create={"gate_patch": 4, "embedding": 16, "gate_hidden": 16, "fused_widths": (8,), "slots": 8}),
)
class UCSeg(Recipe):
    """Uncertainty-aware cross-training: two nets, a fused head that predicts, and what each can learn from the others.

    `1/2 sum_n [pair + calibration + 0.5 consistency + w(t) pseudo + 0.2 prototype]`, plus pair and calibration of the
    fused head, plus `0.1 region`, n over both nets; before `unlabelled_from` pairs and calibrations alone. From
    `mix_from` on, `pseudo`, `prototype` and `region` are averaged with the same on volumes mixed of labelled and
    unlabelled ones. The fused head makes the pseudo-labels and the prediction. `docs/recipes/uc_seg.md` compares each
    choice with the paper and with the authors' public code.

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
        super().__init__(nets, heads={"fusion": gated_fusion(c, classes=classes, dims=dims)}, predict_with=predict_with)
        self.config, self.classes, self.fused_predicts = c, classes, predict_with is None
        pieces_of(c.components, classes=classes)  # a wrong one is told now
        self.banks = Banks()
        if c.prototype_weight > 0:
            kept = {"slots": c.slots, "normalize": c.normalize} if c.bank.startswith("fifo") else {}
            for name in nets:
                for level, width in enumerate(channels):
                    self.banks[f"{name}_{level}"] = BANKS.create(c.bank, classes=classes, channels=width, **kept)

    @classmethod
    def arguments_for(cls, patch: Sequence[int]) -> dict[str, Any]:
        """A gate patch that divides each axis of the training patch."""
        return gate_arguments(patch)

    def forward(self, batch: Batch, progress: float) -> Terms:
        """Terms `supervised`, `calibration`, `consistency`, `pseudo` and `prototype`, each `/<net>`, the first two also
        `/fused`, and `region`; the last three also for mixed volumes, with `mixed_` before the name.
        """
        if len(batch.labelled) == 0 or len(batch.unlabelled) == 0:
            raise ValueError("the batch has no labelled or no unlabelled volumes; uc_seg needs some of both")
        c, terms, start = self.config, Terms(), self.config.unlabelled_from or 0.0
        learns, since = progress >= start, max(0.0, progress - start) / (1 - start)
        batch = batch if learns else batch.without_unlabelled()
        images, labels = batch.student_images, batch.labels
        outputs: dict[str, NetOutput] = {name: self.run_net(name, images) for name in self.net_names}
        logits = {name: output.logits for name, output in outputs.items()}
        fused, fused_u = batch.split(self.students["fusion"](*logits.values()))

        right = exponential_ramp(progress, start=c.calibration_start)
        taught: dict[str, tuple[Tensor, float, tuple[str, ...]]]
        taught = {name: (batch.split(own)[0], 0.5, (name,)) for name, own in logits.items()}
        taught["fused"] = (fused, c.fused_weight, tuple(self.students))
        for name, (own, weight, reaches) in taught.items():
            terms.add(f"supervised/{name}", self._pair(own, labels), weight, reaches=reaches)
            calibration = evidential_calibration(own, labels, right_weight=right)
            terms.add(f"calibration/{name}", calibration, weight * c.calibration_weight, reaches=reaches)
        if not learns:
            return terms

        pseudo = self._pseudo_labels(fused_u, batch.valid)
        targets, good = torch.cat([labels, pseudo]), {}
        for name, peer in zip(logits, reversed(logits)):
            if c.consistency_weight > 0:
                gap = bce_consistency(logits[name], logits[peer], mask=targets >= 0)
                terms.add(f"consistency/{name}", gap, c.consistency_weight / 2, reaches=[name])
            guess = top_class(taught[name][0])
            quality = c.quality_start + (c.quality_end - c.quality_start) * progress
            good[name] = reliable_volumes(guess, labels, classes=self.classes, threshold=quality)
            terms.notes[f"remembered/{name}"] = good[name].sum()

        mixes = c.mix_from < 1 and progress >= c.mix_from
        share = 0.5 if mixes else 1.0  # of the terms on these and on mixed volumes
        self._learn(terms, "", outputs, targets, since, share=share, good=good)
        if mixes:
            mixed = box_mix(images[: len(labels)], labels, images[len(labels) :], pseudo, side=c.mix_side)
            twins = {name: self.run_net(name, mixed.images) for name in self.net_names}
            self._learn(terms, "mixed_", twins, mixed.labels, since, share=share, good={})
        return terms

    def begin_step(self) -> None:
        """Forget the candidates of a step that was skipped, and look which banks can be contrasted with."""
        self.banks.begin_step()
        self.banks.find_ready()

    def after_step(self, progress: float) -> None:
        """Write the prototypes of all micro-steps and processes into the banks."""
        self.banks.write()

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
        pieces = pieces_of(self.config.components, classes=self.classes)
        return largest_components(guess, classes=pieces) if pieces else guess

    def _learn(
        self, terms: Terms, prefix: str, outputs: Outputs, targets: Tensor, since: float, *, share: float, good: Maps
    ) -> None:
        """Add the terms that need no ground truth; volumes in front, one for each of `good`, have it all the same."""
        c, ramp = self.config, gaussian_ramp(since, end=self.config.ramp_end)
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
        strides = coarse_strides(self.students[name], levels=c.levels)
        if c.prototype_masks == "guess":
            targets = top_class(output.logits).where(targets >= 0, -1)
        for level, features in enumerate(output.pyramid[-c.levels :]):
            how: dict[str, Any] = {"normalize": c.normalize, "over": c.prototype_over, "stride": strides[level]}
            vectors, labels = class_prototypes(features, targets, classes=self.classes, **how)
            key, candidates = f"{name}_{level}", vectors[: len(good)].transpose(1, 2).flatten(0, 1)
            stored = self.banks.ask(key, candidates, labels[: len(good)].where(good[:, None], -1).flatten())
            own = prototype_contrast(vectors, labels, *stored, temperature=c.temperature, normalize=c.normalize)
            losses.append(own)
            ready = ready and self.banks.ready(key)
        return torch.stack(losses).mean(), ready
