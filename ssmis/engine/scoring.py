# SPDX-License-Identifier: Apache-2.0
"""Scores of a run of one's own on its held-out cases, and the predictions beside them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmis.data import Case, DataError, Plan, find_dataset, read_list
from ssmis.data.scans import case_scan, write_map
from ssmis.data.splits import read_split
from ssmis.engine.evaluate import CaseResult, evaluate
from ssmis.engine.infer import Predictor
from ssmis.engine.record import list_facts, write_evaluation
from ssmis.engine.sliding import Slabs
from ssmis.engine.train import progress_of
from ssmis.engine.trained import TrainedRun, run_folders
from ssmis.metrics import summarise
from ssmis.options import EvaluateOptions, gathered
from ssmis.recipes.base import Prediction


@dataclass(frozen=True)
class RunScores:
    """An evaluated run: its folder, the results of its cases, and the mean foreground Dice over them."""

    folder: Path
    results: tuple[CaseResult, ...]
    dice: float


def evaluate_run(
    run: str | Path | EvaluateOptions, tell: Callable[[str], object] = lambda text: None, **options: Any
) -> list[RunScores]:
    """Score a run, or each run of a folder, on its held-out cases; `ssmis evaluate` is this function.

    Writes `cases.csv`, `cases_largest.csv`, `calibration.csv`, `reliability.csv`, `predictions/` and `uncertainty/`
    (normalised entropy times 255, rounded) into the run folder, and how it was done into `protocol.json`. Scores are on
    each file's own grid; `cases_largest.csv` are those with only the largest component of each class kept.

    Args:
        run: run folder, or all options in one object.
        tell: called with lines of results.
        options: of `EvaluateOptions`.

    Raises:
        DataError: no such run, its data have moved, there is no held-out case, or one cannot be read or predicted.
    """
    chosen = gathered(EvaluateOptions, run, options)
    return [_evaluate(folder, chosen, tell) for folder in run_folders(chosen.run)]


def _evaluate(folder: Path, options: EvaluateOptions, tell: Callable[[str], object]) -> RunScores:
    trained = TrainedRun.read(folder)
    cases = _cases(trained, options.cases, options.dataset)
    predictor = Predictor.load(folder, flips=options.flips, device=options.device, overlap=options.overlap,
                               memory_gb=options.memory_gb)  # fmt: skip
    plan = trained.plan
    bar = progress_of(options.progress, "evaluate")
    results: list[CaseResult] = []
    for case in cases if bar is None else bar(cases):
        raw = _Raw(plan, predictor)
        classes = tuple(range(1, plan.classes))
        try:
            (found,) = evaluate(raw, [case], classes=classes, load=raw.load, largest=True, uncertainty=True)
        except DataError:
            raise
        except ValueError as error:  # such as less memory than this case needs
            raise DataError(f"{case.image}: {error}") from error
        grid = case_scan(case).grid
        unsure = np.rint(255 * np.asarray(found.uncertainty)).astype(np.uint8)
        for name, values in (("predictions", plan.values_of(found.prediction)), ("uncertainty", unsure)):
            write_map(folder / name / case.id, values[..., None] if raw.flat else values, grid)
        results.append(replace(found, uncertainty=None))
    how = {
        "scored": list_facts(cases),
        "windows": {name: getattr(predictor, name) for name in ("patch", "stride", "blending", "flips")},
        "classes": list(range(1, plan.classes)),
        "label_names": list(plan.label_names),
        "convention": "default",
        "foreground_margin": None,
    }
    write_evaluation(folder, results, how)
    for line in _summary(results, plan):
        tell(line)
    scores = [score for result in results for score in result.scores]
    return RunScores(folder, tuple(results), summarise(scores, metric="dice", resamples=1).mean)


class _Raw:
    """A predictor and a loader for `evaluate`: cases on their own grid, and the spacing that goes with each."""

    def __init__(self, plan: Plan, predictor: Predictor) -> None:
        self.plan, self.predictor, self.flat = plan, predictor, False
        self.spacing_mm: tuple[float, ...] = ()

    def load(self, case: Case, *, with_label: bool = True) -> Any:
        volume = self.plan.load_raw(case, with_label=with_label)
        self.flat = self.plan.dims == 2 and volume.image.ndim == 4
        self.spacing_mm = volume.spacing_mm[: self.plan.dims]
        return volume

    def predict(self, image: NDArray[Any], /) -> Prediction:
        if not self.flat:
            return self.predictor.predict(image, self.spacing_mm)
        found = self.predictor.predict(image[..., 0], self.spacing_mm)
        return Prediction(found.probs[..., None], found.uncertainty[..., None])

    def stream(self, image: NDArray[Any], /) -> Slabs:
        slabs = self.predictor.stream(image[..., 0] if self.flat else image, self.spacing_mm)
        return ((first, probs[..., None] if self.flat else probs) for first, probs in slabs)


def _cases(trained: TrainedRun, which: str, moved: str | None) -> list[Case]:
    data = moved or trained.options.data
    if not Path(data).exists():
        raise DataError(
            f"{trained.folder} was trained on {data}, and there is no such folder or table; add --dataset with where "
            "the data are now"
        )
    dataset = find_dataset(data)
    split = read_split(dataset, trained.folder / "split")
    if which in ("test", "val"):
        cases = list(getattr(split, which))
        if not cases:
            raise DataError(
                f"{trained.folder / 'split' / which}.list: there is no {which} case; train with --{which}, or name a "
                "list of cases with --cases"
            )
        return cases
    if not Path(which).is_file():
        raise DataError(f"cases is {which!r}; expected test, val or a list file")
    known = {case.id: case for case in dataset.labelled}
    names = read_list(which)
    seen = {case.id for case in (*split.labelled, *split.unlabelled)}
    for name in names:
        if name not in known:
            raise DataError(f"{which}: there is no labelled case {name!r}")
        if name in seen:
            raise DataError(f"{which}: case {name!r} was trained on; a score on it says nothing")
    return [known[name] for name in names]


def _summary(results: list[CaseResult], plan: Plan) -> list[str]:
    count = len(results)
    lines = ["1 held-out case, on its own grid" if count == 1 else f"{count} held-out cases, on their own grids"]
    for label in range(1, plan.classes):
        scores = [score for result in results for score in result.scores if score.label == label]
        dice, hd95 = (summarise(scores, metric=metric) for metric in ("dice", "hd95"))
        value = plan.label_values[label]
        interval = "too few cases for an interval"
        if dice.n > 1:
            interval = f"95 % interval {100 * dice.low:.1f} to {100 * dice.high:.1f}"
        lines.append(
            f"  {value} {plan.label_names[label]}: Dice {100 * dice.mean:.1f} % ({interval}), "
            f"HD95 {hd95.mean:.2f} mm, missed {dice.n_miss}"
        )
    return lines
