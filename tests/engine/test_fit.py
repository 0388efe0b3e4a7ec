# SPDX-License-Identifier: Apache-2.0
"""The loop: resume, interruption, refusals, skipped steps, logs."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes.small import small_batch, small_nets

from ssmis.engine import (
    CheckpointError,
    DeadTermError,
    FitConfig,
    PseudoLabelQuality,
    fit,
    load_checkpoint,
    save_checkpoint,
)
from ssmis.engine.lock import locked
from ssmis.engine.log import CsvLog
from ssmis.engine.optim import clip_gradients, make_optimizer
from ssmis.losses import dice_ce
from ssmis.recipes import DualUncertainty, MeanTeacher, Recipe, Supervised, Terms
from ssmis.recipes.base import Stage

HOLDER = """
import sys
from pathlib import Path
from ssmis.engine.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""
CONFIG = FitConfig(steps=4, learning_rate=0.05, precision="fp32", checkpoint_every=2)


def supervised(**kwargs):
    return Supervised(small_nets(names=("vnet",), **kwargs))


def run(recipe, out, config=CONFIG, **kwargs):
    return fit(recipe, kwargs.pop("batches", small_batch), config, out=out, progress=False, **kwargs)


def rows(path: Path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_settings_log_and_checkpoint(tmp_path):
    result = run(DualUncertainty(small_nets()), tmp_path)
    log = rows(tmp_path / "metrics.csv")
    assert [row["step"] for row in log] == ["0", "1", "2", "3"]
    assert all(float(row["filtered/vnet"]) > 0 for row in log)
    assert float(log[0]["weight:filtered/vnet"]) < float(log[3]["weight:filtered/vnet"])
    total = sum(float(log[2][n]) * float(log[2]["weight:" + n]) for n in log[2] if "weight:" + n in log[2])
    assert total == pytest.approx(float(log[2]["loss"]), rel=1e-4)
    assert json.loads((tmp_path / "protocol.json").read_text())["fit"]["steps"] == 4
    assert json.loads((tmp_path / "env.json").read_text())["packages"]["torch"]
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 4
    assert result.minutes > 0
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_used_folder_is_refused_without_resume(tmp_path):
    run(supervised(), tmp_path)
    with pytest.raises(FileExistsError, match="holds a run already"):
        run(supervised(), tmp_path)


def test_a_folder_another_process_trains_in_is_refused(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FileExistsError, match="another process trains there"):
        run(supervised(), tmp_path)
    holder.communicate()
    run(supervised(), tmp_path)


def test_a_folder_is_entered_again_only_where_its_holder_lets_it(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked(folder), pytest.raises(FileExistsError, match="is in use"), locked(folder):
        pass
    with locked(folder, again=True):
        with locked(folder):
            pass
        with ThreadPoolExecutor(1) as pool, pytest.raises(FileExistsError, match="is in use"):
            pool.submit(locked(folder).__enter__).result()
    assert not (tmp_path / "new").exists()  # nothing was written


def test_a_run_whose_folder_was_removed_leaves_the_next_run_of_that_name_alone(tmp_path):
    out = tmp_path / "run"

    def removes(step, recipe):
        if step == 2:
            shutil.rmtree(out)
            subprocess.run([sys.executable, "-c", HOLDER, str(out)], input="", text=True, check=True)
            (out / "checkpoints").mkdir(parents=True)
            (out / "checkpoints" / "last.pt").write_text("of another run")

    with pytest.raises(FileNotFoundError, match="the run folder was removed while the run was on"):
        run(supervised(), out, replace(CONFIG, callback_every=1), callbacks=[removes])
    assert (out / "checkpoints" / "last.pt").read_text() == "of another run"


def test_facts_that_are_no_json_are_refused_before_training(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        run(supervised(), tmp_path, facts={"root": Path("somewhere")})


def test_resuming_a_finished_run_returns_its_weights(tmp_path):
    first = run(supervised(), tmp_path, replace(CONFIG, ema_decay=0.5)).recipe.state_dict()
    again = run(supervised(seed=3), tmp_path, replace(CONFIG, ema_decay=0.5), resume=True).recipe.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_resume_with_other_settings_names_them(tmp_path):
    run(supervised(), tmp_path)
    with pytest.raises(ValueError, match=r"fit\.learning_rate was 0\.05 and is 0\.1"):
        run(supervised(), tmp_path, replace(CONFIG, learning_rate=0.1), resume=True)


def test_resume_with_other_facts_names_them(tmp_path):
    run(supervised(), tmp_path, facts={"cases": {"labelled": ["a", "b"]}})
    with pytest.raises(ValueError, match=r"cases\.labelled was \['a', 'b'\] and is \['a'\]"):
        run(supervised(), tmp_path, facts={"cases": {"labelled": ["a"]}}, resume=True)


def test_resume_with_other_coefficients_names_them(tmp_path):
    nets = small_nets(names=("vnet",))
    run(Supervised(nets), tmp_path)
    with pytest.raises(ValueError, match=r"method\.dice_weight was 1\.0 and is 2\.0"):
        run(Supervised(nets, dice_weight=2.0), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"method\.class was Supervised and is MeanTeacher"):
        run(MeanTeacher(nets), tmp_path, resume=True)


def test_the_dataclass_of_a_recipe_is_compared_and_what_predicts_is_not(tmp_path):
    run(DualUncertainty(small_nets(), keep_fraction=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"method\.config\.keep_fraction was 0\.5 and is 0\.2"):
        run(DualUncertainty(small_nets(), keep_fraction=0.2), tmp_path, resume=True)
    run(DualUncertainty(small_nets(), predict_with=["vnet"]), tmp_path, resume=True)


def test_averaged_students_predict_and_raw_ones_are_kept(tmp_path):
    averaged = run(supervised(), tmp_path / "ema", replace(CONFIG, ema_decay=0.9)).recipe.state_dict()
    raw = run(supervised(), tmp_path / "raw").recipe.state_dict()
    stored = load_checkpoint(tmp_path / "ema" / "checkpoints" / "last.pt")["recipe"]
    assert all(torch.equal(value, stored[key]) for key, value in raw.items())
    assert any(not torch.equal(value, averaged[key]) for key, value in raw.items())


def test_callbacks_see_the_averaged_students_in_eval_mode(tmp_path):
    seen = []

    def callback(step, recipe):
        seen.append((step, recipe.training, next(recipe.students.parameters()).detach().clone()))
        return {"answer": 42.0}

    recipe = supervised()
    run(recipe, tmp_path, replace(CONFIG, ema_decay=0.9, callback_every=2), callbacks=[callback])
    assert [(step, training) for step, training, _ in seen] == [(2, False), (4, False)]
    assert torch.equal(seen[-1][2], next(recipe.students.parameters()))
    assert [row["answer"] for row in rows(tmp_path / "quality.csv")] == ["42", "42"]


def test_quality_callback_counts_right(tmp_path):
    recipe = DualUncertainty(small_nets()).eval()
    batch = small_batch(labelled=3, unlabelled=1)
    with torch.no_grad():
        numbers = PseudoLabelQuality(batch.labelled, batch.labels)(0, recipe)
        guess = recipe.students["vnet"](batch.labelled).logits.argmax(1)
    assert numbers["accuracy/vnet"] == pytest.approx(float((guess == batch.labels).float().mean()))
    assert numbers["foreground/vnet"] == pytest.approx(float((guess == 1).float().mean()))
    assert numbers["kl"] > 0
    with pytest.raises(ValueError, match="to match images"):
        PseudoLabelQuality(batch.labelled, batch.labels[:2])


def test_quality_leaves_out_voxels_without_a_label():
    recipe = DualUncertainty(small_nets()).eval()
    batch = small_batch(labelled=3, unlabelled=1)
    images, labels = batch.labelled, batch.labels
    with torch.no_grad():
        guess = recipe.students["resnet"](images).logits.argmax(1)
        wrong = guess != labels
        numbers = PseudoLabelQuality(images, labels.masked_fill(wrong, -1))(0, recipe)
        sure = PseudoLabelQuality(images, labels.masked_fill(guess > 0, -1))(0, recipe)
    assert numbers["dice/resnet"] == numbers["accuracy/resnet"] == numbers["accuracy_kept/resnet"] == 1
    assert sure["foreground/resnet"] == 0
    with pytest.raises(ValueError, match="labels are -1 everywhere"):
        PseudoLabelQuality(images, torch.full_like(labels, -1))


class Explodes(Recipe):
    """Its second step has a NaN in the images and so in BatchNorm; it counts the steps that were applied."""

    def __init__(self, nets, bad=(1,)):
        super().__init__(nets)
        self.bad, self.applied = bad, 0

    def forward(self, batch, progress):
        images = batch.labelled * float("nan") if batch.key in self.bad else batch.labelled
        terms = Terms()
        loss = dice_ce(self.students["vnet"](images).logits, batch.labels)
        terms.add("supervised/vnet", loss, reaches=["vnet"])
        return terms

    def after_step(self, progress):
        self.applied += 1


def test_a_non_finite_step_is_skipped_altogether(tmp_path):
    recipe = Explodes(small_nets(names=("vnet",)))
    run(recipe, tmp_path)
    assert recipe.applied == 3
    assert all(torch.isfinite(value).all() for value in recipe.state_dict().values())
    assert recipe.students["vnet"].state_dict()["encoder.levels.0.0.1.num_batches_tracked"] == 3
    assert rows(tmp_path / "metrics.csv")[1]["loss"] == "nan"


def test_a_non_finite_first_step_stops_the_run(tmp_path):
    with pytest.raises(DeadTermError, match="'supervised/vnet' is nan at its first step"):
        run(Explodes(small_nets(names=("vnet",)), bad=(0,)), tmp_path)


def test_too_many_non_finite_steps_stop_the_run_and_name_term_and_cases(tmp_path):
    recipe = Explodes(small_nets(names=("vnet",)), bad=(1, 2, 3))
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .* step 3, terms \['supervised/vnet'\].*case0"):
        run(recipe, tmp_path, replace(CONFIG, max_skipped=3))


def test_batches_that_run_out_are_an_error_and_no_finished_run(tmp_path):
    few = iter([small_batch(0), small_batch(1)])
    with pytest.raises(RuntimeError, match="the batches ended too early"):
        run(supervised(), tmp_path, batches=lambda step: next(few))


def test_an_error_in_the_data_surfaces(tmp_path):
    def broken(step):
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        run(supervised(), tmp_path, batches=broken)


class Staged(Supervised):
    def stages(self):
        return Stage("first", 0.5), Stage("second", 0.5, reset_optimizer=True)

    def begin_stage(self, context):
        (context.folder / f"{context.stage.name}.txt").write_text(str(context.step))


def test_stages_begin_once_each_and_where_they_should(tmp_path):
    run(Staged(small_nets(names=("vnet",))), tmp_path)
    assert (tmp_path / "first.txt").read_text() == "0"
    assert (tmp_path / "second.txt").read_text() == "2"


def test_a_stage_begun_before_an_interruption_is_not_begun_again(tmp_path):
    def interrupted(step):
        if step == 3:
            raise OSError("stop")
        return small_batch(step)

    config = replace(CONFIG, checkpoint_every=1)
    with pytest.raises(OSError, match="stop"):
        run(Staged(small_nets(names=("vnet",))), tmp_path, config, batches=interrupted)
    (tmp_path / "second.txt").unlink()
    resumed = run(Staged(small_nets(names=("vnet",))), tmp_path, config, resume=True).recipe.state_dict()
    assert not (tmp_path / "second.txt").exists()
    straight = run(Staged(small_nets(names=("vnet",))), tmp_path / "straight", config).recipe.state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


class Freezing(Supervised):
    """Freezes one net where the optimiser begins anew, and the head of the other one where it goes on."""

    def stages(self):
        return Stage("all", 0.25), Stage("one", 0.25, reset_optimizer=True), Stage("less", 0.5)

    def begin_stage(self, context):
        if context.stage.name == "one":
            self.students["vnet"].requires_grad_(False)
        if context.stage.name == "less":
            self.students["resnet"].head.requires_grad_(False)

    def forward(self, batch, progress):
        terms = super().forward(batch, progress)
        kept = Terms()
        for name, term in terms.items():
            if any(p.requires_grad for p in self.students[term.reaches[0]].parameters()):
                kept.add(name, term.value, term.weight, reaches=term.reaches)
        return kept


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_what_a_stage_froze_stays_frozen_after_an_interruption(tmp_path, stop):
    def interrupted(step):
        if step == stop:
            raise OSError("stop")
        return small_batch(step)

    config = replace(CONFIG, steps=8, checkpoint_every=1, optimizer="adamw")
    with pytest.raises(OSError, match="stop"):
        run(Freezing(small_nets()), tmp_path / "resumed", config, batches=interrupted)
    recipe = Freezing(small_nets())
    resumed = run(recipe, tmp_path / "resumed", config, resume=True).recipe.state_dict()
    straight = run(Freezing(small_nets()), tmp_path / "straight", config).recipe.state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())
    frozen = {name for name, p in recipe.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in recipe.named_parameters() if "students.vnet" in n or "resnet.head" in n}


@pytest.mark.parametrize("first", [True, False])
def test_a_recipe_made_with_other_frozen_parameters_does_not_go_on(tmp_path, first):
    def made(frozen):
        recipe = supervised()
        recipe.students["vnet"].head.requires_grad_(not frozen)
        return recipe

    run(made(first), tmp_path, replace(CONFIG, steps=2))
    with pytest.raises(CheckpointError, match=r"made with other frozen parameters.*students\.vnet\.head"):
        run(made(not first), tmp_path, replace(CONFIG, steps=2), resume=True)
    again = run(made(first), tmp_path, replace(CONFIG, steps=2), resume=True).recipe
    assert all(p.requires_grad is not first for p in again.students["vnet"].head.parameters())


def test_a_checkpoint_that_froze_what_is_not_there_is_told(tmp_path):
    run(supervised(), tmp_path, replace(CONFIG, steps=2))
    path = tmp_path / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    save_checkpoint(path, {**state, "frozen": ["students.other.weight"]})
    with pytest.raises(CheckpointError, match=r"froze parameters that are not there: students\.other\.weight"):
        run(supervised(), tmp_path, replace(CONFIG, steps=2), resume=True)


def test_shares_of_stages_must_add_up(tmp_path):
    recipe = supervised()
    recipe.stages = lambda: (Stage("first", 0.5), Stage("second", 0.4))
    with pytest.raises(ValueError, match=r"shares of the stages are \[0\.5, 0\.4\]"):
        run(recipe, tmp_path)


def test_a_net_without_gradients_is_left_out_of_the_norms():
    """Its norm would be on the CPU, wherever the gradients of the others are."""
    there = torch.nn.Parameter(torch.empty(3, device="meta"))
    there.grad = torch.empty(3, device="meta")
    groups = [{"params": [there], "name": "a"}, {"params": [torch.nn.Parameter(torch.zeros(2))], "name": "b"}]
    assert clip_gradients(torch.optim.SGD(groups, lr=0.1), 1.0).device.type == "meta"
    assert float(clip_gradients(torch.optim.SGD(groups[1:], lr=0.1), 1.0)) == 0


def test_gradients_are_clipped_net_by_net():
    recipe = Supervised(small_nets())
    optimizer = make_optimizer(recipe.param_groups(), name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    for name, net in recipe.students.items():
        for p in net.parameters():
            p.grad = torch.full_like(p, 100.0 if name == "vnet" else 1e-4)
    before = {name: [p.grad.clone() for p in net.parameters()] for name, net in recipe.students.items()}
    assert clip_gradients(optimizer, 1.0) > 100
    norms = {
        name: torch.cat([p.grad.flatten() for p in net.parameters()]).norm() for name, net in recipe.students.items()
    }
    assert norms["vnet"] == pytest.approx(1.0, rel=1e-3)
    assert all(
        torch.equal(p.grad, g) for p, g in zip(recipe.students["resnet"].parameters(), before["resnet"], strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"clip_norm": -1.0}, r"clip_norm is -1\.0"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"memory_format": "nhwc"}, "memory_format is 'nhwc'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**settings)


def test_rate_follows_warmup_and_schedule():
    config = FitConfig(learning_rate=1.0, warmup=0.1)
    assert [round(config.rate(t), 3) for t in (0.0, 0.05, 0.2, 0.5, 0.9)] == [0.0, 0.5, 1.0, 0.1, 0.01]


def test_adamw_decays_no_norm_and_sgd_everything():
    groups = Recipe(small_nets()).param_groups()
    arguments = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.3}
    assert [g["weight_decay"] for g in make_optimizer(groups, name="adamw", **arguments).param_groups] == [0.3, 0.0] * 2
    assert [g["weight_decay"] for g in make_optimizer(groups, name="sgd", **arguments).param_groups] == [0.3] * 4


def test_log_continues_where_it_should(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path)
    for step in range(5):
        log.write({"step": step, "loss": 0.5})
    log.close()
    with path.open("a") as file:
        file.write("5,0.")  # a crash in the middle of a line
    log = CsvLog(path, keep_below=3)
    log.write({"step": 3, "loss": 0.25})
    log.close()
    assert [row["step"] for row in rows(path)] == ["0", "1", "2", "3"]


def test_log_grows_with_the_terms_of_a_later_stage(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path)
    log.write({"step": 0, "loss": 0.5})
    log.write({"step": 1, "loss": 0.5, "extra": 2.0})
    log.close()
    assert [row["extra"] for row in rows(path)] == ["", "2"]


SCRIPT = """
import sys
from pathlib import Path
from recipes.small import small_batch, small_nets
from ssmis.engine import FitConfig, fit
from ssmis.recipes import Supervised

config = FitConfig(steps=100000, precision="fp32", checkpoint_every=100000)
try:
    fit(Supervised(small_nets(names=("vnet",))), small_batch, config, out=sys.argv[1], progress=False)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_leaves_a_checkpoint_of_the_step_it_logged(tmp_path):
    here = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "metrics.csv"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    step = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"]
    assert rows(log)[-1]["step"] == str(step - 1)
    assert step > 2
