# SPDX-License-Identifier: Apache-2.0
"""Losses that take pseudo-labels or agreement from a peer: brute force and laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    logits,
    make_logits,
    make_mask,
    mean_over_volumes,
    pair_of_logits,
    softmax,
    supervised_pair,
    voxels,
)

from ssmis.losses import (
    bce_consistency,
    cosine_consistency,
    cross_entropy,
    cross_pseudo,
    entropy_filtered_ce,
    entropy_minimisation,
    hard_labels,
    kl_consistency,
    kl_rectified_ce,
    mse_consistency,
    pseudo_ce,
)


def brute(voxel_loss, student, teacher, mask):
    """Mean over the mask of a function of two lists of logits, then over volumes."""
    values = [[voxel_loss(s, t) for s, t in zip(*volume)] for volume in zip(voxels(student), voxels(teacher))]
    return mean_over_volumes(values, mask)


def brute_bce(s, t):
    pairs = zip(softmax(s), softmax(t))
    return -sum(q * math.log(p) + (1 - q) * math.log(1 - p) for p, q in pairs) / len(s)


def brute_kl(s, t):
    return sum(b * math.log(b / a) for a, b in zip(softmax(s), softmax(t)))


def brute_hard(s, t):
    return -math.log(softmax(s)[t.index(max(t))])


def brute_soft(s, t, temperature=0.5):
    return -sum(b * math.log(a) for a, b in zip(softmax(s), softmax([x / temperature for x in t])))


def brute_cosine(s, t):
    p, q = softmax(s), softmax(t)
    return 1 - sum(a * b for a, b in zip(p, q)) / math.sqrt(sum(a * a for a in p) * sum(b * b for b in q))


def brute_entropy(s, _):
    return -sum(a * math.log(a) for a in softmax(s)) / math.log(len(s))


TWINS = {
    "pseudo hard": (pseudo_ce, {}, brute_hard),
    "pseudo soft": (pseudo_ce, {"targets": "soft"}, brute_soft),
    "pseudo plain": (pseudo_ce, {"targets": "soft", "sharpen_temperature": 1.0}, lambda s, t: brute_soft(s, t, 1.0)),
    "cross": (cross_pseudo, {}, lambda s, t: brute_hard(s, t) + brute_hard(t, s)),
    "rectified": (kl_rectified_ce, {}, lambda s, t: math.exp(-brute_kl(s, t)) * brute_hard(s, t) + brute_kl(s, t)),
    "rectified soft": (
        kl_rectified_ce,
        {"targets": "soft"},
        lambda s, t: math.exp(-brute_kl(s, t)) * brute_soft(s, t) + brute_kl(s, t),
    ),
    "mse": (mse_consistency, {}, lambda s, t: sum((a - b) ** 2 for a, b in zip(softmax(s), softmax(t))) / len(s)),
    "kl": (kl_consistency, {}, brute_kl),
    "kl warm": (kl_consistency, {"temperature": 2.0}, lambda s, t: brute_kl([a / 2 for a in s], [b / 2 for b in t])),
    "cosine": (cosine_consistency, {}, brute_cosine),
    "bce": (bce_consistency, {}, brute_bce),
    "entropy": (lambda student, _, mask: entropy_minimisation(student, mask=mask), {}, brute_entropy),
}


@pytest.mark.parametrize("twin", TWINS)
@given(case=supervised_pair())
def test_equals_brute_force(twin, case):
    student, teacher, _, mask = case
    loss, options, voxel_loss = TWINS[twin]
    expected = brute(voxel_loss, student, teacher, mask)
    assert loss(student, teacher, mask=mask, **options).item() == pytest.approx(expected, abs=1e-9)


def brute_keep(teacher, keep_fraction, valid, scope):
    """Indices `(volume, voxel)` with the lowest entropy in each group, ties by index."""
    groups = {}
    for b, (maps, inside) in enumerate(zip(voxels(teacher), valid.flatten(1).tolist())):
        for v, (t, ok) in enumerate(zip(maps, inside)):
            key = {"volume": b, "batch": 0, "class": (b, t.index(max(t)))}[scope]
            if ok:
                groups.setdefault(key, []).append((brute_entropy(t, t), b, v))
    kept = set()
    for members in groups.values():
        count = max(1, math.floor(keep_fraction * len(members) + 0.5))
        kept |= {(b, v) for _, b, v in sorted(members)[:count]}
    return kept


@given(supervised_pair(), st.floats(0, 1), st.sampled_from(["volume", "batch", "class"]))
def test_entropy_filter_equals_brute_force(case, keep_fraction, scope):
    student, teacher, _, valid = case
    kept = brute_keep(teacher, keep_fraction, valid, scope)
    mask = torch.zeros_like(valid)
    for b, v in kept:
        mask[b].view(-1)[v] = True
    expected = brute(brute_hard, student, teacher, mask)
    value = entropy_filtered_ce(student, teacher, keep_fraction=keep_fraction, scope=scope, valid=valid)
    assert value.item() == pytest.approx(expected, abs=1e-9)


@given(pair_of_logits(), st.sampled_from(["volume", "batch", "class"]))
def test_keeping_all_equals_plain_cross_entropy_on_pseudo_labels(pair, scope):
    student, teacher = pair
    value = entropy_filtered_ce(student, teacher, keep_fraction=1.0, scope=scope)
    torch.testing.assert_close(value, cross_entropy(student, teacher.argmax(1)))


@given(st.integers(2, 5), st.integers(1, 40), st.floats(0, 1), st.sampled_from([0.0, 1e4]))
def test_the_stated_number_of_voxels_is_kept_whatever_ties_there_are(classes, count, keep_fraction, scale):
    student = make_logits(0, 2, classes, (count,)).requires_grad_()
    teacher = torch.zeros(2, classes, count)
    teacher[:, 1] = scale  # every entropy is 1 (scale 0) or 0
    entropy_filtered_ce(student, teacher, keep_fraction=keep_fraction).backward()
    moved = (student.grad != 0).any(1).sum(1)
    assert moved.tolist() == [max(1, math.floor(keep_fraction * count + 0.5))] * 2


def test_dropped_voxels_are_ignored_not_background():
    student, teacher = make_logits(0, 1, 3, (4, 4)).requires_grad_(), make_logits(1, 1, 3, (4, 4))
    entropy_filtered_ce(student, teacher, keep_fraction=0.25).backward()
    touched = (student.grad != 0).any(1)
    assert touched.sum() == 4
    labels = teacher.argmax(1).where(touched, -1)
    expected = torch.autograd.grad(cross_entropy(student, labels), student)[0]
    torch.testing.assert_close(student.grad, expected)


@given(logits())
def test_perfect_agreement_leaves_the_plain_cross_entropy(maps):
    torch.testing.assert_close(kl_rectified_ce(maps, maps), pseudo_ce(maps, maps), rtol=1e-5, atol=1e-6)
    for consistency in (mse_consistency, kl_consistency, cosine_consistency):
        assert consistency(maps, maps, reduction="none").abs().max() <= 2e-6


@given(pair_of_logits(classes=st.integers(2, 7)))
def test_divergence_and_weight_stay_in_their_ranges(pair):
    divergence = kl_consistency(*pair, reduction="none")
    assert divergence.ge(-1e-6).all()
    value = kl_rectified_ce(*pair, reduction="none")
    weight = (value - divergence) / pseudo_ce(*pair, reduction="none").clamp_min(1e-3)
    assert weight.ge(-1e-3).all()
    assert weight.le(1 + 1e-3).all()


@given(pair_of_logits(classes=st.integers(2, 7)), st.floats(0, 1))
def test_divergence_never_rises_on_the_way_to_the_teacher(pair, step):
    student, teacher = pair
    moved = student + step * (teacher - student)
    assert (
        kl_consistency(moved, teacher, reduction="none")
        .le(kl_consistency(student, teacher, reduction="none") + 1e-5)
        .all()
    )


@pytest.mark.parametrize(("classes", "detached"), [(2, False), (4, False), (5, True), (7, True)])
def test_the_weight_is_detached_for_more_than_four_classes(classes, detached):
    student, teacher = make_logits(0, 2, classes, (4, 3)).requires_grad_(), make_logits(1, 2, classes, (4, 3))

    def gradient(**options):
        return torch.autograd.grad(kl_rectified_ce(student, teacher, **options), student)[0]

    assert torch.equal(gradient(), gradient(detach_weight=detached))
    assert not torch.allclose(gradient(), gradient(detach_weight=not detached))


def test_a_detached_weight_is_a_constant():
    student, teacher = make_logits(0, 1, 3, (4,)).requires_grad_(), make_logits(1, 1, 3, (4,))
    weight = (-kl_consistency(student, teacher, reduction="none")).exp().detach()
    expected = (weight * pseudo_ce(student, teacher, reduction="none")).mean() + kl_consistency(student, teacher)
    value = kl_rectified_ce(student, teacher, detach_weight=True)
    torch.testing.assert_close(value, expected)
    own, other = (torch.autograd.grad(loss, student)[0] for loss in (value, expected))
    torch.testing.assert_close(own, other)


@given(st.integers(2, 7), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.integers(0, 2**31))
def test_entropy_is_in_zero_one_for_extreme_logits(classes, dtype, seed):
    maps = make_logits(seed, 2, classes, (3, 4), scale=1e4).clamp(-1e4, 1e4).to(dtype).requires_grad_()
    values = entropy_minimisation(maps, reduction="none")
    assert values.ge(0).all()
    assert values.le(1).all()
    values.sum().backward()
    assert maps.grad.isfinite().all()
    torch.testing.assert_close(entropy_minimisation(torch.zeros(1, classes, 2)), torch.tensor(1.0))


@given(pair_of_logits())
def test_cross_pseudo_is_symmetric_and_trains_both(pair):
    first, second = (maps.clone().requires_grad_() for maps in pair)
    torch.testing.assert_close(cross_pseudo(first, second), cross_pseudo(second, first))
    own, other = torch.autograd.grad(cross_pseudo(first, second), (first, second))
    torch.testing.assert_close(own, torch.autograd.grad(pseudo_ce(first, second), first)[0])
    torch.testing.assert_close(other, torch.autograd.grad(pseudo_ce(second, first), second)[0])


@given(pair_of_logits())
def test_the_student_follows_the_teacher(pair):
    """One gradient step on the student alone brings it nearer, for every loss with a teacher."""
    student, teacher = pair[0].clone().double().requires_grad_(), pair[1].double()
    for loss in (pseudo_ce, kl_rectified_ce, entropy_filtered_ce, mse_consistency, kl_consistency, cosine_consistency):
        before = loss(student, teacher)
        (gradient,) = torch.autograd.grad(before, student)
        assert loss(student - 1e-3 * gradient, teacher) <= before


@pytest.mark.parametrize("loss", [pseudo_ce, cross_pseudo, kl_rectified_ce])
def test_a_temperature_without_effect_is_an_error(loss):
    pair = make_logits(0, 1, 3, (2, 2)), make_logits(1, 1, 3, (2, 2))
    with pytest.raises(ValueError, match=r"sharpen_temperature is 0\.5; expected None with hard targets"):
        loss(*pair, sharpen_temperature=0.5)
    with pytest.raises(ValueError, match="sharpen_temperature is 0"):
        loss(*pair, targets="soft", sharpen_temperature=0.0)
    with pytest.raises(ValueError, match="targets is 'firm'"):
        loss(*pair, targets="firm")
    default = loss(*pair, targets="soft")
    assert torch.equal(default, loss(*pair, targets="soft", sharpen_temperature=0.5))
    assert not torch.isclose(default, loss(*pair, targets="soft", sharpen_temperature=1.0))


@pytest.mark.parametrize("loss", [mse_consistency, kl_consistency, cosine_consistency])
def test_the_temperature_of_consistency_has_an_effect(loss):
    pair = make_logits(0, 1, 3, (2, 2)), make_logits(1, 1, 3, (2, 2))
    assert not torch.isclose(loss(*pair), loss(*pair, temperature=2.0))
    with pytest.raises(ValueError, match="temperature is -1"):
        loss(*pair, temperature=-1.0)


def test_cold_soft_targets_become_hard_ones():
    pair = make_logits(0, 2, 4, (4, 4)), make_logits(1, 2, 4, (4, 4))
    torch.testing.assert_close(pseudo_ce(*pair, targets="soft", sharpen_temperature=1e-4), pseudo_ce(*pair))


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_keep_fraction_is_a_fraction(value):
    pair = make_logits(0, 1, 3, (2, 2)), make_logits(1, 1, 3, (2, 2))
    with pytest.raises(ValueError, match="keep_fraction"):
        entropy_filtered_ce(*pair, keep_fraction=value)


@given(pair_of_logits(), st.integers(0, 2**31))
def test_permuting_voxels_changes_nothing(pair, seed):
    student, teacher = (maps.flatten(2) for maps in pair)
    order = torch.randperm(student.shape[2], generator=torch.Generator().manual_seed(seed))
    for loss in (pseudo_ce, kl_rectified_ce, entropy_filtered_ce, mse_consistency, kl_consistency, cosine_consistency):
        torch.testing.assert_close(loss(student[:, :, order], teacher[:, :, order]), loss(student, teacher))


def test_none_is_zero_outside_the_mask():
    pair, mask = (make_logits(0, 2, 3, (4, 4)), make_logits(1, 2, 3, (4, 4))), make_mask(0, 2, (4, 4))
    for loss in (pseudo_ce, kl_rectified_ce, mse_consistency, kl_consistency, cosine_consistency):
        values = loss(*pair, mask=mask, reduction="none")
        assert values.shape == mask.shape
        assert (values[~mask] == 0).all()
        assert (values[mask] > 0).all()


@pytest.mark.parametrize("loss", [pseudo_ce, kl_rectified_ce])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_targets_are_detached(loss, temperature):
    student, teacher = make_logits(0, 1, 3, (4,)).requires_grad_(), make_logits(1, 1, 3, (4,)).requires_grad_()
    loss(student, teacher, targets="soft", sharpen_temperature=temperature).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@given(pair_of_logits(), st.sampled_from([1.0, 30.0, 1e4]))
def test_bce_consistency_is_least_where_the_student_is_the_teacher(pair, scale):
    student, teacher = (scale * maps for maps in pair)
    own = bce_consistency(teacher.requires_grad_(), teacher)
    assert own <= bce_consistency(student, teacher) + 1e-6
    own.backward()
    assert teacher.grad.abs().max() < 1e-6


@given(logits(classes=st.integers(2, 4)), st.floats(0.05, 0.95))
def test_hard_labels_are_one_class_a_voxel_without_gradient(maps, threshold):
    maps = maps.requires_grad_()
    assert torch.equal(hard_labels(maps), maps.argmax(1))
    found = hard_labels(maps, threshold=threshold)
    assert not found.requires_grad
    probs = maps.sigmoid()
    top = probs[:, 1:].argmax(1) + 1
    sure = probs.gather(1, top.unsqueeze(1)).squeeze(1) >= threshold
    assert torch.equal(found, top.where(sure, 0))
    with pytest.raises(ValueError, match="threshold is 2"):
        hard_labels(maps, threshold=2)
