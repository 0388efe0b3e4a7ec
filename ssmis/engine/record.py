# SPDX-License-Identifier: Apache-2.0
"""What stands beside a number: the facts in `protocol.json`, and the scores of cases in files."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ssmis.data import Case, DataError, Family
from ssmis.data.texts import read_json
from ssmis.engine.atomic import replace_text
from ssmis.engine.evaluate import CaseResult
from ssmis.engine.runtime import environment
from ssmis.metrics import Reliability, pool_reliability
from ssmis.metrics.cases import cases_csv
from ssmis.recipes.base import Recipe


def list_facts(cases: Sequence[Case], family: Family | None = None) -> dict[str, Any]:
    """Return ids, their SHA-256 (joined by line feeds), and the number of cases and of patients."""
    ids = [case.id for case in cases]
    patients = {family.patient_of(case) for case in ids} if family else set(ids)
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    return {"cases": ids, "sha256": digest, "count": len(ids), "patients": len(patients)}


def write_evaluation(out: Path | str, results: Sequence[CaseResult], how: Mapping[str, Any]) -> None:
    """Write the scores into a run folder, and into its `protocol.json` how they came about.

    Args:
        out: folder of a run.
        results: from `evaluate`.
        how: what the scores depend on beside the run itself, of JSON types.

    Raises:
        DataError: the folder holds no `protocol.json`, or there are no results.
    """
    out = Path(out)
    path = out / "protocol.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; the evaluation belongs into the folder that `fit` wrote")
    if not results:
        raise DataError("results is empty; expected at least one scored case")
    scores = [score for result in results for score in result.scores]
    replace_text(out / "cases.csv", cases_csv(scores))
    post_processing = ["none"]
    if largest := [score for result in results for score in result.largest]:
        replace_text(out / "cases_largest.csv", cases_csv(largest))
        post_processing.append("largest_component")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["case", "ece", "brier", "voxels"])
    for result in results:
        writer.writerow([result.case, result.calibration.ece, result.calibration.brier, result.calibration.n])
    replace_text(out / "calibration.csv", text.getvalue())
    replace_text(out / "reliability.csv", reliability_csv([result.calibration.reliability for result in results]))
    facts = {
        **how,
        "unit": scores[0].unit,
        "nsd_tolerance": scores[0].nsd_tolerance,
        "missed": "diagonal",
        "calibration_bins": len(results[0].calibration.reliability.count),
        "post_processing": post_processing,
        "versions": environment()["packages"],
    }
    record = read_json(path)
    replace_text(path, json.dumps({**record, "evaluation": facts}, indent=1))


def reliability_csv(parts: Sequence[Reliability]) -> str:
    """Return the bins of a reliability diagram over all cases together, a line each; nan where one is empty."""
    bins = pool_reliability(parts)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["count", "confidence", "frequency"])
    writer.writerows(zip(bins.count.tolist(), bins.confidence.tolist(), bins.frequency.tolist(), strict=True))
    return text.getvalue()


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Tell which settings of a run differ, other than those that do not matter to what it computes; else empty."""
    before, now = _flat(old), _flat(new)
    changed = [name for name in before | now if before.get(name) != now.get(name) and name not in _MAY_CHANGE]
    return ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in changed)


_MAY_CHANGE = (
    *(
        f"fit.{name}"
        for name in ("device", "checkpoint_every", "max_skipped", "patience", "accumulate", "deterministic")
    ),
    *(f"method.{name}" for name in ("predict_with", "with_teacher", "fused_predicts")),
)


def method_of(recipe: Recipe) -> dict[str, Any]:
    """Return the class of a recipe and its coefficients: its public attributes, as far as JSON holds them."""
    found: dict[str, Any] = {}
    for name, value in vars(recipe).items():
        if name.startswith("_") or name == "training":
            continue
        try:
            found[name] = json.loads(json.dumps(asdict(value) if is_dataclass(value) else value))  # type: ignore[arg-type]
        except TypeError:
            continue
    return {"class": type(recipe).__name__, **found}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner` -> value."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
