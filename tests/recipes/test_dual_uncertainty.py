# SPDX-License-Identifier: Apache-2.0
"""The laws of the dual-network method, on the recipe as a whole."""

import dataclasses
import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipes.small import gradients, small_batch, small_nets

from ssmis._classes import top_class
from ssmis.data import Batch
from ssmis.kernels import voxel_contrast
from ssmis.losses import dice_ce, dice_consistency
from ssmis.nets import NetOutput
from ssmis.recipes import DualUncertainty
from ssmis.recipes.dual_uncertainty import PRESETS, without_islands

TERMS = ("supervised", "disagreement", "rectified", "filtered", "contrast")


def warmed(recipe, steps=2, **kwargs):
    """Run steps so that the banks hold something."""
    for step in range(steps):
        recipe.begin_step()
        recipe(small_batch(step, **kwargs), 0.5)
        recipe.after_step(0.5)
    return recipe


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("bank", ["fifo", "ema", "batch"])
def test_every_term_trains_its_net_and_no_other(dims, bank):
    recipe = warmed(DualUncertainty(small_nets(dims=dims), bank=bank), dims=dims)
    # confident nets: the disagreement needs one net above its threshold
    for net in recipe.students.values():
        net.head.conv.weight.data.mul_(4)
    terms = recipe(small_batch(9, dims=dims), 0.5)
    assert set(terms) == {f"{term}/{net}" for term in TERMS for net in ("resnet", "vnet")}
    for name, term in terms.items():
        own = name.split("/")[1]
        found = gradients(term.value, recipe)
        assert term.reaches == (own,)
        assert torch.isfinite(term.value)
        assert found.pop(own) > 0, f"{name} is dead"
        assert set(found.values()) == {0.0}, f"{name} leaks into the peer"


def test_an_organ_is_no_island_beside_a_guess_in_the_padding():
    logits = torch.zeros(1, 2, 12, 12)
    logits[:, 0] = 1
    valid = torch.ones(1, 12, 12, dtype=torch.bool)
    valid[..., 6:] = False
    logits[0, 1, 1:4, 1:4] = 5
    logits[0, 1, :, 7:] = 5  # nothing teaches a net what to say there
    kept = without_islands(logits, classes=(1,), valid=valid)
    assert torch.equal(kept, logits)
    assert int(top_class(without_islands(logits, classes=(1,)))[valid].sum()) == 0
    recipe = DualUncertainty(small_nets(), preset="copy_paste")
    for teacher in recipe.teachers.values():
        teacher.forward = lambda images: NetOutput(logits.expand(len(images), -1, -1, -1))
    batch = Batch(*[torch.zeros(2, 1, 12, 12)] * 3, valid=valid.expand(2, -1, -1))
    judged = recipe._judged(batch, {})["vnet"]
    assert int(top_class(judged)[:, :6, :6].sum()) == 2 * 9


def test_exchanging_boxes_with_nobody_is_told():
    recipe = DualUncertainty(small_nets(), preset="averaged")
    with pytest.warns(RuntimeWarning, match="one unlabelled volume a process or micro-step has no other one"):
        recipe(small_batch(unlabelled=1), 0.9)


def test_voxels_count_by_the_volume_they_are_of(monkeypatch):
    seen = []

    def watched(features, labels, *arguments, weight=None, **options):
        seen.append((labels, weight))
        return voxel_contrast(features, labels, *arguments, weight=weight, **options)

    monkeypatch.setattr(importlib.import_module("ssmis.recipes.dual_uncertainty"), "voxel_contrast", watched)
    batch = small_batch(side=12, valid=True)
    batch.valid[0, :9] = False  # one volume has far fewer voxels than the other
    warmed(DualUncertainty(small_nets(), anchors=None))(batch, 0.5)
    for labels, weight in seen[-2:]:
        each = [float(weight[index][labels[index] >= 0].sum()) for index in range(2)]
        assert int((labels[0] >= 0).sum()) < int((labels[1] >= 0).sum())
        assert each[0] == pytest.approx(each[1], rel=1e-4)
        assert each[0] > 0


def test_public_code_is_what_the_release_optimises():
    recipe = DualUncertainty(small_nets(), preset="public_code")
    terms = recipe(small_batch(), 0.0)
    both = {f"{kind}/{net}" for kind in ("supervised", "cosine") for net in ("resnet", "vnet")}
    assert set(terms) == both | {"rectified/resnet", "disagreement/vnet"}
    assert {name: term.weight for name, term in terms.items() if term.weight != 1.0} == {"disagreement/vnet": 0.5}
    assert gradients(terms["rectified/resnet"].value, recipe)["vnet"] == 0.0
    assert len(recipe.banks) == 0


def test_balanced_differs_from_paper_in_what_keeps_the_foreground():
    paper, balanced = vars(PRESETS["paper"]), vars(PRESETS["balanced"])
    assert {name: balanced[name] for name in paper if paper[name] != balanced[name]} == {
        "filter_scope": "class",
        "pseudo_dice_weight": 1.0,
    }
    recipe = warmed(DualUncertainty(small_nets(), preset="balanced"))
    terms = recipe(small_batch(7), 0.5)
    for net in ("resnet", "vnet"):
        found = gradients(terms[f"pseudo_dice/{net}"].value, recipe)
        assert found.pop(net) > 0
        assert set(found.values()) == {0.0}


def test_averaged_differs_from_balanced_in_its_teacher_and_in_what_the_nets_see():
    balanced, averaged = vars(PRESETS["balanced"]), vars(PRESETS["averaged"])
    assert {name: averaged[name] for name in balanced if balanced[name] != averaged[name]} == {
        "teacher": "average",
        "targets": "soft",
        "mix_side": 0.5,
        "disagreement_weight": 1.0,
        "anchor_labels": "pseudo",
        "ramp_end": 1.0,
    }


def test_late_differs_from_averaged_in_when_unlabelled_volumes_join():
    averaged, late = vars(PRESETS["averaged"]), vars(PRESETS["late"])
    assert {name: late[name] for name in averaged if averaged[name] != late[name]} == {
        "unlabelled_from": 0.5,
        "ramp_end": 0.5,
        "disagreement_weight": 0.0,
    }


def test_copy_paste_differs_from_late_in_whose_boxes_are_mixed_and_from_when():
    late, pasted = vars(PRESETS["late"]), vars(PRESETS["copy_paste"])
    assert {name: pasted[name] for name in late if late[name] != pasted[name]} == {
        "unlabelled_from": 0.3,
        "ramp_end": 0.3,
        "mix_side": 2 / 3,
        "mix_with": "labelled",
        "components": True,
    }


def test_averages_judge_the_weak_view_and_the_nets_see_the_strong_one():
    recipe = DualUncertainty(small_nets(), preset="averaged", mix_side=0.0)
    batch = small_batch(3)
    seen = {"student": [], "teacher": []}
    for kind, nets in (("student", recipe.students), ("teacher", recipe.teachers)):
        for net in nets.values():
            net.register_forward_pre_hook(lambda _, images, kind=kind: seen[kind].append(images[0]))
    recipe(dataclasses.replace(batch, strong=(batch.unlabelled + 1,)), 1.0)
    assert [len(images) for images in seen.values()] == [2, 2]
    for images in seen["student"]:
        assert torch.equal(images, torch.cat([batch.labelled, batch.unlabelled + 1]))
    for images in seen["teacher"]:
        assert torch.equal(images, batch.unlabelled)


def test_both_nets_learn_from_the_mean_of_the_averages():
    recipe = DualUncertainty(small_nets(), preset="averaged", mix_side=0.0, contrast_weight=0.0, filtered_weight=0.0)
    batch = small_batch(4)
    terms = recipe(batch, 1.0)
    with torch.no_grad():
        mean = sum(teacher(batch.unlabelled).logits.softmax(1) for teacher in recipe.teachers.values()) / 2
    torch.manual_seed(0)
    for name, net in recipe.students.items():
        own = batch.split(net(batch.images).logits)[1]
        expected = dice_consistency(own, mean.log())
        torch.testing.assert_close(terms[f"pseudo_dice/{name}"].value, expected)
        assert gradients(terms[f"rectified/{name}"].value, recipe)[name] > 0
    assert not any(parameter.requires_grad for parameter in recipe.teachers.parameters())


class Pointwise(torch.nn.Module):
    """Logits of a voxel from that voxel alone: a net that does not mind where a voxel lies."""

    classes, channels = 2, 1

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([[-1.0], [2.0]]))

    def forward(self, images):
        return NetOutput(torch.einsum("kc,bc...->bk...", self.slope, images), images)


def test_pseudo_labels_follow_the_voxels_into_mixed_views():
    # to a net that does not mind where a voxel lies, mixed volumes are volumes like others
    batch = small_batch(5)
    recipe = DualUncertainty({"first": Pointwise(), "second": Pointwise()}, preset="averaged", contrast_weight=0.0)
    torch.manual_seed(3)
    terms = recipe(batch, 1.0)
    torch.manual_seed(3)
    view = recipe._view(batch)
    assert view.known is None
    assert not torch.equal(view.batch.strong[0], batch.unlabelled)
    recipe.config = dataclasses.replace(recipe.config, mix_side=0.0)
    expected = recipe(dataclasses.replace(batch, unlabelled=view.batch.strong[0]), 1.0)
    torch.testing.assert_close(terms["rectified/first"].value, expected["rectified/first"].value)
    torch.testing.assert_close(terms["pseudo_dice/first"].value, expected["pseudo_dice/first"].value)


def test_padding_goes_with_the_voxels():
    recipe = DualUncertainty(small_nets(), preset="averaged")
    batch = small_batch(6)
    valid = torch.zeros_like(batch.unlabelled[:, 0], dtype=torch.bool)
    valid[0] = True
    view = recipe._view(dataclasses.replace(batch, valid=valid))
    assert torch.equal(view.batch.valid, view.as_mixed(valid))
    assert 0 < int(view.batch.valid[1].sum()) < view.batch.valid[1].numel()


def copy_paste(nets, **options):
    return DualUncertainty(nets, preset="averaged", mix_with="labelled", **options)


def test_labelled_boxes_bring_their_labels_and_pseudo_labels_stay_outside():
    batch = small_batch(6)
    labels = batch.labels.clone()
    labels[:, 0] = -1
    valid = torch.rand(batch.unlabelled[:, 0].shape, generator=torch.Generator().manual_seed(0)) < 0.9
    batch = dataclasses.replace(batch, labels=labels, valid=valid)
    torch.manual_seed(1)
    view = copy_paste(small_nets())._view(batch)
    mixed, known = view.batch, view.known
    partner = torch.arange(len(batch.unlabelled)) % len(batch.labelled)
    assert 0 < int(known.sum()) < known.numel()
    source = torch.where(known.unsqueeze(1), batch.labelled[partner], batch.unlabelled)
    assert torch.equal(mixed.strong[0], source)
    assert torch.equal(mixed.valid, torch.where(known, labels[partner] >= 0, valid))
    logits = torch.randn(len(batch.unlabelled), 2, *known.shape[1:])
    judged = view.as_mixed(logits)
    assert torch.equal(judged.argmax(1)[known & mixed.valid], labels[partner][known & mixed.valid])
    assert judged.softmax(1).amax(1)[known].min() == 1
    assert torch.equal(judged.movedim(1, -1)[~known], logits.movedim(1, -1)[~known])


@pytest.mark.parametrize(("preset", "times"), [("averaged", 1), ("balanced", 2)])
def test_pseudo_labels_that_both_nets_share_are_ranked_once(monkeypatch, preset, times):
    recipe, calls = DualUncertainty(small_nets(), preset=preset), []
    surest = recipe._surest
    monkeypatch.setattr(recipe, "_surest", lambda logits, *rest: calls.append(logits) or surest(logits, *rest))
    terms = recipe(small_batch(3), 1.0)
    assert len(calls) == times
    assert {f"filtered/{name}" for name in recipe.students} <= set(terms)


def test_true_labels_are_kept_and_take_no_pseudo_label_s_place():
    recipe = copy_paste(small_nets(), filter_scope="volume", keep_fraction=0.25)
    logits = torch.randn(2, 2, 4, 4, 4)
    known = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    known[:, :2] = True
    valid = torch.ones_like(known)
    valid[:, 0] = False
    kept = recipe._surest(torch.where(known.unsqueeze(1), 100.0 * logits.sign(), logits), valid, known)
    assert torch.equal(kept[:, :2], valid[:, :2])
    assert kept[:, 2:].flatten(1).sum(1).tolist() == [8, 8]  # a quarter of the 32 others


def test_with_labelled_volumes_alone_on_both_sides_copy_paste_is_supervised():
    # a box as large as the volume: what one learns from is a labelled volume, whole, or an unlabelled one
    batch = small_batch(5)
    recipe = copy_paste(
        {"first": Pointwise(), "second": Pointwise()}, mix_side=1.0, contrast_weight=0.0, kl_rectified=False
    )
    for seed in range(20):
        torch.manual_seed(seed)
        if recipe._view(batch).known.all():
            break
    torch.manual_seed(seed)
    terms = recipe(batch, 1.0)
    own = recipe.students["first"](batch.labelled).logits
    partner = torch.arange(len(batch.unlabelled)) % len(batch.labelled)
    expected = torch.nn.functional.cross_entropy(own, batch.labels, reduction="none").flatten(1).mean(1)[partner].mean()
    torch.testing.assert_close(terms["rectified/first"].value, expected)
    torch.testing.assert_close(terms["filtered/first"].value, expected)


def test_with_labelled_volumes_in_mixtures_only_the_nets_see_no_others_and_learn_the_labels_in_them():
    recipe = DualUncertainty(small_nets(), preset="averaged", mix_with="labelled_only", unlabelled_from=0.5)
    batch = small_batch(6)
    labels = batch.labels.clone()
    labels[:, 0] = -1
    batch = dataclasses.replace(batch, labels=labels)
    seen = []
    recipe.students["resnet"].register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    recipe(batch, 0.4)
    assert torch.equal(seen[0], batch.labelled)
    torch.manual_seed(1)
    terms = recipe(batch, 1.0)
    torch.manual_seed(1)
    view = recipe._view(batch)
    other = copy_paste(small_nets())
    torch.manual_seed(1)
    besides = other._view(batch)
    assert besides.labels is None
    assert torch.equal(view.known, besides.known)
    mixed = view.batch
    assert torch.equal(mixed.strong[0], besides.batch.strong[0])
    assert torch.equal(seen[1], mixed.strong[0])
    assert len(mixed.labelled) == len(mixed.labels) == 0
    partner = torch.arange(len(batch.unlabelled)) % len(batch.labelled)
    assert torch.equal(view.labels, labels[partner].where(view.known, -1))
    logits = recipe.students["resnet"](mixed.strong[0]).logits
    torch.testing.assert_close(terms["supervised/resnet"].value, dice_ce(logits, view.labels))
    assert {name.partition("/")[0] for name in terms} == {"supervised", "disagreement", "rectified", "filtered",
                                                          "pseudo_dice", "contrast"}  # fmt: skip


def test_labelled_volumes_without_a_partner_are_refused_where_mixtures_are_all_there_is():
    recipe = DualUncertainty(small_nets(), preset="averaged", mix_with="labelled_only")
    with pytest.raises(ValueError, match="3 labelled and 1 unlabelled volumes; mix_with 'labelled_only' mixes each"):
        recipe(small_batch(labelled=3, unlabelled=1), 1.0)
    copy_paste(small_nets())(small_batch(labelled=3, unlabelled=1), 1.0)


def test_pseudo_labels_keep_one_component_of_each_class():
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    labels[0, 1:4, 1:4, 1:4], labels[0, 6:, 6:, 6:], labels[0, 1, 6, 6] = 1, 1, 2
    logits = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) * 2.0
    judged = without_islands(logits, classes=(1, 2))
    island = torch.zeros_like(labels, dtype=torch.bool)
    island[0, 6:, 6:, 6:] = True
    assert torch.equal(judged.argmax(1), labels.where(~island, 0))
    assert judged.softmax(1)[:, 0][island].min() == 1
    assert torch.equal(judged.movedim(1, -1)[~island], logits.movedim(1, -1)[~island])
    assert torch.equal(without_islands(logits, classes=(2,)), logits)


def test_a_step_learns_from_pseudo_labels_without_islands(monkeypatch):
    module = importlib.import_module("ssmis.recipes.dual_uncertainty")
    calls = []
    monkeypatch.setattr(module, "without_islands", lambda logits, *, classes, valid: calls.append([*classes]) or logits)
    classes = small_nets()["resnet"].classes
    for components in (True, False, (1,), ()):
        DualUncertainty(small_nets(), preset="averaged", components=components)(small_batch(3), 1.0)
    assert calls == [[*range(1, classes)], [1]]
    with pytest.raises(ValueError, match=rf"components is \[{classes}\]; expected true, false, or a list"):
        DualUncertainty(small_nets(), preset="averaged", components=[classes])
    with pytest.raises(ValueError, match="components is True with teacher 'peer'"):
        DualUncertainty(small_nets(), components=True)


@pytest.mark.parametrize("how", ["labelled", "unlabelled"])
def test_components_are_those_of_the_whole_volume_whatever_it_is_mixed_with(how):
    """One piece, which the unannotated half of a partner would cut in two, and its padding too."""
    image = -10 * torch.ones(2, 1, 24, 24)
    image[:, :, 4:20, 10:14] = image[:, :, 4:8, 4:20] = image[:, :, 16:20, 4:20] = 10
    labels = torch.zeros(2, 24, 24, dtype=torch.long)
    labels[:, :12] = -1
    valid = torch.ones(2, 24, 24, dtype=torch.bool)
    valid[1, :12] = False
    batch = Batch(labelled=torch.full_like(image, -10), labels=labels, unlabelled=image, valid=valid)
    for seed in range(20):
        torch.manual_seed(seed)
        recipe = DualUncertainty(
            {name: Pointwise() for name in ("a", "b")}, preset="copy_paste", mix_with=how, contrast_weight=0.0
        )
        terms = recipe(batch, 0.9)  # the averages are the nets, which see what is bright: all agree
        assert all(terms[f"{kind}/a"].value < 0.01 for kind in ("rectified", "filtered", "pseudo_dice")), seed


@pytest.mark.parametrize("how", ["labelled", "labelled_only"])
def test_mixing_with_labels_needs_a_box(how):
    with pytest.raises(ValueError, match=f"mix_with is '{how}' with mix_side 0"):
        DualUncertainty(small_nets(), preset="averaged", mix_with=how, mix_side=0.0)


def test_peers_do_not_judge_mixed_volumes():
    with pytest.raises(ValueError, match=r"mix_side is 0\.5 with teacher 'peer'"):
        DualUncertainty(small_nets(), preset="balanced", mix_side=0.5)


def test_the_contrast_takes_uncertain_voxels_for_what_the_averages_say(monkeypatch):
    module = importlib.import_module("ssmis.recipes.dual_uncertainty")
    seen = []

    def contrast(anchors, labels, *arguments, **options):
        seen.append(labels)
        return voxel_contrast(anchors, labels, *arguments, **options)

    monkeypatch.setattr(module, "voxel_contrast", contrast)
    batch = small_batch(8)
    for chosen in ("pseudo", "own"):
        recipe = DualUncertainty(
            small_nets(), preset="averaged", mix_side=0.0, keep_fraction=0.01, anchors=None, anchor_labels=chosen
        )
        for teacher in recipe.teachers.values():  # averages that call everything foreground
            teacher.module.head.conv.bias.data.copy_(torch.tensor([-1e3, 1e3]))
        for net in recipe.students.values():  # nets that call nothing so
            net.head.conv.bias.data.copy_(torch.tensor([1e3, -1e3]))
        recipe(batch, 1.0)
    for labels, expected in zip(seen, (1, 1, 0, 0), strict=True):
        assert set(labels[labels >= 0].tolist()) == {expected}


def test_averages_move_with_applied_steps_only():
    recipe = DualUncertainty(small_nets(), preset="averaged")
    before = {name: value.clone() for name, value in recipe.teachers.state_dict().items()}
    for net in recipe.students.values():
        net.head.conv.weight.data.add_(1)
    recipe.begin_step()
    recipe(small_batch(), 0.5)
    assert all(torch.equal(value, before[name]) for name, value in recipe.teachers.state_dict().items())
    recipe.after_step(0.5)
    moved = [name for name, value in recipe.teachers.state_dict().items() if not torch.equal(value, before[name])]
    assert any("head.conv.weight" in name for name in moved)


def test_averages_cannot_teach_labelled_volumes():
    with pytest.raises(ValueError, match="rectified_on is 'all' with teacher 'average'"):
        DualUncertainty(small_nets(), preset="averaged", rectified_on="all")


def test_unlabelled_terms_ramp_up():
    recipe = DualUncertainty(small_nets())
    weights = [recipe(small_batch(), t)["rectified/vnet"].weight for t in (0.0, 0.1, 0.4, 1.0)]
    assert weights[0] < 0.01
    assert weights == sorted(weights)
    assert weights[2] == weights[3] == 1.0
    contrast = [recipe(small_batch(), t)["contrast/vnet"].weight for t in (0.0, 1.0)]
    assert contrast[0] < 0.001
    assert contrast[1] == pytest.approx(0.1 / 2)  # L_c is the mean over both nets


def test_empty_bank_gives_an_attached_zero():
    recipe = DualUncertainty(small_nets())
    term = recipe(small_batch(), 0.0)["contrast/vnet"]
    assert term.value == 0
    assert term.value.requires_grad


def test_keep_fraction_one_filters_nothing_and_leaves_no_anchor():
    recipe = warmed(DualUncertainty(small_nets(), keep_fraction=1.0))
    assert recipe(small_batch(), 1.0)["contrast/vnet"].value == 0


def test_forward_changes_no_bank_and_after_step_does():
    recipe = DualUncertainty(small_nets())
    before = {name: value.clone() for name, value in recipe.banks.state_dict().items()}
    recipe.begin_step()
    recipe(small_batch(), 0.5)
    assert all(torch.equal(value, before[name]) for name, value in recipe.banks.state_dict().items())
    recipe.after_step(0.5)
    assert any(not torch.equal(value, before[name]) for name, value in recipe.banks.state_dict().items())


def test_a_skipped_step_leaves_nothing_behind():
    applied, skipped = (DualUncertainty(small_nets()) for _ in range(2))
    skipped.begin_step()
    torch.manual_seed(0)
    skipped(small_batch(5), 0.5)  # its update was skipped: after_step never came
    skipped.load_state_dict(applied.state_dict())  # BatchNorm's running statistics aside
    for recipe in (applied, skipped):
        recipe.begin_step()
        torch.manual_seed(1)
        recipe(small_batch(6), 0.5)
        recipe.after_step(0.5)
    for name, value in applied.banks.state_dict().items():
        assert torch.equal(value, skipped.banks.state_dict()[name]), name


@given(step=st.integers(0, 1000), classes=st.integers(2, 4), dims=st.sampled_from([2, 3]), valid=st.booleans())
def test_terms_are_finite_for_any_classes_and_padding(step, classes, dims, valid):
    recipe = warmed(DualUncertainty(small_nets(dims=dims, classes=classes)), dims=dims, classes=classes)
    terms = recipe(small_batch(step, dims=dims, classes=classes, valid=valid), 0.7)
    terms.total().backward()
    assert all(torch.isfinite(term.value) for term in terms.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in recipe.parameters())


def test_padding_of_unlabelled_volumes_trains_nothing():
    recipe = DualUncertainty(small_nets(norm="none")).eval()
    batch = small_batch(valid=True)
    terms = recipe(batch, 1.0)
    # cross terms are means over valid voxels: computing them on the logits by hand gives the same
    from ssmis.losses import kl_rectified_ce

    own, peer = (batch.split(recipe.students[n](batch.images).logits)[1] for n in ("resnet", "vnet"))
    expected = kl_rectified_ce(own, peer, mask=batch.valid)
    assert torch.allclose(terms["rectified/resnet"].value, expected)


def test_without_the_kl_weight_the_term_is_plain_cross_pseudo_supervision():
    from ssmis.losses import pseudo_ce

    recipe, batch = DualUncertainty(small_nets(), kl_rectified=False), small_batch(valid=True)
    terms = recipe(batch, 0.5)
    own, peer = (batch.split(recipe.students[name](batch.images))[1].logits for name in ("resnet", "vnet"))
    assert torch.allclose(terms["rectified/resnet"].value, pseudo_ce(own, peer, mask=batch.valid))
    assert gradients(terms["rectified/resnet"].value, recipe)["resnet"] > 0


def test_batch_has_no_place_for_unlabelled_labels():
    fields = {field.name for field in dataclasses.fields(Batch)}
    assert fields == {"labelled", "labels", "unlabelled", "strong", "valid", "cases", "key"}
    batch = small_batch(labelled=1, unlabelled=3)
    assert (len(batch.labels), len(batch.unlabelled)) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "papre"}, "preset is 'papre'; expected one of 'paper', 'balanced', 'averaged', 'late'"),
        ({"rectified_into": "vnet"}, "rectified_into is 'vnet'"),
        ({"filtered_weight": -1.0}, r"filtered_weight is -1\.0"),
        ({"bank": "lifo"}, "unknown bank 'lifo'; did you mean 'fifo'"),
        ({"predict_with": ("unet",)}, "predict_with names"),
        ({"filter_scope": "slice"}, "filter_scope is 'slice'; expected one of 'volume', 'batch', 'class'"),
        ({"targets": "sharp"}, "targets is 'sharp'"),
        ({"reduction": "none"}, "reduction is 'none'; expected one of 'mean', 'pooled'"),
        ({"keep_fraction": 20}, r"keep_fraction is 20; expected a number in \[0.0, 1.0\]"),
        ({"disagreement_threshold": 60}, "disagreement_threshold is 60"),
        ({"teacher_decay": 1.01}, r"teacher_decay is 1\.01"),
        ({"temperature": 0.0}, r"^temperature is 0\.0"),
        ({"anchors": 0}, "anchors is 0; expected at least 1"),
        ({"candidates": 0}, "candidates is 0; expected at least 1"),
        ({"sharpen_temperature": 0.5}, r"sharpen_temperature is 0\.5; expected None with hard targets"),
        ({"sharpen_temperature": 0.0, "targets": "soft"}, r"sharpen_temperature is 0\.0; expected a number in"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualUncertainty(small_nets(), **arguments)


def test_batches_need_unlabelled_volumes():
    with pytest.raises(ValueError, match="no unlabelled volumes"):
        DualUncertainty(small_nets())(small_batch(unlabelled=0), 0.5)


def test_needs_two_nets():
    with pytest.raises(ValueError, match="expected exactly two"):
        DualUncertainty(small_nets(names=("vnet",)))


def test_presets_differ_only_where_documented():
    paper, public = vars(PRESETS["paper"]), vars(PRESETS["public_code"])
    assert {name for name in paper if paper[name] != public[name]} == {
        "disagreement_into",
        "rectified_into",
        "rectified_on",
        "filtered_weight",
        "cosine_weight",
        "contrast_weight",
        "ramp_end",
        "reduction",
    }


@pytest.mark.parametrize("preset", ["paper", "averaged"])
def test_before_unlabelled_from_only_labelled_volumes_are_looked_at(preset):
    recipe = DualUncertainty(small_nets(), preset=preset, unlabelled_from=0.5, ramp_end=1.0)
    recipe.begin_step()
    batch = small_batch()
    unseen = dataclasses.replace(batch, unlabelled=torch.full_like(batch.unlabelled, torch.nan), strong=())
    terms = recipe(unseen, 0.49)
    assert set(terms) == {f"{term}/{net}" for term in ("supervised", "disagreement") for net in ("resnet", "vnet")}
    assert torch.isfinite(terms.total())
    recipe.after_step(0.49)
    recipe.begin_step()
    weights = [recipe(batch, progress)["filtered/vnet"].weight for progress in (0.5, 0.75, 1.0)]
    others = [
        DualUncertainty(small_nets(), preset=preset, ramp_end=1.0)(batch, t)["filtered/vnet"].weight
        for t in (0.0, 0.5, 1.0)
    ]
    assert weights == pytest.approx(others)
    with pytest.raises(ValueError, match="unlabelled_from is 1"):
        DualUncertainty(small_nets(), unlabelled_from=1.0)
