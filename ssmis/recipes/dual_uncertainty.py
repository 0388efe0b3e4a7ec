# SPDX-License-Identifier: Apache-2.0
"""Two different nets, uncertainty-guided pseudo-labels, contrast of uncertain voxels with reliable prototypes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmis._checks import check_choice
from ssmis._classes import top_class
from ssmis.data.batch import Batch
from ssmis.data.components import largest_components, pieces_of
from ssmis.data.mixing import box_mix, cut_mix, random_boxes
from ssmis.kernels import VoxelContrastStats, voxel_contrast
from ssmis.losses import (
    confidence_disagreement,
    cosine_consistency,
    dice_ce,
    dice_consistency,
    kl_rectified_ce,
    pseudo_ce,
    soft_dice,
)
from ssmis.memory import Banks, sample_per_class, sample_voxels, volume_weight
from ssmis.nets import EMA
from ssmis.nets.output import NetOutput
from ssmis.recipes._dual_settings import PRESETS, DualUncertaintyConfig
from ssmis.recipes._nets import each, feature_space, two_nets
from ssmis.recipes.base import Recipe, Terms
from ssmis.registry import BANKS, RECIPES
from ssmis.schedules import ramp_to
from ssmis.uncertainty import lowest_entropy

__all__ = ["PRESETS", "DualUncertainty", "DualUncertaintyConfig"]

_SURE = 100.0  # logit of a sure class against 0 of the others: its probability is 1


def _as_it_is(maps: Tensor) -> Tensor:
    return maps


class View(NamedTuple):
    """What the students see in the place of a batch, and what is known about it.

    Attributes:
        batch: whose strong view may have exchanged boxes.
        as_mixed: does the same with logits `(U, K, *S)` of the weak view.
        known: where these are true labels then, bool `(U, *S)`; None: nowhere.
        labels: of the mixed volumes, -1 where they are unknown, where these take the place of the labelled volumes.
    """

    batch: Batch
    as_mixed: Callable[[Tensor], Tensor] = _as_it_is
    known: Tensor | None = None
    labels: Tensor | None = None


class Seen(NamedTuple):
    """What the nets said about a batch, each by its name.

    Attributes:
        batch: as they saw it.
        outputs: of all its volumes.
        unlabelled: of the unlabelled ones.
        judged: logits of the pseudo-labels that a net, or the averages in its place, gives to its peer.
        keep: bool `(U, *S)`, the voxels whose pseudo-labels are surest.
    """

    batch: Batch
    outputs: Mapping[str, NetOutput]
    unlabelled: Mapping[str, NetOutput]
    judged: Mapping[str, Tensor]
    keep: Mapping[str, Tensor]


@RECIPES.register("dual_uncertainty")
class DualUncertainty(Recipe):
    """Dual networks with uncertainty-guided pseudo-labels.

    `sum_n [CE + Dice + 0.5 disagreement]` on labelled volumes, plus a ramp times
    `sum_n [mean(exp(-D) CE + D) + filtered CE]` on unlabelled ones, plus a ramp times the contrast of uncertain voxels
    with a bank of reliable ones, n over both nets and D the KL divergence from the peer. `docs/recipes` compares each
    choice with the paper and with the group's public code.

    Args:
        nets: name -> net, two; default: ResNet-34 encoder-decoder and V-Net of width 16.
        preset: "paper" (the description, every term alive), "balanced" (the same, and foreground does not shrink: the
            filter ranks within each class, soft Dice joins the pseudo-label terms), "averaged" (balanced; moving
            averages of the nets give soft pseudo-labels, to the contrast too, strong views exchange boxes, the ramp
            lasts to the end, and the disagreement has weight 1), "late" (averaged; unlabelled volumes join half-way,
            and there is no disagreement), "copy_paste" (late; they join earlier, exchange boxes with labelled
            volumes, and pseudo-labels have one component a class) or "public_code" (what the release effectively
            optimises).
        predict_with: names of the nets averaged in `predict`; default: both.
        overrides: fields of `DualUncertaintyConfig`.

    Paper: Lu, Wu, Chaddad, Daqqaq, Kateb, "Enhancing Dual Network Based Semi-Supervised Medical Image Segmentation
        with Uncertainty-Guided Pseudo-Labeling", Knowledge-Based Systems 2025 (arXiv 2509.13084).
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module] | None = None,
        *,
        preset: str = "paper",
        predict_with: Sequence[str] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(two_nets(nets), predict_with=predict_with)
        check_choice(preset, tuple(PRESETS), name="preset")
        self.config = c = replace(PRESETS[preset], **overrides)
        if isinstance(classes := getattr(next(iter(self.students.values())), "classes", None), int):
            pieces_of(c.components, classes=classes)  # a wrong one is told now, not when unlabelled volumes join
        self.banks = Banks()
        if c.contrast_weight > 0:
            own: dict[str, dict[str, Any]] = {"fifo": {"slots": c.slots}, "ema": {"decay": c.bank_decay}}
            for name, net in self.students.items():
                classes, channels = feature_space(name, net)
                self.banks[name] = BANKS.create(c.bank, classes=classes, channels=channels, **own.get(c.bank, {}))
        self.teachers = nn.ModuleDict()
        if c.teacher == "average":
            self.teachers.update({name: EMA(net, decay=c.teacher_decay) for name, net in self.students.items()})

    def forward(self, batch: Batch, progress: float) -> Terms:
        """Terms `supervised`, `disagreement`, `rectified`, `filtered`, `pseudo_dice`, `cosine` and `contrast`, each
        `/<net>`.
        """
        if len(batch.unlabelled) == 0:
            raise ValueError("the batch has no unlabelled volumes; dual_uncertainty needs some in every batch")
        c = self.config
        learns = progress >= c.unlabelled_from
        since = max(0.0, progress - c.unlabelled_from) / (1 - c.unlabelled_from)
        view = self._view(batch) if learns else View(batch.without_unlabelled())
        whole, batch = batch, view.batch
        images = batch.student_images
        outputs = {name: self.run_net(name, images) for name in self.students}
        labelled, unlabelled = {}, {}
        for name, output in outputs.items():
            labelled[name], unlabelled[name] = batch.split(output)
        judged = each(self._judged(whole, unlabelled), view.as_mixed) if learns else {}
        keep = each(judged, lambda logits: self._surest(logits, batch.valid, view.known))
        seen = Seen(batch, outputs, unlabelled, judged, keep)
        first, second = self.students
        taught, labels = (labelled, batch.labels) if view.labels is None else (unlabelled, view.labels)
        terms = Terms()
        for place, name, peer in (("first", first, second), ("second", second, first)):
            self._from_labels(terms, place, name, taught[name].logits, taught[peer].logits, labels)
            if learns:
                self._from_pseudo_labels(terms, place, name, peer, seen, since)
        return terms

    def _from_labels(self, terms: Terms, place: str, name: str, own: Tensor, peer: Tensor, labels: Tensor) -> None:
        """Terms of the labelled volumes, into one net."""
        c = self.config
        supervised = dice_ce(own, labels, ce_weight=c.ce_weight, dice_weight=c.dice_weight, reduction=c.reduction)
        terms.add(f"supervised/{name}", supervised, 1.0, reaches=[name])
        if c.disagreement_weight > 0 and c.disagreement_into in ("both", place):
            gap = confidence_disagreement(own, peer, labels, threshold=c.disagreement_threshold, reduction=c.reduction)
            terms.add(f"disagreement/{name}", gap, c.disagreement_weight, reaches=[name])

    def _from_pseudo_labels(self, terms: Terms, place: str, name: str, peer: str, seen: Seen, since: float) -> None:
        """Terms of the unlabelled volumes, into one net; `since` is the progress since they joined."""
        c, batch = self.config, seen.batch
        ramp = ramp_to(since, c.ramp_end)
        own, judged = seen.unlabelled[name].logits, seen.judged[peer]
        how: dict[str, Any] = {
            "targets": c.targets,
            "sharpen_temperature": c.sharpen_temperature,
            "reduction": c.reduction,
        }

        def add(term: str, value: Tensor, weight: float) -> None:
            terms.add(f"{term}/{name}", value, weight, reaches=[name])

        if c.rectified_weight > 0 and c.rectified_into in ("both", place):
            student, teacher, where = own, judged, batch.valid
            if c.rectified_on == "all":
                student, teacher = seen.outputs[name].logits, seen.outputs[peer].logits
                where = torch.cat([batch.labels >= 0, valid_voxels(batch)])
            loss: Any = partial(kl_rectified_ce, detach_weight=c.detach_weight) if c.kl_rectified else pseudo_ce
            add("rectified", loss(student, teacher, mask=where, **how), c.rectified_weight * ramp)
        if c.filtered_weight > 0:
            add("filtered", pseudo_ce(own, judged, mask=seen.keep[peer], **how), c.filtered_weight * ramp)
        if c.pseudo_dice_weight > 0:
            if c.targets == "soft":
                dice = dice_consistency(own, judged, mask=batch.valid, reduction=c.reduction)
            else:
                dice = soft_dice(own, top_class(judged), mask=batch.valid, reduction=c.reduction)
            add("pseudo_dice", dice, c.pseudo_dice_weight * ramp)
        if c.cosine_weight > 0:
            other = seen.unlabelled[peer].logits
            cosine = cosine_consistency(own, other, mask=batch.valid, reduction=c.reduction)
            add("cosine", cosine, c.cosine_weight * ramp)
        if c.contrast_weight > 0:
            contrast, stats = self._contrast(batch, name, seen.outputs[name], judged, seen.keep[peer])
            add("contrast", contrast, c.contrast_weight / 2 * ramp_to(since, c.contrast_ramp_end))  # mean of both nets
            terms.notes[f"anchors/{name}"], terms.notes[f"anchors_skipped/{name}"] = stats.valid, stats.skipped

    def begin_step(self) -> None:
        """Forget the candidates of a step that was skipped."""
        self.banks.begin_step()

    def after_step(self, progress: float) -> None:
        """Write the candidates of all micro-steps and processes into the banks, and move the averages."""
        for name, teacher in self.teachers.items():
            cast(EMA, teacher).update(self.students[name])
        self.banks.write()

    def _view(self, batch: Batch) -> View:
        """Exchange boxes in what the students see."""
        side = self.config.mix_side
        if side == 0:
            return View(batch)
        strong = batch.strong[0] if batch.strong else batch.unlabelled
        if self.config.mix_with == "unlabelled":
            if len(strong) == 1:
                told = "one unlabelled volume a process or micro-step has no other one to exchange boxes with"
                warnings.warn(f"{told}: mix_side does nothing", RuntimeWarning, stacklevel=2)
            boxes = random_boxes(len(strong), tuple(strong.shape[2:]), side=side, device=strong.device)
            valid = None if batch.valid is None else cut_mix(batch.valid, boxes)
            batch = replace(batch, strong=(cut_mix(strong, boxes),), valid=valid)
            return View(batch, partial(cut_mix, boxes=boxes))
        nothing = torch.zeros_like(strong[:, 0], dtype=torch.long)
        mixed = box_mix(batch.labelled, batch.labels, strong, nothing, side=side, valid=batch.valid)

        def with_labels(logits: Tensor) -> Tensor:
            known = F.one_hot(mixed.labels.clamp_min(0), logits.shape[1]).movedim(-1, 1)
            return torch.where(mixed.labelled.unsqueeze(1), _SURE * known.to(logits.dtype), logits)

        batch = replace(batch, strong=(mixed.images,), valid=mixed.labels >= 0)
        if self.config.mix_with == "labelled":
            return View(batch, with_labels, mixed.labelled)
        if len(batch.labelled) > len(strong):
            told = f"the batch has {len(batch.labelled)} labelled and {len(strong)} unlabelled volumes"
            raise ValueError(f"{told}; mix_with 'labelled_only' mixes each with one")
        batch = replace(batch, labelled=batch.labelled[:0], labels=batch.labels[:0], cases=batch.cases[-len(strong) :])
        return View(batch, with_labels, mixed.labelled, mixed.labels.where(mixed.labelled, -1))

    def _surest(self, logits: Tensor, valid: Tensor | None, known: Tensor | None) -> Tensor:
        """The share of the pseudo-labels with the lowest entropy, and every true label: bool `(U, *S)`."""
        c = self.config
        if known is None or valid is None:
            return lowest_entropy(logits, c.keep_fraction, scope=c.filter_scope, valid=valid)
        return lowest_entropy(logits, c.keep_fraction, scope=c.filter_scope, valid=valid & ~known) | (valid & known)

    def _judged(self, batch: Batch, unlabelled: Mapping[str, NetOutput]) -> dict[str, Tensor]:
        """Logits of the pseudo-labels that each net, or the averages in its place, gives to its peer.

        The averages look at whole volumes: `batch` is the one before boxes were exchanged.
        """
        if not self.teachers:
            return {name: output.logits for name, output in unlabelled.items()}
        with torch.no_grad():
            probs = [teacher(batch.unlabelled).logits.float().softmax(1) for teacher in self.teachers.values()]
        mean = torch.stack(probs).mean(0).clamp_min(torch.finfo(torch.float32).tiny).log()
        pieces = pieces_of(self.config.components, classes=mean.shape[1])
        mean = without_islands(mean, classes=pieces, valid=batch.valid) if pieces else mean
        return dict.fromkeys(self.students, mean)

    def _contrast(
        self, batch: Batch, name: str, output: NetOutput, peer_logits: Tensor, kept_by_peer: Tensor
    ) -> tuple[Tensor, VoxelContrastStats]:
        """Contrast of the voxels that the peer is unsure of with the bank of reliable ones; collects candidates."""
        if output.features is None:
            raise ValueError(f"net {name!r} returns no features; the contrast needs them (or contrast_weight=0)")
        guess_l, guess_u = batch.split(top_class(output.logits))
        pseudo = top_class(peer_logits)
        right = batch.labels.where(guess_l == batch.labels, -1)
        agreed = pseudo.where(kept_by_peer, -1)
        vectors, labels = sample_per_class(
            output.features,
            torch.cat([right, agreed]),
            classes=output.logits.shape[1],
            per_class=self.config.candidates,
        )
        keys, key_labels = self.banks.ask(name, vectors, labels)
        anchors = batch.split(output.features)[1]
        taken_for = pseudo if self.config.anchor_labels == "pseudo" else guess_u
        unsure = taken_for.where(valid_voxels(batch) & ~kept_by_peer, -1)
        if self.config.anchors is not None:
            anchors, unsure = sample_voxels(anchors, unsure, count=self.config.anchors)
        return voxel_contrast(
            anchors,
            unsure,
            keys,
            key_labels,
            temperature=self.config.temperature,
            weight=volume_weight(unsure),
            denominator="negatives",
            return_stats=True,
        )


def without_islands(logits: Tensor, *, classes: Sequence[int], valid: Tensor | None = None) -> Tensor:
    """Return logits `(B, K, *S)` that say background, for sure, outside the largest component of each of `classes`.

    What is said in padding, where `valid` `(B, *S)` is false, is no part of a component, and stays.

    Gradient: to the logits, but for those that were replaced.
    """
    top = top_class(logits)
    top = top if valid is None else top.where(valid, 0)
    islands = top != largest_components(top, classes=classes)
    background = torch.zeros_like(logits)
    background[:, 0] = _SURE
    return torch.where(islands.unsqueeze(1), background, logits)


def valid_voxels(batch: Batch) -> Tensor:
    """Return bool `(U, *S)`: the unlabelled voxels that are not padding."""
    if batch.valid is not None:
        return batch.valid
    return torch.ones_like(batch.unlabelled[:, 0], dtype=torch.bool)
