# SPDX-License-Identifier: Apache-2.0
"""Divergences: sign, convexity, symmetry, twins, gradient to both."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_logits, pair_of_logits, softmax, voxels

from ssmis.uncertainty import js_divergence, kl_divergence


@given(pair_of_logits(classes=st.integers(2, 7)), st.sampled_from([1e-3, 1.0, 1e3]))
def test_divergences_are_not_negative(pair, scale):
    p, q = scale * pair[0], scale * pair[1]
    assert kl_divergence(p, q).ge(-2e-7).all()
    assert js_divergence(p, q).ge(0).all()
    assert js_divergence(p, q).le(1).all()


@given(pair_of_logits())
def test_kl_equals_its_definition(pair):
    twin = [
        [sum(a * math.log(a / b) for a, b in zip(softmax(p), softmax(q))) for p, q in zip(*volumes)]
        for volumes in zip(voxels(pair[0].double()), voxels(pair[1].double()))
    ]
    value = kl_divergence(pair[0].double(), pair[1].double())
    torch.testing.assert_close(value.flatten(1), torch.tensor(twin, dtype=torch.float64))


@given(pair_of_logits(classes=st.integers(2, 7)), st.floats(0, 1))
def test_kl_never_rises_on_the_way_to_the_reference_and_is_convex(pair, share):
    p, q = pair[0].double(), pair[1].double()
    moved = q + share * (p - q)
    start, here = kl_divergence(p, q), kl_divergence(p, moved)
    assert here.le(start + 1e-12).all()
    assert here.le((1 - share) * start + 1e-12).all()


@given(pair_of_logits())
def test_agreement_is_zero_and_js_is_symmetric(pair):
    p, q = pair
    assert torch.equal(kl_divergence(p, p), torch.zeros_like(p[:, 0]))
    torch.testing.assert_close(js_divergence(p, p), torch.zeros_like(p[:, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p))
    # adding a constant to all logits of a voxel changes no probability
    torch.testing.assert_close(kl_divergence(p + 7, q - 3), kl_divergence(p, q), atol=1e-4, rtol=1e-4)


def test_opposite_certainty_is_one():
    p = torch.tensor([1e4, -1e4]).view(1, 2, 1)
    torch.testing.assert_close(js_divergence(p, -p), torch.ones(1, 1))
    torch.testing.assert_close(kl_divergence(p, -p), torch.full((1, 1), 2e4))


@pytest.mark.parametrize("function", [kl_divergence, js_divergence])
def test_gradient_reaches_both(function):
    p, q = (make_logits(seed, 1, 3, (2, 2), 1.0).double().requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(function, (p, q))
    function(p, q).sum().backward()
    assert p.grad.abs().max() > 0
    assert q.grad.abs().max() > 0


@pytest.mark.parametrize("function", [kl_divergence, js_divergence])
def test_shapes_must_match(function):
    with pytest.raises(ValueError, match="logits_q has shape"):
        function(torch.zeros(1, 2, 4), torch.zeros(1, 3, 4))
