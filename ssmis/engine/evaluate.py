# SPDX-License-Identifier: Apache-2.0
"""Score a predictor on whole cases, on their original grid."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ssmis.data import Case, DataError, Volume, load_la
from ssmis.engine.postprocess import largest_component
from ssmis.metrics import Calibration, CaseScore, Convention, calibration, evaluate_case, pool_calibration
from ssmis.recipes.base import Prediction


class Predicts(Protocol):
    """Whatever predicts a volume `(C, *S)`, such as a `Predictor`.

    If it has `stream(image)` too, which yields the probabilities in slabs of rows, they are scored slab by slab.
    """

    def predict(self, image: NDArray[Any], /) -> Prediction:
        """Return a `Prediction` without the batch axis."""


@dataclass(frozen=True)
class CaseResult:
    """A scored case.

    Attributes:
        case: its id.
        scores: one a foreground class, of the prediction as it is.
        prediction: labels `(*S)`.
        calibration: of the probabilities.
        largest: scores with only the largest component of each class kept; empty if not asked for.
        uncertainty: normalised entropy `(*S)` in [0, 1], float32; None if not asked for.
    """

    case: str
    scores: tuple[CaseScore, ...]
    prediction: NDArray[Any]
    calibration: Calibration
    largest: tuple[CaseScore, ...] = ()
    uncertainty: NDArray[np.float32] | None = None


def evaluate(
    predictor: Predicts,
    cases: Iterable[Case],
    *,
    classes: Sequence[int] = (1,),
    load: Callable[..., Volume] = load_la,
    convention: Convention = "default",
    largest: bool = False,
    foreground_margin: int | None = None,
    uncertainty: bool = False,
) -> list[CaseResult]:
    """Predict each case by sliding window, score the argmax against its label, and measure the calibration.

    Args:
        predictor: of the trained recipe.
        cases: labelled cases.
        classes: the foreground classes to score.
        load: `load(case) -> Volume`.
        convention: of the distances, see `ssmis.metrics.surface_distances`.
        largest: score a second time with only the largest component of each class kept, see `largest_component`.
        foreground_margin: of the calibration: None is over the whole image, see `ssmis.metrics.calibration`.
        uncertainty: keep the map of each case.

    Raises:
        DataError: a case has no label.
    """
    results = []
    for case in cases:
        volume = load(case)
        label = volume.label
        if label is None:
            raise DataError(f"{case.image}: case {case.id!r} has no label to evaluate against")
        predicted, confidence, unsure = _predicted(predictor, volume.image, label, foreground_margin, uncertainty)
        masks = [predicted]
        if largest:
            masks.append(largest_component(torch.from_numpy(predicted), classes=classes).numpy())
        scores = [
            tuple(
                evaluate_case(
                    mask, label, classes=classes, spacing_mm=volume.spacing_mm, convention=convention, case=case.id
                )
            )
            for mask in masks
        ]
        results.append(CaseResult(case.id, scores[0], predicted, confidence, scores[1] if largest else (), unsure))
    return results


def _predicted(
    predictor: Predicts, image: NDArray[Any], label: NDArray[Any], foreground_margin: int | None, uncertainty: bool
) -> tuple[NDArray[Any], Calibration, NDArray[np.float32] | None]:
    """Labels, calibration, uncertainty: by slabs if it can be, since all probabilities of a volume may fill memory."""
    stream = getattr(predictor, "stream", None) if foreground_margin is None else None
    slabs = [(0, predictor.predict(image).probs)] if stream is None else stream(image)
    predicted, parts = np.zeros(image.shape[1:], dtype=np.uint8), []
    unsure = np.zeros(image.shape[1:], dtype=np.float32) if uncertainty else None
    for first, probs in slabs:
        rows = slice(first, first + probs.shape[1])
        predicted[rows] = probs.argmax(0).cpu().numpy()
        parts.append(calibration(probs.float(), label[rows], foreground_margin=foreground_margin))
        if unsure is not None:
            unsure[rows] = Prediction.from_probs(probs.float()[None]).uncertainty[0].cpu().numpy()
    return predicted, pool_calibration(parts), unsure
