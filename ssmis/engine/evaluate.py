# SPDX-License-Identifier: Apache-2.0
"""Score a predictor on whole cases, on their original grid."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmis.data import Case, DataError, Volume, load_la
from ssmis.engine.infer import Predictor
from ssmis.metrics import CaseScore, evaluate_case


@dataclass(frozen=True)
class CaseResult:
    """A scored case: its scores, one a foreground class, and the predicted labels `(*S)`."""

    case: str
    scores: tuple[CaseScore, ...]
    prediction: NDArray[Any]


def evaluate(
    predictor: Predictor,
    cases: Iterable[Case],
    *,
    classes: Sequence[int] = (1,),
    load: Callable[..., Volume] = load_la,
) -> list[CaseResult]:
    """Predict each case by sliding window and score the argmax against its label.

    Args:
        predictor: of the trained recipe.
        cases: labelled cases.
        classes: the foreground classes to score.
        load: `load(case) -> Volume`.

    Raises:
        DataError: a case has no label.
    """
    results = []
    for case in cases:
        volume = load(case)
        if volume.label is None:
            raise DataError(f"{case.image}: case {case.id!r} has no label to evaluate against")
        predicted = predictor.predict(volume.image).probs.argmax(0).cpu().numpy().astype(np.uint8)
        scores = evaluate_case(predicted, volume.label, classes=classes, spacing_mm=volume.spacing_mm, case=case.id)
        results.append(CaseResult(case.id, tuple(scores), predicted))
    return results
