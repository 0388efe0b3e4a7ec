# SPDX-License-Identifier: Apache-2.0
"""The checks that would have found this field's silent failures."""

import pytest
import torch
from recipes.small import gradients, small_batch, small_nets

from ssmis.engine import DeadTermError, FitConfig, TermGuard, fit
from ssmis.engine.guard import reached_parameters
from ssmis.losses import dice_ce, pseudo_ce
from ssmis.recipes import DualUncertainty, Recipe, Terms


def terms_of(value, reaches=("vnet",), weight=1.0):
    terms = Terms()
    terms.add("probe", value, weight, reaches=reaches)
    return terms


@pytest.fixture
def students():
    return Recipe(small_nets()).students


def test_reached_parameters_agrees_with_autograd():
    recipe = DualUncertainty(small_nets())
    for name, term in recipe(small_batch(), 0.5).items():
        reached = reached_parameters(term.value)
        for student, net in recipe.students.items():
            parameters = list(net.parameters())
            grads = torch.autograd.grad(term.value, parameters, retain_graph=True, allow_unused=True)
            for parameter, grad in zip(parameters, grads, strict=True):
                assert (grad is not None) == (id(parameter) in reached), (name, student)


def test_detached_term_is_refused_at_its_first_step(students):
    logits = students["vnet"](small_batch().labelled).logits
    with pytest.raises(DeadTermError, match="'probe' must train 'vnet' but has no path"):
        TermGuard(students).check(terms_of(dice_ce(logits.detach(), small_batch().labels)))


def test_term_that_misses_one_of_its_students_is_refused(students):
    logits = students["vnet"](small_batch().labelled).logits
    with pytest.raises(DeadTermError, match="must train 'resnet'"):
        TermGuard(students).check(terms_of(dice_ce(logits, small_batch().labels), ("vnet", "resnet")))


def test_nan_is_refused_and_names_the_term(students):
    logits = students["vnet"](small_batch().labelled).logits
    with pytest.raises(DeadTermError, match="'probe' is nan at its first step"):
        TermGuard(students).check(terms_of(logits.sum() * float("nan")))


def test_unknown_student_is_refused(students):
    with pytest.raises(DeadTermError, match=r"reaches \['unet'\]"):
        TermGuard(students).check(terms_of(torch.tensor(1.0), ("unet",)))


def test_weight_zero_is_not_looked_at_until_it_rises(students):
    guard = TermGuard(students)
    dead = torch.tensor(float("nan"))
    guard.check(terms_of(dead, weight=0.0))
    with pytest.raises(DeadTermError):
        guard.check(terms_of(dead, weight=0.1))


def test_attached_zero_is_legal_for_a_while_only(students):
    guard = TermGuard(students, patience=5)
    for step in range(5):
        logits = students["vnet"](small_batch(step).unlabelled).logits
        empty = torch.zeros(2, 8, 8, dtype=torch.bool)
        terms = terms_of(pseudo_ce(logits, logits, mask=empty))
        if step < 4:
            guard.check(terms)
        else:
            with pytest.raises(DeadTermError, match="no gradient in 5 steps"):
                guard.check(terms)


def test_one_live_step_proves_a_term(students):
    guard = TermGuard(students, patience=2)
    for step in range(6):
        logits = students["vnet"](small_batch(step).unlabelled).logits
        mask = torch.full((2, 8, 8), step == 0)
        guard.check(terms_of(pseudo_ce(logits, logits.flip(0), mask=mask)))
    assert guard.state_dict()["unproven"] == {"probe": []}


def test_a_term_that_comes_alive_late_is_seen(students):
    guard = TermGuard(students, patience=20)
    for step in range(30):
        logits = students["vnet"](small_batch(step).unlabelled).logits
        mask = torch.full((2, 8, 8), step in (12, 13))  # between the steps at which a zero is measured
        guard.check(terms_of(pseudo_ce(logits, logits.flip(0), mask=mask)))
    assert guard.state_dict()["unproven"] == {"probe": []}


def test_nan_gradient_is_no_proof(students):
    guard = TermGuard(students, patience=3)
    weight = next(students["vnet"].parameters())
    terms = terms_of((weight * 0).sum().sqrt() + 1)  # the root's slope at 0 is infinite: 0 * inf
    for _ in range(2):
        guard.check(terms)
    with pytest.raises(DeadTermError, match="no gradient in 3 steps"):
        guard.check(terms)


class ReleasedTerm(Recipe):
    """The release's entropy-filtered loss: computed on detached logits."""

    def forward(self, batch, progress):
        terms = Terms()
        labelled, unlabelled = batch.split(self.students["vnet"](batch.images).logits)
        terms.add("supervised/vnet", dice_ce(labelled, batch.labels), reaches=["vnet"])
        terms.add("filtered/vnet", pseudo_ce(unlabelled.detach(), unlabelled), reaches=["vnet"])
        return terms


def test_the_loop_stops_on_the_release_s_dead_loss(tmp_path):
    recipe = ReleasedTerm(small_nets(names=("vnet",)))
    assert gradients(recipe(small_batch(), 0.0)["supervised/vnet"].value, recipe)["vnet"] > 0
    with pytest.raises(DeadTermError, match="'filtered/vnet' must train 'vnet' but has no path"):
        fit(recipe, small_batch, FitConfig(steps=3), out=tmp_path, progress=False)
