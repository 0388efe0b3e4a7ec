# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from recipes.small import small_batch, small_nets
from torch import nn

from ssmis.losses import dice_ce
from ssmis.recipes import MeanTeacher, Recipe, Terms
from ssmis.registry import RECIPES


def test_terms_add_up_with_their_weights():
    terms = Terms()
    terms.add("a", torch.tensor(2.0), 0.5, reaches=["net"])
    terms.add("b", torch.tensor(3.0), reaches=["net"])
    terms.add("off", torch.tensor(float("nan")), 0.0, reaches=["net"])
    assert terms.total() == 4.0
    assert list(terms) == ["a", "b", "off"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", torch.tensor(1.0)), "added twice"),
        (("b", torch.ones(2)), r"shape \(2,\); expected a scalar"),
    ],
)
def test_terms_refuse(arguments, message):
    terms = Terms()
    terms.add("a", torch.tensor(1.0), reaches=["net"])
    with pytest.raises(ValueError, match=message):
        terms.add(*arguments, reaches=["net"])


@pytest.mark.parametrize(
    ("name", "nets"), [("supervised", 1), ("mean_teacher", 1), ("cross_pseudo", 2), ("dual_uncertainty", 2)]
)
def test_a_net_that_returns_bare_logits_is_named_with_its_adapter(name, nets):
    plain = {f"plain{i}": nn.Conv2d(1, 2, 1) for i in range(nets)}
    recipe = RECIPES.create(name, plain, **({"contrast_weight": 0.0} if name == "dual_uncertainty" else {}))
    with pytest.raises(ValueError, match=r"net 'plain0' \(Conv2d\) returned a Tensor; .*NetAdapter"):
        recipe(small_batch(), 0.5)


SEMI = {"mean_teacher": ("vnet",), "cross_pseudo": ("resnet", "vnet"), "dual_uncertainty": ("resnet", "vnet")}


@pytest.mark.parametrize("name", SEMI)
def test_without_a_ramp_weights_are_whole_from_the_start(name):
    ends = {"ramp_end": 0.0} | ({"contrast_ramp_end": 0.0} if name == "dual_uncertainty" else {})
    recipe = RECIPES.create(name, small_nets(names=SEMI[name]), **ends)
    first, last = (recipe(small_batch(), progress) for progress in (0.0, 1.0))
    assert {name: term.weight for name, term in first.items()} == {name: term.weight for name, term in last.items()}


@pytest.mark.parametrize("name", SEMI)
@pytest.mark.parametrize("weights", [(2.0, 0.0), (0.0, 3.0)])
def test_the_supervised_loss_has_weights(name, weights):
    recipe = RECIPES.create(name, small_nets(names=SEMI[name]), dice_weight=weights[0], ce_weight=weights[1]).eval()
    batch = small_batch()
    value = recipe(batch, 0.5)["supervised/vnet"].value
    logits = batch.split(recipe.students["vnet"](batch.images).logits)[0]
    expected = dice_ce(logits, batch.labels, dice_weight=weights[0], ce_weight=weights[1])
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mean_teacher", {"consistency_weight": -1.0}),
        ("mean_teacher", {"noise": -0.1}),
        ("mean_teacher", {"ramp_end": 2.0}),
        ("mean_teacher", {"ema_decay": 2.0}),
        ("cross_pseudo", {"cross_weight": -1.0}),
        ("cross_pseudo", {"ce_weight": -1.0}),
        ("cross_pseudo", {"ramp_end": -0.1}),
    ],
)
def test_coefficients_out_of_range_are_refused_at_once(name, arguments):
    ((key, value),) = arguments.items()
    with pytest.raises(ValueError, match=rf"{key.removeprefix('ema_')} is {value}"):
        RECIPES.create(name, small_nets(names=SEMI[name]), **arguments)


def test_a_prediction_that_fails_leaves_every_mode_as_it_was():
    recipe = RECIPES.create("supervised", small_nets(names=("vnet",))).train()
    recipe.students["vnet"].dropout.eval()
    modes = [module.training for module in recipe.modules()]
    with pytest.raises(ValueError, match="2 channels"):
        recipe.predict(torch.zeros(1, 2, 8, 8))
    assert [module.training for module in recipe.modules()] == modes


@pytest.mark.parametrize("name", SEMI)
def test_a_batch_without_unlabelled_volumes_is_refused(name):
    recipe = RECIPES.create(name, small_nets(names=SEMI[name]), **RECIPES[name].example.create)
    with pytest.raises(ValueError, match=f"no unlabelled volumes; {name} needs some"):
        recipe(small_batch(unlabelled=0), 0.5)


def test_terms_must_reach_someone_and_weigh_something():
    terms = Terms()
    with pytest.raises(ValueError, match="reaches no student"):
        terms.add("a", torch.tensor(1.0), reaches=[])
    terms.add("a", torch.tensor(1.0), 0.0, reaches=["net"])
    with pytest.raises(ValueError, match="no term has a weight"):
        terms.total()


def test_predict_averages_the_named_nets():
    nets = small_nets()
    images = torch.randn(2, 1, 8, 8)
    alone = {name: Recipe(nets, predict_with=(name,)).predict(images).probs for name in nets}
    both = Recipe(nets).predict(images).probs
    assert torch.allclose(both, (alone["resnet"] + alone["vnet"]) / 2)
    assert not torch.allclose(alone["resnet"], alone["vnet"])


def test_heads_are_students_that_get_no_images():
    nets, head = small_nets(), nn.Linear(2, 2)
    recipe = Recipe(nets, heads={"fusion": head})
    assert list(recipe.nets()) == list(recipe.deployed()) == ["resnet", "vnet"]
    assert list(recipe.students) == ["resnet", "vnet", "fusion"]
    assert [group["name"] for group in recipe.param_groups()][-2:] == ["fusion", "fusion"]
    with pytest.raises(ValueError, match=r"predict_with names \['fusion'\]; the nets are"):
        Recipe(nets, heads={"fusion": head}, predict_with=["fusion"])
    with pytest.raises(ValueError, match=r"\['vnet'\] are names of nets already"):
        Recipe(nets, heads={"vnet": head})


def test_predict_leaves_every_mode_as_it_was():
    recipe = Recipe(small_nets(dropout=0.5))
    recipe.students["vnet"].encoder.eval()  # a part that its owner keeps still
    before = [module.training for module in recipe.modules()]
    recipe.predict(torch.randn(2, 1, 8, 8))
    assert [module.training for module in recipe.modules()] == before


def test_weight_decay_groups_split_by_rank():
    recipe = Recipe(small_nets())
    groups = recipe.param_groups()
    assert [group["name"] for group in groups] == ["resnet", "resnet", "vnet", "vnet"]
    assert all(p.ndim <= 1 for group in groups if group.get("is_flat") for p in group["params"])
    assert all(p.ndim > 1 for group in groups if not group.get("is_flat") for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(recipe.parameters()))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_must_be_numbers_from_zero_on(weight):
    with pytest.raises(ValueError, match="weight of term 'a' is"):
        Terms().add("a", torch.tensor(1.0), weight, reaches=["net"])


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_mean_teacher_judges_noisy_images(noise):
    recipe, seen = MeanTeacher(small_nets(names=("vnet",)), noise=noise), []
    recipe.teacher.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    batch = small_batch(side=16, unlabelled=4)
    recipe(batch, 0.5)
    assert float((seen[0] - batch.unlabelled).std()) == pytest.approx(noise, abs=0.05)
