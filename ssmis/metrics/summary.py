# SPDX-License-Identifier: Apache-2.0
"""From cases to numbers: one score a case and class, and summaries over cases with their uncertainty."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isnan, nan
from pathlib import Path
from typing import Literal

import numpy as np

from ssmis._checks import check_choice
from ssmis.metrics._masks import Array, ArrayLike, label_pair
from ssmis.metrics.overlap import mask_overlap
from ssmis.metrics.surface import Convention, surface_distances

METRICS = ("dice", "jaccard", "hd95", "hd", "assd", "masd", "asd", "nsd")


@dataclass(frozen=True)
class CaseScore:
    """Metrics of one class in one case; distances in `unit`.

    `status` is "ok", "miss" (exactly one of the two masks is empty: Dice 0, distances the image diagonal) or "na"
    (both are: every metric is nan).
    """

    case: str
    label: int
    status: Literal["ok", "miss", "na"]
    n_prediction: int
    n_reference: int
    dice: float
    jaccard: float
    hd95: float
    hd: float
    assd: float
    masd: float
    asd: float
    nsd: float
    unit: Literal["mm", "voxel"]


def evaluate_case(
    prediction_labels: ArrayLike,
    reference_labels: ArrayLike,
    *,
    classes: Sequence[int],
    spacing_mm: Sequence[float],
    convention: Convention = "default",
    nsd_tolerance_mm: float = 1.0,
    case: str = "",
) -> list[CaseScore]:
    """Score one case: one `CaseScore` for each of `classes`, in that order.

    Args:
        prediction_labels: integer `(*S)`, numpy or torch.
        reference_labels: integer `(*S)`; voxels marked -1 are left out of both.
        classes: the foreground classes to score.
        spacing_mm: voxel size in mm.
        convention: of the distances, see `surface_distances`.
        nsd_tolerance_mm: tolerance of the surface Dice.
        case: id written into the scores.

    Raises:
        ValueError: a label map is not of integers, the shapes differ, or the spacing does not fit them.
    """
    predicted, true = label_pair(prediction_labels, reference_labels)
    scores = []
    for label in classes:
        masks = predicted == label, true == label
        areas = mask_overlap(*masks)
        distances = surface_distances(
            *masks, spacing_mm=spacing_mm, convention=convention, nsd_tolerance_mm=nsd_tolerance_mm
        )
        some = bool(areas.n_prediction) + bool(areas.n_reference)
        scores.append(
            CaseScore(
                case=case,
                label=label,
                status="ok" if some == 2 else "miss" if some == 1 else "na",
                unit="voxel" if convention == "medpy" else "mm",
                **asdict(areas),
                **asdict(distances),
            )
        )
    return scores


def write_cases_csv(path: str | Path, rows: Sequence[CaseScore]) -> None:
    """Write one line a case and class; nan stays `nan`."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(CaseScore)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


@dataclass(frozen=True)
class Summary:
    """One metric over cases: how many (`n`), how many not applicable or missed, location, spread, and the bootstrap
    95 % interval of the mean (`low`, `high`). `n_miss` cases are part of `n`, `n_na` cases are not.
    """

    metric: str
    n: int
    n_na: int
    n_miss: int
    mean: float
    median: float
    sd: float
    low: float
    high: float


def summarise(
    rows: Sequence[CaseScore], *, metric: str, label: int | None = None, resamples: int = 2000, seed: int = 0
) -> Summary:
    """Summarise one metric over cases.

    Args:
        rows: scores of all cases.
        metric: one of `METRICS`.
        label: the class; None first averages each case over the classes that apply to it, and counts a case as not
            applicable if no class applies, as missed if any class was.
        resamples: bootstrap draws over cases.
        seed: of the bootstrap.

    Raises:
        ValueError: an unknown metric, no row of this class, or two rows of one case and class.

    Empty case: with no applicable case the numbers are nan; the spread of a single case is nan.
    """
    check_choice(metric, METRICS, name="metric")
    cases: dict[str, list[CaseScore]] = {}
    for row in rows:
        if label is None or row.label == label:
            cases.setdefault(row.case, []).append(row)
    for case, own in cases.items():
        if len({row.label for row in own}) < len(own):
            raise ValueError(f"case {case!r} has more than one score of a class; give every case an id of its own")
    if not cases:
        raise ValueError(f"no score of label {label} among {len(rows)} rows")
    values = []
    for own in cases.values():
        applicable = [float(getattr(row, metric)) for row in own if row.status != "na"]
        if applicable:
            values.append(float(np.mean(applicable)))
    n_miss = sum(any(row.status == "miss" for row in own) for own in cases.values())
    n_na = len(cases) - len(values)
    if not values:
        return Summary(metric, 0, n_na, n_miss, nan, nan, nan, nan, nan)
    array = np.asarray(values)
    low, high = bootstrap_interval(array, resamples=resamples, seed=seed)
    sd = float(array.std(ddof=1)) if len(array) > 1 else nan
    return Summary(metric, len(array), n_na, n_miss, float(array.mean()), float(np.median(array)), sd, low, high)


def bootstrap_interval(values: Array, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap: 95 % interval of the mean of `values` `(N,)`."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `a - b` over the cases both have, its bootstrap 95 % interval, and the p-value of a sign-flip test."""

    n: int
    n_dropped: int
    mean: float
    low: float
    high: float
    p_value: float


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Compare two runs case by case.

    The p-value is two-sided: how often differences with randomly flipped signs have a mean at least as far from 0.

    Args:
        a: one value a case; nan is not applicable.
        b: the other run's values, same cases in the same order.
        resamples: draws of the bootstrap and of the test.
        seed: of both.

    Raises:
        ValueError: the lengths differ or no case has both values.
    """
    if len(a) != len(b):
        raise ValueError(f"b has {len(b)} cases; expected {len(a)} to match a, in the same order")
    differences = np.asarray([x - y for x, y in zip(a, b) if not (isnan(x) or isnan(y))], dtype=np.float64)
    if not len(differences):
        raise ValueError(f"none of the {len(a)} cases has a value in both a and b")
    low, high = bootstrap_interval(differences, resamples=resamples, seed=seed)
    mean = float(differences.mean())
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(resamples, len(differences)))
    as_far = np.abs((signs * differences).mean(axis=1)) >= abs(mean) - 1e-12
    p_value = float((as_far.sum() + 1) / (resamples + 1))
    return PairedDifference(len(differences), len(a) - len(differences), mean, low, high, p_value)
