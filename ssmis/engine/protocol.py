# SPDX-License-Identifier: Apache-2.0
"""How a run is done: grid, patches, batches, augmentation, optimisation and inference, under a name."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ssmis.data import Augment, BatchMaker, Cache, Case, TwoStreamSampler
from ssmis.engine.config import FitConfig
from ssmis.engine.infer import Predictor
from ssmis.engine.runtime import pick_precision
from ssmis.engine.windows import Blending
from ssmis.recipes import Recipe


@dataclass(frozen=True)
class Protocol:
    """Settings that every row of a table shares.

    Attributes:
        patch: training patch and inference window, in voxels of the training grid.
        widths: channels of the nets from full resolution to the bottleneck.
        dropout: of the nets.
        preset: of the semi-supervised row.
        scale: training grid in relation to the original one, per axis; images are area-averaged, probabilities
            brought back by trilinear interpolation. Metrics are always on the original grid.
        labelled_per_batch: labelled volumes a step.
        unlabelled_per_batch: unlabelled volumes a step of a semi-supervised row.
        augment: of labelled and unlabelled crops alike, in every row.
        foreground: share of the labelled crops that are centred on a foreground voxel.
        stride: of the inference windows, in voxels of the training grid.
        blending: "uniform" or "gaussian" weighting of overlapping windows.
        flips: spatial axes flipped in test-time augmentation.
        fit: optimisation.
    """

    patch: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    dropout: float = 0.5
    preset: str = "paper"
    scale: float = 1.0
    labelled_per_batch: int = 2
    unlabelled_per_batch: int = 2
    augment: Augment = field(default_factory=Augment.strong)
    foreground: float = 0.0
    stride: tuple[int, ...] = ()
    blending: Blending = "uniform"
    flips: tuple[int, ...] = ()
    fit: FitConfig = field(default_factory=FitConfig)

    def cache(self, cases: Sequence[Case], folder: Path | str) -> Cache:
        """Decode `cases` once, on this protocol's grid."""
        return Cache.build(cases, folder, scale=self.scale)

    def batches(self, cache: Cache, labelled: Sequence[Case], unlabelled: Sequence[Case] = ()) -> BatchMaker:
        """Return step -> batch; without unlabelled cases the batches are supervised."""
        sampler = TwoStreamSampler(
            [case.id for case in labelled],
            [case.id for case in unlabelled],
            labelled_per_batch=self.labelled_per_batch,
            unlabelled_per_batch=self.unlabelled_per_batch if unlabelled else 0,
            seed=self.fit.seed,
        )
        return BatchMaker(
            cache,
            sampler,
            patch=self.patch,
            seed=self.fit.seed,
            labelled_augment=self.augment,
            unlabelled_augment=self.augment,
            foreground_prob=self.foreground,
        )

    def facts(self, **lists: Sequence[Case]) -> dict[str, Any]:
        """Return what a run under this protocol depends on, for `fit(facts=...)`: settings, case lists and digests.

        Args:
            lists: role in training -> cases.
        """
        settings = asdict(self)
        del settings["fit"]  # `fit` stores its own
        facts: dict[str, Any] = {"protocol": settings, "checkpoint": "last"}
        for role, cases in lists.items():
            ids = [case.id for case in cases]
            facts[role] = {"cases": ids, "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()}
        return facts

    def predictor(self, recipe: Recipe) -> Predictor:
        """Return the sliding-window predictor of a trained recipe."""
        device = next(recipe.parameters()).device
        return Predictor(
            recipe,
            patch=self.patch,
            stride=self.stride or None,
            blending=self.blending,
            flips=self.flips,
            scale=self.scale,
            device=device,
            precision=pick_precision(self.fit.precision, device),
        )


# Atria lie the same way in every scan: small rotations instead of mirrors and quarter turns, intensity above all.
UPRIGHT = replace(Augment.strong(), flip_axes=(), rot90=False, affine_probability=0.5)

PROTOCOLS: Mapping[str, Protocol] = {
    # the public code of the dual-network authors: random crop only, SGD, steps of a factor of ten
    "paper": Protocol(
        patch=(112, 112, 80),
        augment=Augment.none(),
        stride=(18, 18, 4),
    ),
    # the same method at half resolution, sized for two CPU cores
    "cpu": Protocol(
        patch=(64, 64, 48),
        widths=(8, 16, 32, 64, 128),
        dropout=0.1,
        preset="balanced",
        scale=0.5,
        augment=UPRIGHT,
        stride=(32, 32, 16),
        blending="gaussian",
        fit=FitConfig(
            steps=3000,
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup=0.02,
            clip_norm=5.0,
            ema_decay=0.995,
        ),
    ),
    # atrium-like phantoms of 32 x 32 x 24 voxels, a table in minutes
    "phantom": Protocol(
        patch=(32, 32, 24),
        widths=(8, 16, 32, 64, 64),
        dropout=0.1,
        preset="balanced",
        augment=UPRIGHT,
        stride=(32, 32, 24),
        fit=FitConfig(
            steps=300,
            optimizer="adamw",
            learning_rate=3e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup=0.02,
            clip_norm=5.0,
            ema_decay=0.98,
        ),
    ),
}
