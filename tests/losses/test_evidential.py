# SPDX-License-Identifier: Apache-2.0
"""Calibration of evidence against brute force, what it asks of right and of wrong voxels, and finite for any logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import mean_over_volumes, supervised_pair, voxels

from ssmis.losses import evidential_calibration
from ssmis.uncertainty import vacuity


def brute(logits, labels, weight):
    """Values `[volume][voxel]`."""
    found = []
    for own, truth in zip(voxels(logits), labels.flatten(1).tolist()):
        row = []
        for z, y in zip(own, truth):
            alpha = [math.log1p(math.exp(x)) + 1 for x in z]
            strength = sum(alpha)
            u, p = len(z) / strength, max(alpha) / strength
            right = alpha.index(max(alpha)) == y
            row.append(-weight * p * math.log(1 - u) if right else -(1 - weight) * (1 - p) * math.log(u))
        found.append(row)
    return found


@given(supervised_pair(), st.floats(0, 1))
def test_equals_brute_force(case, weight):
    logits, _, labels, mask = case
    expected = mean_over_volumes(brute(logits, labels, weight), mask & (labels >= 0))
    value = evidential_calibration(logits, labels, right_weight=weight, mask=mask)
    assert value.item() == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert value >= 0


@given(supervised_pair(), st.sampled_from(["right", "wrong"]))
def test_only_the_weighted_side_counts(case, side):
    logits, _, labels, _ = case
    right = logits.argmax(1) == labels
    values = evidential_calibration(logits, labels, right_weight=float(side == "right"), reduction="none")
    assert (values != 0).equal((right if side == "right" else ~right) & (labels >= 0))


@pytest.mark.parametrize(("truth", "sign"), [(0, -1), (1, 1)])
def test_descent_makes_right_voxels_certain_and_wrong_ones_uncertain(truth, sign):
    logits = torch.tensor([[[2.0], [-1.0], [0.5]]], dtype=torch.float64).requires_grad_()
    before = vacuity(logits).detach()
    for _ in range(20):
        (slope,) = torch.autograd.grad(evidential_calibration(logits, torch.tensor([[truth]])), logits)
        logits = (logits - 0.1 * slope).detach().requires_grad_()
    assert sign * (vacuity(logits) - before) > 1e-3


@pytest.mark.parametrize("size", [1e-30, 17.0, 88.0, 1e4, 3e38])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, -1), (1, -1, -1), (1, 1, -1)])
@pytest.mark.parametrize("truth", [0, 2])
def test_finite_for_any_finite_logits(size, signs, truth):
    logits = (size * torch.tensor(signs, dtype=torch.float32)).view(1, 3, 1).requires_grad_()
    value = evidential_calibration(logits, torch.tensor([[truth]]))
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert logits.grad.isfinite().all()


def test_the_weight_is_a_share():
    with pytest.raises(ValueError, match=r"right_weight is 1\.5"):
        evidential_calibration(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.int64), right_weight=1.5)
