# SPDX-License-Identifier: Apache-2.0
"""The laws of uncertainty-aware cross-training, each as a property with gradients, on the whole recipe.

Those of single components (banks, prototypes, vacuity, regions, mixing) are beside the components.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes.small import gradients, small_batch, small_nets
from strategies import make_labels, make_logits, make_mask
from torch import Tensor, nn

import ssmis.recipes.uc_seg as module
from ssmis.data import Batch, largest_components
from ssmis.nets import NetOutput
from ssmis.recipes import UCSeg

SEEDS, DIMS = st.integers(0, 2**31), st.sampled_from([2, 3])
TINY = {"gate_patch": 2, "embedding": 8, "gate_heads": 2, "gate_hidden": 6, "fused_widths": (4,), "slots": 4}
NETS = ("first", "second")
QUALITY = ("quality_start", "quality_end")


class Maps(nn.Module):
    """A net whose logits and encoder maps are its parameters, whatever the images are."""

    def __init__(self, logits: Tensor, pyramid: list[Tensor]) -> None:
        super().__init__()
        self.logits, self.pyramid = nn.Parameter(logits), nn.ParameterList(pyramid)
        self.classes, self.dims = logits.shape[1], logits.ndim - 2
        self.pyramid_channels = tuple(level.shape[1] for level in pyramid)

    def forward(self, images: Tensor) -> NetOutput:
        return NetOutput(self.logits, pyramid=tuple(self.pyramid))


@dataclass(frozen=True)
class Problem:
    """A recipe over two `Maps` of 2 + 2 volumes, and its batch."""

    recipe: UCSeg
    batch: Batch

    def evaluate(self, progress: float = 0.05):
        self.recipe.begin_step()
        return self.recipe(self.batch, progress)


def make_problem(seed, dims, classes, *, scale=3.0, padded=True, **overrides) -> Problem:
    """Maps of side 6; three encoder levels of sides 6, 3 and 2; what the banks hold is written beforehand."""
    sides = (6, 3, 2)
    nets = {}
    for i, name in enumerate(NETS):
        pyramid = [make_logits(seed + 7 * i + level, 4, 5, (side,) * dims) for level, side in enumerate(sides)]
        nets[name] = Maps(make_logits(seed + i, 4, classes, (6,) * dims, scale=scale), pyramid)
    torch.manual_seed(seed)
    recipe = UCSeg(nets, **{**TINY, "quality_start": 0.0, "quality_end": 0.0, "mix_from": 1.0, **overrides})
    for i, bank in enumerate(recipe.banks.values()):
        bank.write(make_logits(seed + i, 2 * classes, 5, ()), torch.arange(2 * classes) % classes)
    images = torch.zeros(4, 1, *(6,) * dims)
    labels = make_labels(seed, 2, classes, (6,) * dims, low=-1)
    valid = make_mask(seed, 2, (6,) * dims) if padded else None
    return Problem(recipe, Batch(images[:2], labels, images[2:], valid=valid))


def slopes(value: Tensor, recipe: UCSeg) -> dict[str, list[Tensor | None]]:
    """Gradients of a term in the parameters of every student."""
    students = {name: list(student.parameters()) for name, student in recipe.students.items()}
    leaves = [leaf for own in students.values() for leaf in own]
    found = list(torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True))
    return {name: [found.pop(0) for _ in own] for name, own in students.items()}


@settings(max_examples=6)
@given(SEEDS, DIMS, st.sampled_from(["ours", "release"]), st.booleans())
def test_every_term_trains_exactly_what_it_names(seed, dims, preset, mixed):
    recipe = UCSeg(small_nets(dims=dims, seed=seed), preset=preset, **{**TINY, "gate_patch": 4})
    for bank in recipe.banks.values():
        bank.write(make_logits(seed, 8, bank.channels, ()), torch.arange(8) % 2)
    recipe.begin_step()
    terms = recipe(small_batch(seed % 1000, dims=dims), 0.9 if mixed else 0.1)
    kinds = {"supervised", "calibration", "pseudo", "prototype", "region"}
    kinds |= {"consistency"} if preset == "ours" else set()  # the release's is a number without gradient
    names = {f"{kind}/{net}" for kind in kinds - {"region"} for net in recipe.nets()} | {"region"}
    names |= {"supervised/fused", "calibration/fused"}
    late = {f"mixed_{name}" for name in names if name.split("/")[0] in ("pseudo", "prototype", "region")}
    assert set(terms) == names | (late if mixed else set())
    for name, term in terms.items():
        own = name.split("/")[-1]
        expected = {"fused": set(recipe.students), "region": set(recipe.nets()), "mixed_region": set(recipe.nets())}
        assert set(term.reaches) == expected.get(own, {own})
        assert term.weight > 0, name
        for student, largest in gradients(term.value, recipe).items():
            assert (largest > 0) == (student in term.reaches), f"{name} into {student}"


@settings(max_examples=8)
@given(SEEDS, DIMS, st.integers(2, 4))
def test_the_fused_loss_reaches_both_nets_through_logits_and_through_the_gate(seed, dims, classes):
    problem = make_problem(seed, dims, classes)
    term = problem.evaluate()["supervised/fused"]
    found = slopes(term.value, problem.recipe)
    for name in NETS:
        assert found[name][0].abs().max() > 0
    fusion = problem.recipe.students["fusion"]
    for part in (fusion.gate, fusion.head):
        got = torch.autograd.grad(term.value, list(part.parameters()), retain_graph=True)
        assert max(gradient.abs().max() for gradient in got) > 0
    problem.recipe.eval()  # in training mode the norm of the head sees the unlabelled volumes too
    found = slopes(problem.evaluate()["supervised/fused"].value, problem.recipe)
    assert not found["first"][0][2:].any()


@settings(max_examples=10)
@given(SEEDS, DIMS, st.integers(2, 4), st.booleans(), st.booleans(), st.sampled_from(["softmax", "sigmoid"]))
def test_a_pseudo_label_is_one_class_everywhere_and_carries_no_gradient(seed, dims, classes, padded, components, pair):
    problem = make_problem(seed, dims, classes, padded=padded, components=components, pair=pair)
    recipe, valid = problem.recipe, problem.batch.valid
    logits = make_logits(seed, 2, classes, (6,) * dims).requires_grad_()
    found = recipe._pseudo_labels(logits, valid)
    assert not found.requires_grad
    inside = torch.ones_like(found, dtype=torch.bool) if valid is None else valid
    assert (found[~inside] == -1).all()
    assert found[inside].ge(0).all()
    assert found[inside].lt(classes).all()
    if components:
        assert torch.equal(largest_components(found, classes=range(1, classes)), found)
    for name in NETS:
        own = slopes(problem.evaluate()[f"pseudo/{name}"].value, recipe)
        assert own[name][0][2:].abs().max() > 0 or not inside.any()
        assert not own[name][0][:2].any()  # labelled volumes have labels
        others = [gradient for other, grads in own.items() if other != name for gradient in grads]
        assert all(gradient is None for gradient in others)


@settings(max_examples=8)
@given(SEEDS, DIMS, st.integers(2, 4))
def test_ignored_voxels_get_no_gradient_from_the_terms_of_a_net(seed, dims, classes):
    problem = make_problem(seed, dims, classes)
    out = torch.cat([problem.batch.labels < 0, ~problem.batch.valid])
    for name, term in problem.evaluate().items():
        kind, _, own = name.partition("/")
        if own in NETS and kind != "prototype":
            gradient = slopes(term.value, problem.recipe)[own][0]
            assert gradient.isfinite().all()
            assert not gradient.movedim(1, -1)[out].any(), name
        if kind in ("prototype", "region"):
            assert slopes(term.value, problem.recipe)["first"][0] is None  # features, not logits


@settings(max_examples=10)
@given(SEEDS, DIMS, st.integers(2, 4))
def test_volumes_may_be_permuted(seed, dims, classes):
    problem = make_problem(seed, dims, classes)
    before = {name: term.value.detach() for name, term in problem.evaluate().items()}
    order = torch.tensor([1, 0, 3, 2])
    batch = problem.batch
    for net in problem.recipe.nets().values():
        for parameter in net.parameters():
            parameter.data = parameter.data[order]
    moved = replace(batch, labels=batch.labels[[1, 0]], valid=batch.valid[[1, 0]])
    for name, term in Problem(problem.recipe, moved).evaluate().items():
        torch.testing.assert_close(term.value.detach(), before[name], rtol=1e-5, atol=1e-6, msg=name)


@settings(max_examples=4)
@given(SEEDS, DIMS)
def test_mixed_volumes_have_ground_truth_in_their_labelled_part(seed, dims):
    recipe = UCSeg(small_nets(dims=dims, seed=seed), **{**TINY, "gate_patch": 4})
    batch, seen = small_batch(seed % 1000, dims=dims, valid=True), []
    with pytest.MonkeyPatch.context() as patch:
        mix = module.box_mix
        patch.setattr(module, "box_mix", lambda *a, **k: seen.append((a, mix(*a, **k))) or seen[-1][1])
        recipe(batch, 0.1)
        assert not seen  # t_mix is not yet reached
        recipe(batch, 0.5)
    (((images, labels, others, pseudo), mixed),) = seen
    assert torch.equal(images, batch.labelled)
    assert torch.equal(others, batch.unlabelled)
    assert (pseudo[~batch.valid] == -1).all()
    assert torch.equal(mixed.labels[mixed.labelled], labels[mixed.labelled])
    assert torch.equal(mixed.labels[~mixed.labelled], pseudo[~mixed.labelled])
    assert mixed.images.shape == others.shape


@settings(max_examples=5)
@given(SEEDS, DIMS, st.integers(2, 3))
def test_after_as_many_steps_as_slots_every_slot_holds_its_own_prototype(seed, dims, classes):
    problem = make_problem(seed, dims, classes, slots=6)
    labels = make_labels(seed, 2, classes, (6,) * dims)
    labels.flatten(1)[:, :classes] = torch.arange(classes)
    recipe = UCSeg(problem.recipe.nets(), **{**TINY, "quality_start": 0.0, "quality_end": 0.0, "slots": 6})
    for step in range(3):
        for net in recipe.nets().values():
            for level, features in enumerate(net.pyramid):
                features.data = make_logits(seed + 10 * step + level, 4, 5, tuple(features.shape[2:]))
            net.logits.data[:2] = 9.0 * nn.functional.one_hot(labels, classes).movedim(-1, 1)
        recipe.begin_step()
        recipe(replace(problem.batch, labels=labels), 0.05)
        recipe.after_step(0.05)
    for bank in recipe.banks.values():  # two labelled volumes a step
        keys, key_labels = bank(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
        assert key_labels.eq(-1).sum() == 0
        assert len(keys.unique(dim=0)) == len(keys) == 6 * classes


@settings(max_examples=5)
@given(SEEDS, DIMS)
def test_prototypes_are_taken_where_the_cells_of_the_nets_lie(seed, dims):
    """Side 6 at stride 4: the second cell begins at voxel 4, for the net padded its images at the end."""
    nets = make_problem(seed, dims, 2).recipe.nets()
    for net in nets.values():
        net.strides = (1, 2, (4,) * dims)
    recipe = UCSeg(nets, **{**TINY, "quality_start": 0.0, "quality_end": 0.0, "slots": 2})
    labels = torch.zeros(2, *(6,) * dims, dtype=torch.int64)
    labels[:, 4:] = 1
    for net in nets.values():
        net.logits.data[:2] = 9.0 * nn.functional.one_hot(labels, 2).movedim(-1, 1)
    images = torch.zeros(4, 1, *(6,) * dims)
    recipe.begin_step()
    recipe(Batch(images[:2], labels, images[2:]), 0.05)
    recipe.after_step(0.05)
    for name, net in nets.items():
        keys, key_labels = recipe.banks[f"{name}_2"](torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
        for k in range(2):
            share = torch.ones(2, 1, *(2,) * (dims - 1))  # of the cells of a row: 4 or 2 voxels along every other axis
            for axis in range(2, dims + 1):
                share.select(axis, 1).mul_(0.5)
            own = (net.pyramid[2].data[:2].select(2, k) * share).flatten(2).sum(2)
            torch.testing.assert_close(keys[key_labels == k], nn.functional.normalize(own, dim=1))


@settings(max_examples=10)
@given(SEEDS, DIMS, st.sampled_from(["empty class", "poor", "nothing labelled"]))
def test_what_is_not_there_or_not_good_is_not_remembered(seed, dims, case):
    problem = make_problem(seed, dims, 3, quality_start=0.5 if case == "poor" else 0.0, quality_end=1.0)
    labels = make_labels(seed, 2, 3, (6,) * dims)
    labels = labels.clamp_max(1) if case == "empty class" else labels
    labels = torch.full_like(labels, -1) if case == "nothing labelled" else labels
    recipe = UCSeg(problem.recipe.nets(), **{**TINY, **{k: getattr(problem.recipe.config, k) for k in QUALITY}})
    for net in recipe.nets().values():
        guess = labels.clamp_min(0) if case != "poor" else (labels + 1) % 3
        net.logits.data[:2] = 9.0 * nn.functional.one_hot(guess, 3).movedim(-1, 1)
    recipe.begin_step()
    terms = recipe(replace(problem.batch, labels=labels), 0.0)
    recipe.after_step(0.0)
    for name in NETS:
        assert terms.notes[f"remembered/{name}"] == (2 if case == "empty class" else 0)
        assert terms[f"prototype/{name}"].weight == 0  # an empty bank: the term has not begun
        assert terms[f"prototype/{name}"].value == 0
    held = {int(n) for bank in recipe.banks.values() for n in bank.filled[2:]}
    assert held == {0}
    recipe.begin_step()
    after = recipe(replace(problem.batch, labels=labels), 0.0)["prototype/first"]
    assert (after.weight > 0) == (case == "empty class")
    assert after.value.isfinite()


@settings(max_examples=12)
@given(
    SEEDS,
    DIMS,
    st.sampled_from(["no foreground", "nothing labelled", "all padding", "one class predicted", "empty banks"]),
    st.sampled_from([1.0, 1e4]),
    st.sampled_from(["ours", "release"]),
)
def test_degenerate_inputs_give_finite_attached_terms(seed, dims, case, scale, preset):
    problem = make_problem(seed, dims, 3, scale=scale, preset=preset)
    batch, recipe = problem.batch, problem.recipe
    if case == "no foreground":
        batch = replace(batch, labels=batch.labels * 0)
    elif case == "nothing labelled":
        batch = replace(batch, labels=torch.full_like(batch.labels, -1))
    elif case == "all padding":
        batch = replace(batch, valid=torch.zeros_like(batch.valid))
    elif case == "one class predicted":
        for net in recipe.nets().values():
            net.logits.data[:, 0] += 2 * scale
    else:
        recipe = UCSeg(recipe.nets(), preset=preset, **TINY)
    terms = Problem(recipe, batch).evaluate()
    assert terms.total().isfinite()
    for name, term in terms.items():
        assert term.value.isfinite(), name
        found = slopes(term.value, recipe)
        for student in term.reaches:
            live = [gradient for gradient in found[student] if gradient is not None]
            assert live, f"{name} is not attached to {student}"
            assert all(gradient.isfinite().all() for gradient in live), name
        if case == "nothing labelled" and name.split("/")[0] in ("supervised", "calibration"):
            assert term.value == 0
        if case == "all padding" and name.startswith("pseudo"):
            assert term.value == 0


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6, 0.99])
def test_the_weights_are_those_of_the_total(progress):
    terms = make_problem(0, 2, 2, pseudo_weight=3.0).evaluate(progress)
    ramp = 3.0 * module.gaussian_ramp(progress, end=0.6)
    expected = {"supervised": 0.5, "calibration": 0.5, "consistency": 0.25, "pseudo": ramp / 2, "prototype": 0.1}
    for name, term in terms.items():
        kind, _, own = name.partition("/")
        assert term.weight == pytest.approx(1.0 if own == "fused" else 0.1 if kind == "region" else expected[kind])


def test_later_every_unlabelled_term_is_averaged_with_its_mixed_twin():
    recipe = UCSeg(small_nets(), **{**TINY, "gate_patch": 4})
    for bank in recipe.banks.values():
        bank.write(torch.eye(bank.channels)[:2], torch.arange(2))
    recipe.begin_step()
    early, late = (recipe(small_batch(), progress) for progress in (0.2399, 0.24))
    for kind in ("pseudo/vnet", "prototype/resnet", "region"):
        assert late[kind].weight == pytest.approx(early[kind].weight / 2, rel=1e-2)
        assert late[kind].weight == late[f"mixed_{kind}"].weight
    for kind in ("supervised/vnet", "consistency/vnet", "supervised/fused"):
        assert late[kind].weight == early[kind].weight
