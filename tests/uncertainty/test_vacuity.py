# SPDX-License-Identifier: Apache-2.0
"""Vacuity: definition, monotony, logarithms that stay finite."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import logits as draw_logits
from torch.nn import functional as F

from ssmis.uncertainty import log_vacuity, vacuity


@given(draw_logits(classes=st.integers(2, 7)))
def test_vacuity_equals_its_definition(logits):
    evidence = F.softplus(logits.double())
    expected = logits.shape[1] / (logits.shape[1] + evidence.sum(1))
    torch.testing.assert_close(vacuity(logits.double()), expected, atol=1e-7, rtol=1e-7)
    log_u, log_rest = log_vacuity(logits)
    torch.testing.assert_close(log_u.exp() + log_rest.exp(), torch.ones_like(log_u))


@given(draw_logits(), st.integers(0, 100), st.floats(0.5, 5))
def test_vacuity_falls_in_every_evidence(logits, which, rise):
    raised = logits.double().clone()
    raised[:, which % logits.shape[1]] += rise
    assert vacuity(raised).lt(vacuity(logits.double())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [-1e4, -88.0, -17.0, -1.0, 0.0, 20.0, 1e4])
def test_logarithms_and_gradients_are_finite(size, dtype):
    logits = torch.tensor([size, size / 2, 0.9 * size]).view(1, 3, 1).to(dtype).requires_grad_()
    log_u, log_rest = log_vacuity(logits)
    (log_u + log_rest).sum().backward()
    assert log_u.isfinite().all()
    assert log_rest.isfinite().all()
    assert log_u.le(0).all()
    assert log_rest.le(0).all()
    assert logits.grad.isfinite().all()


def test_largest_numbers_stay_finite():
    logits = torch.full((1, 2, 2), torch.finfo(torch.float32).max)
    logits[..., 1] *= -1
    assert all(part.isfinite().all() for part in log_vacuity(logits))


def test_gradient_is_right(generator):
    logits = 20 * torch.randn(1, 3, 3, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(log_vacuity, logits.requires_grad_())


def test_the_tail_meets_the_rest():
    at = torch.tensor([-17.0 - 1e-6, -17.0 + 1e-6], dtype=torch.float64).repeat(2, 1)[None]
    below, above = log_vacuity(at)[1][0]
    torch.testing.assert_close(below, above, atol=3e-6, rtol=0)
