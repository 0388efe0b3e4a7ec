# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that does best on validation cases, beside the last one."""

from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np

from ssmis.data import Case, DataError
from ssmis.engine.checkpoint import load_checkpoint, save_checkpoint
from ssmis.engine.protocol import Protocol
from ssmis.metrics import overlap_per_class
from ssmis.recipes.base import Recipe


class BestOnValidation:
    """Engine callback: mean Dice on validation cases, and `checkpoints/best.pt` with the recipe as it was at its best.

    Volumes are predicted whole, by the windows of the protocol, as in the final scoring. A case is averaged over the
    classes that apply to it, then cases are averaged; of equal values the earlier step stays. The column is
    `validation_dice`. A run that was killed may continue from before its best step: that best is of steps that are
    taken anew, and is forgotten at the first look; the one that it had replaced is gone as well.

    Args:
        protocol: of the run.
        cases: labelled cases outside of the training ones; do not list them in `fit(held_out=...)`.
        out: run folder.

    Raises:
        ValueError: there are no cases.
    """

    def __init__(self, protocol: Protocol, cases: Sequence[Case], out: Path | str) -> None:
        if not cases:
            raise ValueError("cases is empty; expected at least one validation case")
        self.protocol, self.cases = protocol, tuple(cases)
        folder = Path(out) / "checkpoints"
        self.path = folder / "best.pt"
        self.step, self.dice = 0, nan
        if self.path.exists() and (folder / "last.pt").exists():  # else it is of a run that is begun anew
            best = load_checkpoint(self.path)
            self.step, self.dice = best["step"], best["dice"]

    def __call__(self, step: int, recipe: Recipe) -> dict[str, float]:
        """Score the recipe as it would predict now; keep it if it is better than all before."""
        predictor = self.protocol.predictor(recipe)
        values = []
        for case in self.cases:
            volume = self.protocol.load(case)
            if volume.label is None:
                raise DataError(f"{case.image}: case {case.id!r} has no label to validate against")
            guess = predictor.predict(volume.image).probs.argmax(0).cpu().numpy()
            found = overlap_per_class(guess, volume.label, classes=self.protocol.classes)
            own = [overlap.dice for overlap in found.values() if not np.isnan(overlap.dice)]
            values += [float(np.mean(own))] if own else []
        dice = float(np.mean(values)) if values else nan
        if step <= self.step:  # the run continued from before: looks are at the same steps as the first time
            self.step, self.dice = 0, nan
        first = self.step == 0  # kept whatever it is: where no case has a Dice, the first look is as good as any
        if first or dice > self.dice or (np.isnan(self.dice) and not np.isnan(dice)):
            self.step, self.dice = step, dice
            save_checkpoint(self.path, {"step": step, "dice": dice, "recipe": recipe.state_dict()})
        return {"validation_dice": dice}

    def restore(self, recipe: Recipe) -> Recipe:
        """Give the recipe the weights of its best step.

        Raises:
            FileNotFoundError: nothing was kept yet.
        """
        recipe.load_state_dict(load_checkpoint(self.path)["recipe"])
        return recipe
