# SPDX-License-Identifier: Apache-2.0
"""Uncertainty-aware cross-training: its prediction, its presets, its state, its nets, and that it trains."""

import csv
import dataclasses

import pytest
import torch
from recipes.small import small_batch, small_nets

from ssmis.engine import FitConfig, PseudoLabelQuality, fit
from ssmis.memory import FIFOBank, SharedPointerFIFOBank
from ssmis.nets import UNet
from ssmis.recipes import UCSeg, uc_seg_nets
from ssmis.recipes.uc_seg import PRESETS
from ssmis.registry import RECIPES

TINY = RECIPES["uc_seg"].example.create
OPEN = {"quality_start": 0.0, "quality_end": 0.0, "mix_from": 0.4}


def run(out, *, steps=6, batches=small_batch, seed=0, checkpoint_every=3, resume=False, patience=200, **overrides):
    settings = {"learning_rate": 0.05, "precision": "fp32", "ema_decay": 0.9}
    config = FitConfig(steps=steps, checkpoint_every=checkpoint_every, patience=patience, **settings)
    recipe = UCSeg(small_nets(seed=seed, dropout=0.3), **{**TINY, **OPEN, **overrides})
    return fit(recipe, batches, config, out=out, resume=resume, progress=False).recipe


def log(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_gate_of_what_is_remembered_rises():
    recipe = UCSeg(small_nets(), **{**TINY, "quality_start": 0.0, "quality_end": 1.0, "mix_from": 1.0})
    remembered = [
        sum(
            int(value) for name, value in recipe(small_batch(), progress).notes.items() if name.startswith("remembered")
        )
        for progress in (0.0, 1.0)
    ]
    assert remembered[0] > 0
    assert remembered[1] == 0


def test_the_fused_head_predicts():
    recipe = UCSeg(small_nets(), **TINY).eval()
    images = small_batch().images
    first, second = (net(images).logits for net in recipe.nets().values())
    expected = recipe.students["fusion"](first, second).softmax(1)
    torch.testing.assert_close(recipe.predict(images).probs, expected)
    assert list(recipe.deployed()) == ["fused"]
    alone = UCSeg(recipe.nets(), predict_with=["vnet"], **TINY)
    torch.testing.assert_close(alone.predict(images).probs, second.softmax(1))


def test_averaged_students_predict_through_the_averaged_head(tmp_path):
    batch, seen = small_batch(), []
    quality = PseudoLabelQuality(batch.labelled, batch.labels)
    config = FitConfig(steps=2, precision="fp32", ema_decay=0.5, callback_every=2)

    def look(step, recipe):
        seen.append((recipe.predict(batch.images).probs, [m.training for m in recipe.modules()]))
        return quality(step, recipe)

    recipe = UCSeg(small_nets(), **TINY)
    fit(recipe, small_batch, config, out=tmp_path, callbacks=[look], progress=False)
    torch.testing.assert_close(seen[0][0], recipe.predict(batch.images).probs)  # a run ends with averaged students
    assert not any(seen[0][1])
    assert "dice/fused" in (tmp_path / "quality.csv").read_text().splitlines()[0].split(",")


def test_banks_and_fusion_are_in_the_checkpoint_and_a_resumed_run_is_exact(tmp_path):
    class Stop(Exception):
        pass

    def interrupted(step):
        if step == 3:
            raise Stop
        return small_batch(step)

    straight = run(tmp_path / "straight").state_dict()
    with pytest.raises(Stop):
        run(tmp_path / "resumed", batches=interrupted)
    resumed = run(tmp_path / "resumed", seed=5, resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    assert all(straight[f"banks.{net}_{level}.filled"].sum() > 0 for net in ("resnet", "vnet") for level in range(3))
    rows = [
        [{k: v for k, v in row.items() if k not in ("seconds", "peak_mb")} for row in log(tmp_path / name)]
        for name in ("straight", "resumed")
    ]
    assert rows[0] == rows[1]
    weights = [float(row["weight:prototype/vnet"]) for row in rows[0]]
    assert weights[0] == 0  # the banks were empty
    assert min(weights[1:]) > 0
    assert [row["mixed_region"] != "" for row in rows[0]] == [False] * 3 + [True] * 3


def test_a_bank_that_stays_closed_does_not_stop_the_run(tmp_path):
    run(tmp_path, patience=2, quality_start=1.0, quality_end=1.0)
    assert {float(row["weight:prototype/vnet"]) for row in log(tmp_path)} == {0.0}


def test_every_term_is_alive_under_the_guard_and_the_fused_loss_falls(tmp_path):
    config = FitConfig(
        steps=30, optimizer="adamw", learning_rate=0.02, schedule="cosine", precision="fp32", patience=12
    )
    recipe = UCSeg(small_nets(), **{**TINY, **OPEN})
    fit(recipe, small_batch, config, out=tmp_path, progress=False)
    values = [float(row["supervised/fused"]) for row in log(tmp_path)]
    assert sum(values[-5:]) < 0.8 * sum(values[:5])
    late = log(tmp_path)[-1]
    assert all(float(late[name.replace("weight:", "")]) > 0 for name in late if name.startswith("weight:"))


def test_the_release_differs_from_ours_in_what_its_page_lists():
    ours, release = vars(PRESETS["ours"]), vars(PRESETS["release"])
    assert {name: release[name] for name in ours if ours[name] != release[name]} == {
        "pair": "sigmoid",
        "consistency_weight": 0.0,
        "pseudo_weight": 15.0,
        "prototype_masks": "guess",
        "prototype_over": "volume",
        "symmetric": False,
        "normalize": False,
        "bank": "fifo_shared_pointer",
        "embedding": 1024,
        "gate_dropout": 0.1,
        "fused_widths": (16, 32, 64, 32, 16),
        "fused_activated": True,
    }
    recipe = UCSeg(small_nets(), preset="release", **TINY)
    assert all(isinstance(bank, SharedPointerFIFOBank) and not bank.normalize for bank in recipe.banks.values())
    fusion = recipe.students["fusion"]
    assert isinstance(fusion.head.layers[-1], torch.nn.LeakyReLU)
    assert fusion.gate.dropout == 0.1
    ours_recipe = UCSeg(small_nets(), **TINY)
    assert all(type(bank) is FIFOBank and bank.normalize for bank in ours_recipe.banks.values())
    # a foreground map above one half decides, whatever the background's says
    logits = torch.tensor([5.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    assert recipe._pseudo_labels(logits, None).eq(1).all()
    assert ours_recipe._pseudo_labels(logits, None).eq(0).all()


@pytest.mark.parametrize(("dims", "slots", "tokens", "embedding"), [(3, 144, (7, 7, 5), 256), (2, 1440, (16, 16), 96)])
def test_the_number_of_dimensions_sets_the_defaults(dims, slots, tokens, embedding):
    recipe = UCSeg(small_nets(dims=dims))
    assert tuple(recipe.students["fusion"].gate.positions.shape[1:]) == (embedding, *tokens)
    assert all(bank.slots == slots for bank in recipe.banks.values())
    assert recipe.config.components == (dims == 3)
    assert UCSeg(small_nets(dims=dims), slots=7).banks["vnet_0"].slots == 7


def test_default_nets_follow_the_preset():
    def norms(nets):
        return {name: net.norm for name, net in nets.items()}

    assert norms(uc_seg_nets()) == {"unet": "instance", "vnet": "instance"}
    assert norms(uc_seg_nets(dims=2)) == {"unet": "batch", "vnet": "batch"}
    assert norms(UCSeg(preset="release").nets()) == {"unet": "instance", "vnet": "none"}


def test_an_encoder_of_timm_is_paired_with_a_unet_of_its_channels():
    pytest.importorskip("timm")
    nets = uc_seg_nets(dims=2, encoder="mobilenetv3_small_050", widths=(4, 8, 8, 8, 8), classes=3)
    recipe = UCSeg(nets, **TINY)
    batch = small_batch(side=64, classes=3)
    recipe.begin_step()
    terms = recipe(batch, 0.9)
    terms.total().backward()
    assert all(p.grad is not None for p in recipe.students.parameters())
    assert recipe.predict(batch.images).probs.shape == (4, 3, 64, 64)
    with pytest.raises(ValueError, match="expected dims 2"):
        uc_seg_nets(encoder="resnet18")


def test_nets_that_cannot_be_compared_are_named():
    unlike = {"a": UNet(dims=2, widths=(4, 4, 8)), "b": UNet(dims=2, widths=(4, 4, 6))}
    with pytest.raises(ValueError, match=r"net 'b' has .* \(4, 4, 6\)\); expected .* to match net 'a'"):
        UCSeg(unlike, **TINY)
    with pytest.raises(ValueError, match="net 'a' has 2 encoder maps; expected at least levels = 3"):
        UCSeg({name: UNet(dims=2, widths=(4, 4)) for name in "ab"}, **TINY)
    UCSeg({name: UNet(dims=2, widths=(4, 4)) for name in "ab"}, levels=2, **TINY)
    with pytest.raises(ValueError, match=r"net 'a' \(Conv2d\) has no attributes `classes`, `dims`"):
        UCSeg({name: torch.nn.Conv2d(1, 2, 1) for name in "ab"}, **TINY)
    with pytest.raises(ValueError, match="expected exactly two"):
        UCSeg(small_nets(names=("vnet",)), **TINY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pair": "tanh"},
        {"region_weight": -1.0},
        {"mix_from": 2.0},
        {"prototype_masks": "none"},
        {"levels": 0},
        {"fused_weight": 0.0},
        {"bank": "batch"},
        {"cells": 1},
        {"unlabelled_from": 1.5},
        {"positions": (4, 4, 4)},
        {"gate_patch": (4, 4, 4)},
        {"gate_patch": 4.5},
        {"gate_patch": "4"},
        {"gate_patch": [4, 0]},
        {"gate_patch": None},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UCSeg(small_nets(), **{**TINY, **wrong})
    with pytest.raises(ValueError, match="preset is 'paper'"):
        UCSeg(small_nets(), preset="paper")


def test_a_batch_without_unlabelled_volumes_and_images_that_do_not_divide_are_refused():
    recipe = UCSeg(small_nets(), **TINY)
    with pytest.raises(ValueError, match="uc_seg needs some of both"):
        recipe(small_batch(unlabelled=0), 0.5)
    with pytest.raises(ValueError, match="each a multiple of patch 4"):
        recipe(small_batch(side=10), 0.5)


def test_before_unlabelled_from_only_labelled_volumes_are_looked_at():
    recipe = UCSeg(small_nets(), **{**TINY, **OPEN, "unlabelled_from": 0.5})
    recipe.begin_step()
    batch = small_batch()
    unseen = dataclasses.replace(batch, unlabelled=torch.full_like(batch.unlabelled, torch.nan))
    terms = recipe(unseen, 0.49)  # mixed volumes, from 0.4 on, wait too
    assert set(terms) == {
        f"{term}/{net}" for term in ("supervised", "calibration") for net in ("resnet", "vnet", "fused")
    }
    assert torch.isfinite(terms.total())
    recipe.after_step(0.49)
    assert all(bank.filled.sum() == 0 for bank in recipe.banks.values())
    others = UCSeg(small_nets(), **{**TINY, **OPEN})
    for progress, since in ((0.5, 0.0), (0.75, 0.5), (1.0, 1.0)):
        late, from_the_start = recipe(batch, progress), others(batch, since)
        assert late["pseudo/vnet"].weight == pytest.approx(
            from_the_start["pseudo/vnet"].weight * (0.5 if since < 0.4 else 1)
        )
        assert "mixed_region" in late
    with pytest.raises(ValueError, match="unlabelled_from is 1"):
        UCSeg(small_nets(), **TINY, unlabelled_from=1.0)


def test_terms_may_be_switched_off():
    off = {"consistency_weight": 0.0, "prototype_weight": 0.0, "region_weight": 0.0, "mix_from": 1.0}
    recipe = UCSeg(small_nets(), **{**TINY, **off})
    assert len(recipe.banks) == 0
    kinds = {name.split("/")[0] for name in recipe(small_batch(), 1.0)}
    assert kinds == {"supervised", "calibration", "pseudo"}
