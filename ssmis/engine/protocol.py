# SPDX-License-Identifier: Apache-2.0
"""How a run is done: grid, patches, batches, augmentation, optimisation, inference and scoring, under a name."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ssmis.data import FAMILIES, Augment, BatchMaker, Cache, Case, Intensity, TwoStreamSampler, Volume, load_la
from ssmis.engine.config import FitConfig
from ssmis.engine.evaluate import CaseResult, evaluate
from ssmis.engine.infer import Predictor
from ssmis.engine.record import list_facts, write_evaluation
from ssmis.engine.runtime import pick_precision
from ssmis.engine.slices import SlicePredictor, resize_slice
from ssmis.engine.windows import Blending
from ssmis.metrics import Convention
from ssmis.recipes import Recipe, dual_nets


@dataclass(frozen=True)
class Protocol:
    """Settings that every row of a table shares.

    Attributes:
        patch: training patch and inference window, in voxels of the training grid.
        widths: channels of the nets from full resolution to the bottleneck.
        blocks: residual blocks a stage of the ResNet.
        dropout: of the nets.
        norm: of the nets: "batch", "instance", "group" or "none".
        preset: of the semi-supervised row.
        scale: training grid in relation to the original one, per axis; images are area-averaged, probabilities
            brought back by trilinear interpolation. Metrics are always on the original grid.
        labelled_per_batch: labelled volumes a step.
        unlabelled_per_batch: unlabelled volumes a step of a semi-supervised row.
        augment: of labelled and unlabelled crops alike, in every row.
        strong_views: strong views of each unlabelled crop, by `augment`; its weak view then has the same geometry and
            only slight changes of intensity.
        foreground: share of the labelled crops that are centred on a foreground voxel.
        stride: of the inference windows, in voxels of the training grid.
        blending: "uniform" or "gaussian" weighting of overlapping windows.
        flips: spatial axes flipped in test-time augmentation.
        fit: optimisation.
        name: of the protocol.
        family: of lists its data is split by, see `ssmis.data.FAMILIES`; results of two families stand in no table
            together. Empty for data of your own.
        resize: size that 2-D slices are brought to before anything else; volumes are then predicted slice by slice.
        classes: the foreground classes that are scored.
        convention: of the distances, see `ssmis.metrics.surface_distances`.
        foreground_margin: of the calibration, see `ssmis.metrics.calibration`.
    """

    patch: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    dropout: float = 0.5
    norm: str = "batch"
    preset: str = "paper"
    scale: float = 1.0
    labelled_per_batch: int = 2
    unlabelled_per_batch: int = 2
    augment: Augment = field(default_factory=Augment.strong)
    strong_views: int = 0
    foreground: float = 0.0
    stride: tuple[int, ...] = ()
    blending: Blending = "uniform"
    flips: tuple[int, ...] = ()
    fit: FitConfig = field(default_factory=FitConfig)
    name: str = ""
    family: str = ""
    resize: tuple[int, int] | None = None
    classes: tuple[int, ...] = (1,)
    convention: Convention = "default"
    foreground_margin: int | None = 8

    def nets(self) -> dict[str, nn.Module]:
        """Return the dual-network pair, new, with classes, axes, widths, blocks, dropout and norm of this protocol."""
        return dual_nets(
            classes=max(self.classes) + 1,
            dims=len(self.patch),
            widths=self.widths,
            blocks=self.blocks,
            dropout=self.dropout,
            norm=self.norm,
        )

    def load(self, case: Case, *, with_label: bool = True) -> Volume:
        """Read a case on its original grid, as it is scored."""
        return load_la(case, with_label=with_label, classes=max(self.classes) + 1)

    def cache(self, cases: Sequence[Case], folder: Path | str) -> Cache:
        """Decode `cases` once, on this protocol's grid."""
        if self.resize is not None:
            folder = Path(folder) / "x".join(map(str, self.resize))
        return Cache.build(cases, folder, scale=self.scale, load=self._load)

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
            unlabelled_augment=replace(self.augment, intensity=Intensity()) if self.strong_views else self.augment,
            strong_views=self.strong_views,
            strong_augment=self.augment,
            foreground_prob=self.foreground,
        )

    def facts(self, **lists: Sequence[Case]) -> dict[str, Any]:
        """Return what a run under this protocol depends on, for `fit(facts=...)`: settings, case lists and digests.

        Args:
            lists: role in training -> cases.
        """
        settings = asdict(self)
        for name in ("fit", *_SCORING):  # `fit` stores its own; how it was scored is stored when it is
            del settings[name]
        return {
            "protocol": settings,
            "checkpoint": "last",
            **{role: list_facts(cases, FAMILIES.get(self.family)) for role, cases in lists.items()},
        }

    def score(self, recipe: Recipe, cases: Sequence[Case], out: Path | str) -> list[CaseResult]:
        """Score a trained recipe by the conventions of this protocol, without and with the largest component alone.

        Writes into `out`: `cases.csv`, `cases_largest.csv` (only the largest component of each class kept),
        `calibration.csv`, and the entry `evaluation` of `protocol.json`.

        Raises:
            DataError: a case has no label, or `out` holds no `protocol.json`.
        """
        predictor = self.predictor(recipe)
        results = evaluate(
            predictor,
            cases,
            classes=self.classes,
            load=self.load,
            convention=self.convention,
            largest=True,
            foreground_margin=self.foreground_margin,
        )
        windows = predictor.predictor if isinstance(predictor, SlicePredictor) else predictor
        how = {
            "scored": list_facts(cases, FAMILIES.get(self.family)),
            "nets": list(recipe.deployed()),
            "windows": {name: getattr(windows, name) for name in ("patch", "stride", "blending", "flips", "scale")},
            "resize": self.resize,
            **{name: getattr(self, name) for name in _SCORING},
        }
        write_evaluation(out, results, how)
        return results

    def predictor(self, recipe: Recipe) -> Predictor | SlicePredictor:
        """Return the sliding-window predictor of a trained recipe."""
        device = next(recipe.parameters()).device
        windows = Predictor(
            recipe,
            patch=self.patch,
            stride=self.stride or None,
            blending=self.blending,
            flips=self.flips,
            scale=self.scale,
            device=device,
            precision=pick_precision(self.fit.precision, device),
        )
        return windows if self.resize is None else SlicePredictor(windows, self.resize)

    def _load(self, case: Case, *, with_label: bool = True) -> Volume:
        volume = self.load(case, with_label=with_label)
        return volume if self.resize is None else resize_slice(volume, self.resize)


_SCORING = ("classes", "convention", "foreground_margin")
