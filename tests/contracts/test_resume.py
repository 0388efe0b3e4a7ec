# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped and resumed is the run that was not, bit for bit: checkpoints and logs."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from contracts.test_recipes import build
from recipes.small import small_batch

from benchmarks.soak import differences
from ssmis.data import write_phantoms
from ssmis.data.la import la_split
from ssmis.engine import PROTOCOLS, FitConfig, fit, health, load_checkpoint
from ssmis.engine import run as run_module
from ssmis.engine.runtime import Precision
from ssmis.nets import VNet
from ssmis.recipes import DualUncertainty
from ssmis.recipes.base import Stage
from ssmis.registry import RECIPES

CONFIG = FitConfig(
    steps=6, learning_rate=0.05, optimizer="adamw", precision="fp32", ema_decay=0.9, schedule="cosine", warmup=0.3,
    clip_norm=5.0, checkpoint_every=2, callback_every=2,
)  # fmt: skip


class Stop(Exception):
    pass


def share(step, recipe):
    return {"foreground/all": float(recipe.predict(small_batch().images).probs[:, 1].mean())}


def stopped_and_resumed(make, folder: Path, config, *, at, batches=small_batch):
    """Train straight, and with a stop in the data of each step of `at`; returns the two folders."""
    kwargs = {"callbacks": [share], "progress": False}
    fit(make(0), batches, config, out=folder / "straight", **kwargs)
    for number, stop in enumerate(at):

        def broken(step, stop=stop):
            if step == stop:
                raise Stop
            return batches(step)

        with pytest.raises(Stop):  # its own initial weights must not matter
            fit(make(number * stop), broken, config, out=folder / "resumed", resume=True, **kwargs)
    fit(make(99), batches, config, out=folder / "resumed", resume=True, **kwargs)
    return folder / "straight", folder / "resumed"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resumes_bit_for_bit(name, tmp_path):
    """Students, teachers, banks, optimiser, averages, guard, dropout; stopped twice, off the checkpoints."""
    one, other = stopped_and_resumed(lambda seed: build(name, dropout=0.3, seed=seed), tmp_path, CONFIG, at=(3, 5))
    assert differences(one, other) == []
    assert [row.split(",")[0] for row in (other / "quality.csv").read_text().split()] == ["step", "2", "4", "6"]


@pytest.mark.parametrize("preset", ["balanced", "averaged", "public_code"])
def test_every_preset_resumes_bit_for_bit(preset, tmp_path):
    def make(seed):
        return DualUncertainty(build("cross_pseudo", dropout=0.3, seed=seed).students, preset=preset)

    assert differences(*stopped_and_resumed(make, tmp_path, CONFIG, at=(3,))) == []


def test_stages_that_reset_the_optimiser_resume_bit_for_bit(tmp_path):
    def make(seed):
        recipe = build("mean_teacher", dropout=0.3, seed=seed)
        recipe.stages = lambda: (Stage("first", 0.5), Stage("second", 0.5, reset_optimizer=True))
        return recipe

    assert differences(*stopped_and_resumed(make, tmp_path, CONFIG, at=(2, 3, 5))) == []


def test_the_loss_scale_of_float16_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "pick_precision", lambda name, device: Precision("fp16", "cpu"))
    folders = stopped_and_resumed(
        lambda seed: build("supervised", seed=seed), tmp_path, replace(CONFIG, max_skipped=100), at=(5,)
    )
    assert differences(*folders) == []
    assert load_checkpoint(folders[1] / "checkpoints" / "last.pt")["scaler"]["scale"] > 1


def test_sampling_and_augmentation_resume_bit_for_bit(tmp_path):
    root = write_phantoms(tmp_path / "data", labelled=3, unlabelled=5, test=0, size=(16, 16, 16))
    split = la_split(root, labelled=3)
    protocol = replace(PROTOCOLS["phantom"], patch=(8, 8, 8))
    cache = protocol.cache([*split.labelled, *split.unlabelled], tmp_path / "cache")

    def make(seed):
        torch.manual_seed(seed)
        return RECIPES.create("mean_teacher", {"vnet": VNet(1, 2, dims=3, widths=(4, 4), dropout=0.3)})

    batches = protocol.batches(cache, split.labelled, split.unlabelled)
    config = replace(CONFIG, callback_every=100)
    run = {"callbacks": [], "progress": False}
    fit(make(0), batches, config, out=tmp_path / "straight", **run)

    def broken(step):
        if step == 3:
            raise Stop
        return batches(step)

    with pytest.raises(Stop):
        fit(make(0), broken, config, out=tmp_path / "resumed", **run)
    again = protocol.batches(cache, split.labelled, split.unlabelled)
    fit(make(2), again, config, out=tmp_path / "resumed", resume=True, **run)
    assert differences(tmp_path / "straight", tmp_path / "resumed") == []


def test_steps_without_foreground_go_on_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "NEVER", 2.0)  # every step counts as one
    monkeypatch.setattr(run_module, "ForegroundWatch", partial(health.ForegroundWatch, patience=4))
    with pytest.warns(RuntimeWarning, match="have collapsed"):
        one, other = stopped_and_resumed(lambda seed: build("supervised", seed=seed), tmp_path, CONFIG, at=(3,))
    assert differences(one, other) == []
    assert (other / "events.csv").read_text().splitlines()[1].startswith("3,collapse")


def test_skipped_steps_go_on_counting(tmp_path):
    def poisoned(step):
        batch = small_batch(step)
        return replace(batch, labelled=batch.labelled * float("nan")) if step > 2 else batch

    def broken(step):
        if step == 5:
            raise Stop
        return poisoned(step)

    config = replace(CONFIG, max_skipped=3, checkpoint_every=1)
    with pytest.raises(Stop):
        fit(build("supervised"), broken, config, out=tmp_path, progress=False)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        fit(build("supervised"), poisoned, config, out=tmp_path, resume=True, progress=False)


def test_a_step_skipped_after_the_checkpoint_is_told_once(tmp_path):
    def poisoned(step):
        batch = small_batch(step)
        return replace(batch, labelled=batch.labelled * float("nan")) if step == 2 else batch

    one, other = stopped_and_resumed(
        lambda seed: build("supervised", seed=seed), tmp_path, CONFIG, at=(3,), batches=poisoned
    )
    assert differences(one, other) == []
    assert len((other / "events.csv").read_text().splitlines()) == 2
