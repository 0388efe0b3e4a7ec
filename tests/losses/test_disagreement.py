# SPDX-License-Identifier: Apache-2.0
"""Confidence disagreement against brute force, and where its gradient goes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_labels, make_logits, mean, softmax, supervised_pair, voxels

from ssmis.losses import confidence_disagreement


def brute(student, teacher, labels, mask, threshold):
    """Values `[volume][class]`."""
    result = []
    for own, peer, truth, inside in zip(
        voxels(student), voxels(teacher), labels.flatten(1).tolist(), mask.flatten(1).tolist()
    ):
        row = []
        for k in range(1, student.shape[1]):
            errors = []
            for s, t, y, m in zip(own, peer, truth, inside):
                p, q = softmax(s)[k], softmax(t)[k]
                if m and y >= 0 and (p >= threshold) != (q >= threshold):
                    errors.append((p - (y == k)) ** 2)
            row.append(mean(errors))
        result.append(row)
    return result


@given(supervised_pair(), st.floats(0.1, 0.9))
def test_equals_brute_force(case, threshold):
    student, teacher, labels, mask = case
    expected = torch.tensor(brute(student, teacher, labels, mask, threshold), dtype=torch.float64)
    values = confidence_disagreement(student, teacher, labels, threshold=threshold, mask=mask, reduction="none")
    torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-9)
    value = confidence_disagreement(student, teacher, labels, threshold=threshold, mask=mask)
    torch.testing.assert_close(value, expected.mean(), rtol=1e-8, atol=1e-9)


@given(supervised_pair())
def test_pooled_is_that_of_one_long_volume(case):
    student, teacher, labels, _ = case
    joined = [torch.cat(list(maps), 1).unsqueeze(0) for maps in (student, teacher)]
    pooled = confidence_disagreement(student, teacher, labels, reduction="pooled")
    torch.testing.assert_close(pooled, confidence_disagreement(*joined, torch.cat(list(labels), 0).unsqueeze(0)))


def test_gradient_is_that_of_the_squared_error_at_the_chosen_voxels():
    student = torch.tensor([[0.0, 2.0, 0.0, 2.0], [0.0, -2.0, 2.0, -2.0]]).double()[None].requires_grad_()
    teacher = torch.tensor([[2.0, 2.0, 2.0, -2.0], [-2.0, -2.0, -2.0, 2.0]]).double()[None].requires_grad_()
    labels = torch.tensor([[0, 0, 1, 1]])
    loss = confidence_disagreement(student, teacher, labels)  # voxels 2 (student sure) and 3 (teacher sure)
    loss.backward()
    assert teacher.grad is None
    assert ((student.grad != 0).any(1)).tolist() == [[False, False, True, True]]
    sure, unsure = torch.sigmoid(torch.tensor([2.0, -4.0], dtype=torch.float64)).tolist()
    assert loss.item() == pytest.approx(((1 - sure) ** 2 + (1 - unsure) ** 2) / 2)


@given(supervised_pair())
def test_agreement_is_an_attached_zero(case):
    student, _, labels, _ = case
    student = student.requires_grad_()
    loss = confidence_disagreement(student, student, labels)
    loss.backward()
    assert loss == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@given(supervised_pair())
def test_ignored_voxels_get_no_gradient(case):
    student, teacher, labels, _ = case
    student = student.requires_grad_()
    confidence_disagreement(student, teacher, labels).backward()
    assert (student.grad.movedim(1, -1)[labels == -1] == 0).all()


def test_a_missing_class_is_finite():
    student, teacher = make_logits(0, 2, 4, (4, 4)).requires_grad_(), make_logits(1, 2, 4, (4, 4))
    loss = confidence_disagreement(student, teacher, torch.zeros(2, 4, 4, dtype=torch.long))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_threshold_is_a_probability(threshold):
    pair = make_logits(0, 1, 3, (2, 2)), make_logits(1, 1, 3, (2, 2))
    with pytest.raises(ValueError, match="threshold"):
        confidence_disagreement(*pair, make_labels(0, 1, 3, (2, 2)), threshold=threshold)


def test_both_networks_must_predict_the_same_classes():
    with pytest.raises(ValueError, match=r"teacher_logits has shape \(1, 3, 2, 2\); expected \(1, 2, 2, 2\)"):
        confidence_disagreement(
            make_logits(0, 1, 2, (2, 2)), make_logits(1, 1, 3, (2, 2)), make_labels(0, 1, 2, (2, 2))
        )


def test_a_probability_at_the_threshold_is_confident():
    student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [0.0]]])  # 0.5 and below
    loss = confidence_disagreement(student, teacher, torch.ones(1, 1, dtype=torch.long), threshold=0.5)
    assert loss.item() == 0.25
