# SPDX-License-Identifier: Apache-2.0
"""What every registered recipe must do."""

import copy

import pytest
import torch
from recipes.small import small_batch, small_nets

from ssmis.engine import FitConfig, TermGuard, fit
from ssmis.registry import RECIPES

ONE_NET = ("mean_teacher",)


def build(name, **kwargs):
    names = ("vnet",) if name in ONE_NET else ("resnet", "vnet")
    return RECIPES.create(name, small_nets(names=names, **kwargs), **RECIPES[name].example.create)


def small_fit(recipe, out, *, steps=6, resume=False, **settings):
    config = FitConfig(**{"steps": steps, "learning_rate": 0.05, "precision": "fp32", "ema_decay": 0.9} | settings)
    return fit(recipe, small_batch, config, out=out, resume=resume, progress=False)


@pytest.mark.parametrize("name", RECIPES)
def test_default_nets_are_built(name):
    assert sum(p.numel() for p in RECIPES.create(name).parameters()) > 9_000_000


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_terms_hold_the_contract(name, dims):
    recipe = build(name, dims=dims)
    recipe.begin_step()
    terms = recipe(small_batch(dims=dims), 0.5)
    TermGuard(recipe.students).check(terms)  # finite, and connected to every student they name
    for term in terms.values():
        assert term.value.dtype == torch.float32
        assert set(term.reaches) <= set(recipe.students)
    terms.total().backward()
    assert all(p.grad is not None for p in recipe.students.parameters())
    assert all(p.grad is None for n, p in recipe.named_parameters() if not n.startswith("students."))


@pytest.mark.parametrize("name", RECIPES)
def test_forward_changes_no_buffer_but_those_of_batch_norm(name):
    recipe = build(name)
    before = copy.deepcopy(recipe.state_dict())
    recipe.begin_step()
    recipe(small_batch(), 0.5)
    changed = {key for key, value in recipe.state_dict().items() if not torch.equal(value, before[key])}
    assert all((key.startswith("students.") and "running" in key) or "num_batches" in key for key in changed)


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_runs_each_net_no_more_often_than_declared(name):
    recipe = build(name)
    runs = dict.fromkeys(recipe.nets(), 0)

    def count(own):
        def hook(module, inputs):
            runs[own] += 1

        return hook

    for own, net in recipe.nets().items():
        net.register_forward_pre_hook(count(own))
    recipe(small_batch(), 0.9)
    assert max(runs.values()) == recipe.passes


@pytest.mark.parametrize("name", RECIPES)
def test_predict_is_deterministic_and_gives_probabilities(name):
    recipe = build(name, dropout=0.5)
    images = small_batch().images
    first, second = recipe.predict(images), recipe.predict(images)
    assert torch.equal(first.probs, second.probs)
    assert torch.allclose(first.probs.sum(1), torch.ones_like(first.probs[:, 0]))
    assert first.uncertainty.shape == images[:, 0].shape
    assert 0 <= first.uncertainty.min() <= first.uncertainty.max() <= 1
    assert recipe.training


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_and_resumed_equals_straight_bit_for_bit(name, tmp_path):
    straight = small_fit(build(name, dropout=0.3), tmp_path / "straight").recipe

    class Stop(Exception):
        pass

    def interrupted(step):
        if step == 3:
            raise Stop
        return small_batch(step)

    config = FitConfig(steps=6, learning_rate=0.05, precision="fp32", ema_decay=0.9, checkpoint_every=3)
    with pytest.raises(Stop):
        fit(build(name, dropout=0.3), interrupted, config, out=tmp_path / "resumed", progress=False)
    other = build(name, dropout=0.3, seed=5)  # its own initial weights must not matter
    resumed = small_fit(other, tmp_path / "resumed", resume=True, checkpoint_every=3).recipe
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    logs = [(tmp_path / run / "metrics.csv").read_text().splitlines() for run in ("straight", "resumed")]
    assert [line.split(",")[0] for line in logs[1]] == ["step", *map(str, range(6))]
    for a, b in zip(*logs, strict=True):  # every column but time and memory
        assert a.split(",")[3:] == b.split(",")[3:]


@pytest.mark.parametrize("name", RECIPES)
def test_training_lowers_the_supervised_loss(name, tmp_path):
    recipe = build(name)
    small_fit(recipe, tmp_path, steps=30, optimizer="adamw", learning_rate=0.02, schedule="cosine", ema_decay=None)
    lines = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = lines[0].index("supervised/vnet")
    values = [float(line[column]) for line in lines[1:]]
    assert sum(values[-5:]) < 0.85 * sum(values[:5])
