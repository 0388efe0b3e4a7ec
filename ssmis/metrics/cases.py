# SPDX-License-Identifier: Apache-2.0
"""Scores of cases: every metric of every class, and the file that keeps them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf, isnan
from pathlib import Path
from typing import Any, Literal, get_args

from ssmis.metrics._masks import ArrayLike, class_numbers, label_pair
from ssmis.metrics.overlap import mask_overlap
from ssmis.metrics.surface import Convention, surface_distances

DISTANCES = ("hd95", "hd", "assd", "masd", "asd")
METRICS = ("dice", "jaccard", *DISTANCES, "nsd")


@dataclass(frozen=True)
class CaseScore:
    """Metrics of one class in one case; distances and the tolerance of `nsd` in `unit`.

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
    nsd_tolerance: float = 1.0


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
        classes: the foreground classes to score, each once.
        spacing_mm: voxel size in mm.
        convention: of the distances, see `surface_distances`.
        nsd_tolerance_mm: tolerance of `nsd`; in voxels under "medpy".
        case: id written into the scores.

    Raises:
        ValueError: a label map is not of integers, the shapes differ, the spacing does not fit them, or a class is no
            whole number of at least 0 or there twice.
    """
    predicted, true = label_pair(prediction_labels, reference_labels)
    scores = []
    for label in class_numbers(classes):
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
                nsd_tolerance=nsd_tolerance_mm,
                **asdict(areas),
                **asdict(distances),
            )
        )
    return scores


def cases_csv(rows: Sequence[CaseScore]) -> str:
    """Return a table with one line a case and class; nan stays `nan`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(CaseScore)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def write_cases_csv(path: str | Path, rows: Sequence[CaseScore]) -> None:
    """Write one line a case and class; nan stays `nan`."""
    Path(path).write_bytes(cases_csv(rows).encode())


def read_cases_csv(path: str | Path) -> list[CaseScore]:
    """Read what `write_cases_csv` wrote.

    Raises:
        ValueError: the columns are others, or a line holds what no score can be: a word or an infinite number where a
            number belongs, a Dice above 1, an unknown status, nan in a class that applies.
    """
    kinds: dict[str, Any] = {field.name: field.type for field in fields(CaseScore)}
    try:
        text = Path(path).read_bytes().decode()  # line ends as they are: an id may hold one
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = []
    try:
        if reader.fieldnames != list(kinds):
            raise ValueError(f"it has the columns {reader.fieldnames}; expected {list(kinds)}")
        for line in reader:
            if None in line or None in line.values():
                raise ValueError(f"it has other than {len(kinds)} cells; expected one a column")
            values: dict[str, Any] = dict(line)
            values |= {name: kind(values[name]) for name, kind in kinds.items() if kind in (int, float)}
            _check_range(values, kinds)
            rows.append(CaseScore(**values))
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _check_range(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise ValueError unless a score can have these values."""
    for name, kind in kinds.items():
        value = values[name]
        if known := get_args(kind):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        elif name in METRICS and values["status"] == "na":
            if not isnan(value):
                raise ValueError(f"{name} is {value}; expected nan, as the status is na")
        elif kind in (int, float):
            top = 1 if name in ("dice", "jaccard", "nsd") else inf
            if not 0 <= value <= top or value == inf:
                raise ValueError(f"{name} is {value}; expected a number {'in [0, 1]' if top == 1 else 'of at least 0'}")
