# SPDX-License-Identifier: Apache-2.0
"""Numbers stay finite, and what is not is told with its term and cases; foreground that vanishes is told too."""

import csv
from dataclasses import replace

import pytest
import torch
from recipes.small import small_batch, small_nets

from ssmis.data import Batch
from ssmis.engine import FitConfig, fit, load_checkpoint
from ssmis.engine.health import ForegroundWatch, all_finite
from ssmis.losses import dice_ce
from ssmis.memory import EMABank, FIFOBank
from ssmis.recipes import DualUncertainty, Recipe, Supervised, Terms
from ssmis.report import ReportRun
from ssmis.report.runs import warnings_of

CONFIG = FitConfig(steps=4, learning_rate=0.05, precision="fp32", checkpoint_every=2)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Kinked(Recipe):
    """Its second term has a finite value and an infinite gradient in step 1: the root at 0."""

    def forward(self, batch, progress):
        logits = self.students["vnet"](batch.labelled).logits
        terms = Terms()
        terms.add("supervised/vnet", dice_ce(logits, batch.labels), reaches=["vnet"])
        gap = logits.square().mean() * (0.0 if batch.key == 1 else 1.0)
        terms.add("root/vnet", gap.sqrt(), 0.1, reaches=["vnet"])
        return terms


def test_a_gradient_that_is_not_finite_is_skipped_and_its_term_named(tmp_path):
    recipe = Kinked(small_nets(names=("vnet",)))
    fit(recipe, small_batch, CONFIG, out=tmp_path, progress=False)
    assert all(value.isfinite().all() for value in recipe.state_dict().values())
    (event,) = rows(tmp_path / "events.csv")
    assert (event["step"], event["kind"]) == ("1", "skipped")
    assert event["message"] == "non-finite gradient, terms ['root/vnet'], cases case0, case1, case2, case3"
    with pytest.raises(FloatingPointError, match=r"1 steps in a row .* step 1, terms \['root/vnet'\].*case0"):
        fit(Kinked(small_nets(names=("vnet",))), small_batch, replace(CONFIG, max_skipped=1), out=tmp_path / "stop")


def poisoned_batch(step: int) -> Batch:
    batch = small_batch(step)
    if step == 1:
        batch.unlabelled[0, 0, 0, 0] = float("inf")
    return batch


def test_a_poisoned_volume_reaches_no_weight_average_bank_or_statistic(tmp_path):
    recipe = DualUncertainty(small_nets(), preset="averaged")
    fit(recipe, poisoned_batch, replace(CONFIG, ema_decay=0.9), out=tmp_path / "run", progress=False)
    stored = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    for part in ("recipe", "ema"):
        assert all(value.isfinite().all() for value in stored[part].values())
    (event,) = rows(tmp_path / "run" / "events.csv")
    assert "case2" in event["message"]


def test_statistics_that_overflow_under_a_finite_loss_are_named(tmp_path):
    def batches(step):
        batch = small_batch(step)
        return replace(batch, labelled=batch.labelled * 1e30) if step == 1 else batch

    fit(Supervised(small_nets(names=("vnet",), norm="batch")), batches, CONFIG, out=tmp_path, progress=False)
    (event,) = rows(tmp_path / "events.csv")
    assert event["message"].startswith("non-finite loss or BatchNorm statistics, terms all finite, cases case0")


def test_weights_that_overflow_stop_the_run_and_no_checkpoint_has_them(tmp_path):
    scale = {"now": 0.0}

    class Leaps(Supervised):
        def forward(self, batch, progress):
            scale["now"] = 1e15 if batch.key == 3 else 1e-35  # of finite gradients, at a rate of 1e30
            return super().forward(batch, progress)

    recipe = Leaps(small_nets(names=("vnet",)))
    for p in recipe.parameters():
        p.register_hook(lambda grad: torch.full_like(grad, scale["now"]))
    config = FitConfig(steps=4, learning_rate=1e30, momentum=0.0, weight_decay=0.0, precision="fp32",
                       schedule="constant", checkpoint_every=2)  # fmt: skip
    with pytest.raises(FloatingPointError, match="step 3 made weights that are not finite, from finite gradients"):
        fit(recipe, small_batch, config, out=tmp_path, progress=False)
    stored = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert stored["step"] == 2
    assert all(value.isfinite().all() for value in stored["recipe"].values())


@pytest.mark.parametrize("bank", [FIFOBank(2, 3, slots=4), EMABank(2, 3)])
def test_a_bank_takes_no_vector_that_is_not_finite(bank):
    vectors = torch.tensor([[1.0, 0.0, 0.0], [float("nan"), 0.0, 1.0], [float("inf"), 1.0, 1.0]])
    bank.write(vectors, torch.tensor([0, 0, 1]))
    assert all(value.isfinite().all() for value in bank.state_dict().values())
    keys, labels = bank(vectors[:1], torch.tensor([0]))
    assert sorted(set(labels.tolist())) == [-1, 0]
    assert keys[labels == 0].sum() == 1.0


def test_all_finite_sees_every_number():
    good = [torch.ones(3), torch.full((2, 2), 3e38), torch.tensor([1, 2]), torch.empty(0)]
    assert all_finite(good)
    assert all_finite([])
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite([*good, torch.tensor([0.0, bad])])


def constant(value):
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images):
            margin = images.new_full(images[:, :1].shape, value) + self.bias
            return torch.cat([-margin, margin], 1)

    return Constant()


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_foreground_that_vanishes_or_fills_everything_is_told_once(value, tmp_path):
    students = torch.nn.ModuleDict({"net": constant(value)})
    watch = ForegroundWatch(students, patience=3)
    watch.start()
    told = []
    for step in range(5):
        watch.expect(small_batch(step))
        students["net"](small_batch(step).images)
        told.append(watch.count({name: float(share) for name, share in watch.notes().items()}))
        if step == 1:  # goes on after a resume
            again = ForegroundWatch(students, patience=3)
            again.load_state_dict(watch.state_dict())
            watch.close()
            watch = again
            watch.start()
    assert [len(messages) for messages in told] == [0, 0, 1, 0, 0]
    assert "predictions of net have collapsed" in told[2][0]


def test_only_unlabelled_volumes_count_where_there_are_some():
    class Bright(torch.nn.Module):
        def forward(self, images):
            return torch.cat([-images, images], 1)

    students = torch.nn.ModuleDict({"net": Bright()})
    watch = ForegroundWatch(students)
    watch.start()
    batch = small_batch()
    images = torch.cat([batch.labelled.abs() + 1, -batch.unlabelled.abs() - 1])
    watch.expect(batch)
    students["net"](images)
    assert watch.notes()["foreground/net"] == 0
    watch.expect(batch)
    students["net"](images[:2])
    assert watch.notes()["foreground/net"] == 1


def test_a_collapse_is_in_the_log_and_in_the_report(tmp_path):
    class Collapsed(Supervised):
        def forward(self, batch, progress):
            logits = self.students["net"](batch.images)
            terms = Terms()
            terms.add("supervised/net", logits.square().mean(), reaches=["net"])
            return terms

    config = replace(CONFIG, steps=105, learning_rate=0.0, checkpoint_every=200)
    with pytest.warns(RuntimeWarning, match="step 99: predictions of net have collapsed: foreground is 0 %"):
        fit(Collapsed({"net": constant(-1.0)}), small_batch, config, out=tmp_path, progress=False)
    (event,) = rows(tmp_path / "events.csv")
    assert (event["step"], event["kind"]) == ("99", "collapse")
    (warning,) = warnings_of(ReportRun("run", tmp_path))
    assert "predictions of net have collapsed: foreground is 0 % of the voxels of the last training batch" in warning
    assert warning.endswith("since step 0")


def test_deterministic_mode_holds_inside_a_run_and_not_after(tmp_path):
    seen = []

    def callback(step, recipe):
        seen.append(torch.are_deterministic_algorithms_enabled())

    config = replace(CONFIG, deterministic=True, callback_every=4)
    states = []
    for name in "ab":
        recipe = DualUncertainty(small_nets(dropout=0.3), preset="averaged", contrast_weight=0.1)
        fit(recipe, small_batch, config, out=tmp_path / name, callbacks=[callback], progress=False)
        states.append(recipe.state_dict())
    assert seen == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
