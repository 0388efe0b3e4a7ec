# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint on validation cases, and steps from minutes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from recipes.small import small_nets

from ssmis.data import FAMILIES, DataError, write_phantoms
from ssmis.engine import (
    BestOnValidation,
    FitConfig,
    Protocol,
    evaluate,
    fit,
    load_checkpoint,
    save_checkpoint,
    seconds_per_step,
    steps_for,
)
from ssmis.engine.budget import typical
from ssmis.metrics import summarise
from ssmis.recipes import Supervised

FIT = FitConfig(steps=6, learning_rate=0.05, callback_every=2, ema_decay=0.5, precision="fp32")
SMALL = Protocol(patch=(16, 16, 16), name="small", fit=FIT)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = write_phantoms(tmp_path_factory.mktemp("data"), labelled=2, unlabelled=2, size=(20, 18, 16))
    (root / "val.list").write_text("phantom_0003\n")
    return FAMILIES["phantom"].split(root, labelled=2, lists={"train": "train.list", "val": "val.list"})


def recipe_of():
    return Supervised(small_nets(names=("vnet",), dims=3))


def trained(split, out, **changes):
    recipe = recipe_of()
    protocol = replace(SMALL, fit=replace(FIT, **changes))
    batches = protocol.batches(protocol.cache(split.labelled, out / "cache"), split.labelled)
    best = BestOnValidation(protocol, split.val, out)
    return fit(recipe, batches, protocol.fit, out=out, callbacks=[best], resume=True, progress=False), best


def test_the_best_is_kept_and_comes_back_as_it_was(split, tmp_path):
    done, best = trained(split, tmp_path)
    lines = (tmp_path / "quality.csv").read_text().splitlines()
    column = lines[0].split(",").index("validation_dice")
    values = {int(line.split(",")[0]): float(line.split(",")[column]) for line in lines[1:]}
    assert list(values) == [2, 4, 6]
    assert best.dice == pytest.approx(max(values.values()), abs=1e-5)
    assert values[best.step] == max(values.values())
    assert load_checkpoint(best.path)["step"] == best.step
    restored = best.restore(recipe_of())
    scores = [s for result in evaluate(SMALL.predictor(restored), split.val) for s in result.scores]
    assert summarise(scores, metric="dice").mean == pytest.approx(best.dice, abs=1e-6)  # averaged weights and all
    if best.step == 6:
        assert all(torch.equal(a, b) for a, b in zip(restored.parameters(), done.recipe.parameters()))


def test_without_any_dice_the_first_look_is_kept(split, tmp_path, monkeypatch):
    protocol = replace(SMALL, classes=(2,))  # which neither the label nor the prediction has
    recipe = recipe_of()
    batches = SMALL.batches(SMALL.cache(split.labelled, tmp_path / "cache"), split.labelled)
    best = BestOnValidation(protocol, split.val, tmp_path)
    fit(recipe, batches, FIT, out=tmp_path, callbacks=[best], progress=False)
    assert (best.step, str(best.dice)) == (2, "nan")
    best.restore(recipe_of())
    assert BestOnValidation(protocol, split.val, tmp_path).step == 2


def test_a_resumed_run_remembers_and_a_new_one_forgets(split, tmp_path):
    _, best = trained(split, tmp_path)
    again = BestOnValidation(SMALL, split.val, tmp_path)
    assert (again.step, again.dice) == (best.step, best.dice)
    (tmp_path / "checkpoints" / "last.pt").unlink()
    fresh = BestOnValidation(SMALL, split.val, tmp_path)
    assert fresh.step == 0
    assert fresh(2, recipe_of())["validation_dice"] == fresh.dice
    assert load_checkpoint(fresh.path)["step"] == 2


def test_a_best_from_beyond_the_resumed_checkpoint_is_forgotten(split, tmp_path):
    class Killed(Exception):
        pass

    def kill(step, recipe):
        if step == 4:
            raise Killed

    protocol = replace(SMALL, fit=replace(FIT, checkpoint_every=3))
    batches = protocol.batches(protocol.cache(split.labelled, tmp_path / "cache"), split.labelled)
    best = BestOnValidation(protocol, split.val, tmp_path)
    with pytest.raises(Killed):
        fit(recipe_of(), batches, protocol.fit, out=tmp_path, callbacks=[best, kill], progress=False)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 3
    save_checkpoint(best.path, {"step": 4, "dice": 1.0, "recipe": recipe_of().state_dict()})  # it does not get better
    _, best = trained(split, tmp_path, checkpoint_every=3)
    lines = [line.split(",") for line in (tmp_path / "quality.csv").read_text().splitlines()]
    values = {int(line[0]): float(line[lines[0].index("validation_dice")]) for line in lines[1:]}
    assert list(values) == [2, 4, 6]
    assert best.dice == pytest.approx(max(values[4], values[6]), abs=1e-5)
    assert values[best.step] == max(values[4], values[6])
    kept = load_checkpoint(best.path)
    assert (kept["step"], kept["dice"]) == (best.step, best.dice)


def test_it_needs_labelled_cases(split, tmp_path):
    with pytest.raises(ValueError, match="cases is empty"):
        BestOnValidation(SMALL, [], tmp_path)
    with pytest.raises(DataError, match="has no label to validate against"):
        BestOnValidation(SMALL, split.unlabelled, tmp_path)(1, recipe_of())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([3.0] * 6, 3.0),
        ([9.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1.0),  # a first step that takes its time
        ([5.0, 1.0, 1.0, 1.0, 16.0, 7.0, *[4.0] * 6], 3.0),  # and a stage that does: four steps of 1, eight of 4
        ([2.0], 2.0),
        ([6.0, 2.0, 2.0], 2.0),
    ],
)
def test_what_happens_once_is_left_out(seconds, expected):
    assert typical(np.array(seconds)) == pytest.approx(expected)


def test_the_steps_that_are_timed_are_a_whole_training(split, tmp_path):
    seen = []

    class Watched(Supervised):
        def forward(self, batch, progress):
            seen.append(progress)
            return super().forward(batch, progress)

    def make():
        recipe = Watched(small_nets(names=("vnet",), dims=3))
        return recipe, SMALL.batches(SMALL.cache(split.labelled, tmp_path / "cache"), split.labelled)

    seconds_per_step({"a": make}, FIT, steps=4, rounds=1)
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_steps_are_what_fits_into_the_minutes(split, tmp_path):
    assert steps_for(15, 1.0) == 900
    assert steps_for(15, 0.7) == 1285
    assert steps_for(0.001, 10.0) == 1
    with pytest.raises(ValueError, match="minutes is 0"):
        steps_for(0, 1.0)
    made = []

    def make():
        made.append(recipe_of())
        batches = SMALL.batches(SMALL.cache(split.labelled, tmp_path / "cache"), split.labelled)
        return made[-1], batches

    found = seconds_per_step({"a": make, "b": make}, FIT, steps=3, rounds=2)
    assert list(found) == ["a", "b"]
    assert all(0 < seconds < 60 for seconds in found.values())
    assert len(made) == 4
    with pytest.raises(ValueError, match="rounds is 0"):
        seconds_per_step({}, FIT, rounds=0)
    assert json.loads(json.dumps(found)) == found
