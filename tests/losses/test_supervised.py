# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy, soft Dice and their sum against brute force, torch and MONAI."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import logits, logits_and_labels, make_labels, make_logits, mean, softmax, supervised_pair, voxels

from ssmis.losses import CrossEntropy, cross_entropy, dice_ce, dice_consistency, soft_dice


def brute_cross_entropy(logits, labels, mask, weight):
    volumes = []
    for maps, own, inside in zip(voxels(logits), labels.flatten(1).tolist(), mask.flatten(1).tolist()):
        volumes.append([-weight[y] * math.log(softmax(z)[y]) for z, y, m in zip(maps, own, inside) if m and y >= 0])
    return mean([mean(volume) for volume in volumes]), mean([value for volume in volumes for value in volume])


@given(supervised_pair())
def test_cross_entropy_equals_brute_force(case):
    logits, _, labels, mask = case
    weight = [1.0 + 0.5 * k for k in range(logits.shape[1])]
    per_volume, pooled = brute_cross_entropy(logits, labels, mask, weight)
    options = {"mask": mask, "class_weight": torch.tensor(weight)}
    assert cross_entropy(logits, labels, **options).item() == pytest.approx(per_volume, abs=1e-9)
    assert cross_entropy(logits, labels, reduction="pooled", **options).item() == pytest.approx(pooled, abs=1e-9)


@given(logits_and_labels(low=-1))
def test_pooled_cross_entropy_equals_torch(case):
    logits, labels = case
    labels.view(-1)[0] = 0  # torch gives NaN without a labelled voxel
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    torch.testing.assert_close(cross_entropy(logits, labels, reduction="pooled"), expected)


def test_class_weights_count_in_a_volume_of_one_class():
    logits, labels = make_logits(0, 2, 3, (4, 4)), torch.zeros(2, 4, 4, dtype=torch.long)
    weighted = cross_entropy(logits, labels, class_weight=torch.tensor([0.25, 1.0, 1.0]))
    torch.testing.assert_close(weighted, 0.25 * cross_entropy(logits, labels))
    torch.testing.assert_close(CrossEntropy(class_weight=[0.25, 1, 1])(logits, labels), weighted)
    assert not CrossEntropy(class_weight=[0.25, 1, 1]).state_dict()


def test_class_weight_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r"class_weight has shape \(2,\); expected \(3,\)"):
        cross_entropy(make_logits(0, 1, 3, (2, 2)), make_labels(0, 1, 3, (2, 2)), class_weight=torch.ones(2))


def test_a_label_outside_the_classes_raises_on_the_cpu():
    labels = torch.full((1, 2, 2), 3)
    with pytest.raises((RuntimeError, IndexError)):
        cross_entropy(make_logits(0, 1, 3, (2, 2)), labels)
    with pytest.raises((RuntimeError, IndexError)):
        dice_ce(make_logits(0, 1, 3, (2, 2)), labels)


def test_unsigned_labels_with_their_own_ignore_index():
    logits, labels = make_logits(0, 1, 3, (3, 3)), make_labels(0, 1, 3, (3, 3), low=-1)
    bytes_ = labels.where(labels >= 0, 255).to(torch.uint8)
    for loss in (cross_entropy, soft_dice, dice_ce):
        assert torch.equal(loss(logits, bytes_, ignore_index=255), loss(logits, labels))


def brute_dice(logits, labels, mask, smooth, squared, first):
    """Values `[volume][class]`."""
    result = []
    for maps, own, inside in zip(voxels(logits), labels.flatten(1).tolist(), mask.flatten(1).tolist()):
        row = []
        for k in range(first, logits.shape[1]):
            overlap = claimed = size = 0.0
            for z, y, m in zip(maps, own, inside):
                if m and y >= 0:
                    p = softmax(z)[k]
                    overlap += p * (y == k)
                    claimed += p * p if squared else p
                    size += y == k
            row.append(1 - (2 * overlap + smooth) / (claimed + size + smooth))
        result.append(row)
    return result


@given(supervised_pair(), st.booleans(), st.booleans(), st.sampled_from([1e-5, 1.0]))
def test_dice_equals_brute_force(case, squared, include_background, smooth):
    logits, _, labels, mask = case
    options = {"smooth": smooth, "squared": squared, "include_background": include_background, "mask": mask}
    expected = brute_dice(logits, labels, mask, smooth, squared, 0 if include_background else 1)
    values = soft_dice(logits, labels, reduction="none", **options)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(soft_dice(logits, labels, **options), values.mean())


@given(logits_and_labels())
def test_dice_agrees_with_monai(case):
    logits, labels = case
    oracle = pytest.importorskip("monai.losses").DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, squared_pred=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    torch.testing.assert_close(soft_dice(logits, labels), oracle(logits, labels.unsqueeze(1)))


@given(logits_and_labels(low=-1))
def test_pooled_dice_is_that_of_one_long_volume(case):
    logits, labels = case
    joined = torch.cat(list(logits), 1).unsqueeze(0), torch.cat(list(labels), 0).unsqueeze(0)
    torch.testing.assert_close(soft_dice(logits, labels, reduction="pooled"), soft_dice(*joined))


@given(logits_and_labels(low=-1))
def test_dice_is_between_zero_and_one(case):
    values = soft_dice(*case, reduction="none")
    assert values.ge(-1e-6).all()
    assert values.le(1 + 1e-6).all()


def brute_dice_consistency(student, teacher, mask, smooth, first):
    """Values `[volume][class]`."""
    result = []
    for own, other, inside in zip(voxels(student), voxels(teacher), mask.flatten(1).tolist()):
        pairs = [(softmax(z), softmax(t)) for z, t, m in zip(own, other, inside) if m]
        row = []
        for k in range(first, student.shape[1]):
            overlap = sum(p[k] * q[k] for p, q in pairs)
            total = sum(p[k] ** 2 + q[k] ** 2 for p, q in pairs)
            row.append(1 - (2 * overlap + smooth) / (total + smooth))
        result.append(row)
    return result


@given(supervised_pair(), st.booleans(), st.sampled_from([1e-5, 1.0]))
def test_dice_consistency_equals_brute_force(case, include_background, smooth):
    student, teacher, _, mask = case
    options = {"smooth": smooth, "include_background": include_background, "mask": mask}
    expected = brute_dice_consistency(student, teacher, mask, smooth, 0 if include_background else 1)
    values = dice_consistency(student, teacher, reduction="none", **options)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(dice_consistency(student, teacher, **options), values.mean())


@given(logits_and_labels())
def test_dice_consistency_is_least_at_the_teacher_and_only_there(case):
    logits, _ = case
    student = logits.clone().requires_grad_()
    loss = dice_consistency(student, logits)
    assert loss.abs() <= 1e-6
    assert torch.autograd.grad(loss, student)[0].abs().max() <= 1e-5
    moved = logits.clone()
    moved[:, 1] += 1.0
    assert dice_consistency(moved, logits) > 1e-6


@given(logits_and_labels())
def test_dice_consistency_with_a_sure_teacher_is_soft_dice(case):
    logits, labels = case
    sure = 1e4 * torch.nn.functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    torch.testing.assert_close(dice_consistency(logits, sure), soft_dice(logits, labels))


def test_a_perfect_prediction_and_a_class_absent_from_both_cost_nothing():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, :2] = 1  # class 2 is absent
    logits = 50 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    torch.testing.assert_close(soft_dice(logits, labels, reduction="none"), torch.zeros(1, 2))


def test_false_positives_of_an_absent_class_cost_and_more_cost_more():
    labels = torch.zeros(1, 8, dtype=torch.long)
    costs = []
    for wrong in (0, 1, 4):
        logits = torch.tensor([20.0, -20.0])[None, :, None].repeat(1, 1, 8)
        logits[:, :, :wrong] *= -1
        costs.append(soft_dice(logits, labels, smooth=1.0).item())
    assert costs == pytest.approx([0, 1 / 2, 4 / 5], abs=1e-6)


@pytest.mark.parametrize("smooth", [0.0, -1.0])
def test_smooth_must_be_positive(smooth):
    with pytest.raises(ValueError, match="smooth is"):
        soft_dice(make_logits(0, 1, 2, (2, 2)), make_labels(0, 1, 2, (2, 2)), smooth=smooth)


@given(logits_and_labels(low=-1), st.floats(0, 2), st.floats(0, 2))
def test_dice_ce_is_the_weighted_sum(case, dice_weight, ce_weight):
    logits, labels = case
    for reduction in ("mean", "pooled"):
        value = dice_ce(logits, labels, dice_weight=dice_weight, ce_weight=ce_weight, reduction=reduction)
        dice, ce = soft_dice(logits, labels, reduction=reduction), cross_entropy(logits, labels, reduction=reduction)
        torch.testing.assert_close(value, dice_weight * dice + ce_weight * ce)
    each = dice_ce(logits, labels, reduction="none")
    assert each.shape == labels.shape[:1]
    torch.testing.assert_close(each.mean(), dice_ce(logits, labels))


@pytest.mark.parametrize("weight", ["dice_weight", "ce_weight"])
def test_negative_weights_are_errors(weight):
    with pytest.raises(ValueError, match=weight):
        dice_ce(make_logits(0, 1, 2, (2, 2)), make_labels(0, 1, 2, (2, 2)), **{weight: -1.0})


@given(logits(), st.integers(0, 2**31))
def test_ignored_voxels_get_no_gradient(maps, seed):
    labels = make_labels(seed, maps.shape[0], maps.shape[1], tuple(maps.shape[2:]), low=-1)
    for loss in (cross_entropy, soft_dice, dice_ce):
        student = maps.clone().requires_grad_()
        loss(student, labels).backward()
        assert (student.grad.movedim(1, -1)[labels == -1] == 0).all()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice, dice_ce])
def test_a_step_along_the_gradient_lowers_the_loss(loss):
    student, labels = make_logits(1, 2, 4, (4, 4, 3)).requires_grad_(), make_labels(1, 2, 4, (4, 4, 3))
    before = loss(student, labels)
    (gradient,) = torch.autograd.grad(before, student)
    assert loss(student - 5.0 * gradient, labels) < before - 1e-3


def test_one_voxel():
    logits, labels = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.ones(1, 1, 1, dtype=torch.long)
    assert cross_entropy(logits, labels).item() == pytest.approx(math.log(2))
    assert soft_dice(logits, labels).item() == pytest.approx(1 - 1 / 1.25, abs=1e-4)


def test_labels_must_be_integers_of_the_right_shape():
    logits = make_logits(0, 2, 4, (4, 4))
    with pytest.raises(ValueError, match=r"labels has shape \(2, 1, 4, 4\); expected \(2, 4, 4\)"):
        dice_ce(logits, torch.zeros(2, 1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="expected integer class indices"):
        dice_ce(logits, torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="expected bool"):
        dice_ce(logits, torch.zeros(2, 4, 4, dtype=torch.long), mask=torch.ones(2, 4, 4))
