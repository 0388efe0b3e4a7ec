# SPDX-License-Identifier: Apache-2.0
"""A budget of minutes as a number of steps, measured side by side before anything is trained."""

import csv
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssmis._checks import check_range
from ssmis.data import Case
from ssmis.data.batch import Batch
from ssmis.engine.config import FitConfig
from ssmis.engine.fit import fit
from ssmis.recipes.base import Recipe

Make = Callable[[], tuple[Recipe, Callable[[int], Batch]]]


def seconds_per_step(
    rows: Mapping[str, Make],
    config: FitConfig,
    *,
    steps: int = 12,
    rounds: int = 3,
    held_out: Sequence[Case] = (),
) -> dict[str, float]:
    """Measure how long a training step of each row takes, as `fit` does it: batches, guards and logs included.

    Every round gives every row a whole training of so many steps, so that each stage of a recipe has the share of time
    that it has in a long one, and other work on the machine meets all rows alike. What happens once, at the first step
    of a stage, is left out: a step counts as the median of five around it. The median of the rounds counts.

    Args:
        rows: name -> call that makes a fresh recipe and its batches.
        config: of the runs.
        steps: of every training.
        rounds: of all rows.
        held_out: closed while this trains, as in `fit`.
    """
    for name, value in (("steps", steps), ("rounds", rounds)):
        check_range(value, 1, float("inf"), name=name)
    short = replace(config, steps=steps, checkpoint_every=steps)
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, make in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                recipe, batches = make()
                fit(recipe, batches, short, out=folder, held_out=held_out, progress=False)
                log = (Path(folder) / "metrics.csv").read_text(encoding="utf-8").splitlines()
            found[name].append(typical(np.diff([float(row["seconds"]) for row in csv.DictReader(log)], prepend=0.0)))
    return {name: statistics.median(own) for name, own in found.items()}


def typical(seconds: np.ndarray) -> float:
    """Mean time of steps, each taken as the median of the five around it."""
    reach = min(2, len(seconds) - 1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(seconds, reach, mode="reflect"), 2 * reach + 1)
    return float(np.median(around, axis=1).mean())


def steps_for(minutes: float, seconds: float) -> int:
    """Return how many steps of `seconds` fit into `minutes`, at least one."""
    check_range(minutes, 0.0, float("inf"), name="minutes", open_low=True)
    return max(1, int(60 * minutes / seconds))
