# SPDX-License-Identifier: Apache-2.0
"""A budget of minutes as a number of steps, measured side by side before anything is trained."""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
    steps: int = 5,
    warmup: int = 2,
    rounds: int = 3,
    held_out: Sequence[Case] = (),
) -> dict[str, float]:
    """Measure how long a training step of each row takes, as `fit` does it: batches, guards and logs included.

    Every round trains every row anew for `warmup` + `steps` steps, so that other work on the machine meets all rows
    alike; the median of the rounds counts.

    Args:
        rows: name -> call that makes a fresh recipe and its batches.
        config: of the runs.
        steps: that are timed in a round.
        warmup: steps before them.
        rounds: of all rows.
        held_out: closed while this trains, as in `fit`.
    """
    for name, value in (("steps", steps), ("warmup", warmup), ("rounds", rounds)):
        check_range(value, 1, float("inf"), name=name)
    short = replace(config, steps=warmup + steps, checkpoint_every=warmup + steps)
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, make in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                recipe, batches = make()
                fit(recipe, batches, short, out=folder, held_out=held_out, progress=False)
                lines = (Path(folder) / "metrics.csv").read_text(encoding="utf-8").splitlines()
            column = lines[0].split(",").index("seconds")
            seconds = [float(line.split(",")[column]) for line in lines[1:]]
            found[name].append((seconds[-1] - seconds[warmup - 1]) / steps)
    return {name: statistics.median(own) for name, own in found.items()}


def steps_for(minutes: float, seconds: float) -> int:
    """Return how many steps of `seconds` fit into `minutes`, at least one."""
    check_range(minutes, 0.0, float("inf"), name="minutes", open_low=True)
    return max(1, int(60 * minutes / seconds))
