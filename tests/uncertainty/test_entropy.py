# SPDX-License-Identifier: Apache-2.0
"""Entropy: range, twins, gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import logits as draw_logits
from strategies import make_logits, sizes, softmax, voxels

from ssmis.uncertainty import entropy, entropy_of_probs


@given(
    st.integers(0, 2**31),
    st.integers(2, 7),
    sizes(),
    st.sampled_from([0.0, 1.0, 1e2, 1e4]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_entropy_lies_between_0_and_1(seed, classes, size, scale, dtype):
    logits = make_logits(seed, 2, classes, size, scale).clamp(-1e4, 1e4).to(dtype)
    value = entropy(logits)
    assert value.dtype == torch.float32
    assert value.shape == (2, *size)
    assert value.ge(0).all()
    assert value.le(1).all()


@pytest.mark.parametrize("classes", range(2, 8))
def test_ends_of_the_range_are_reached(classes):
    even = torch.zeros(1, classes, 2, 2)
    sure = even.clone()
    sure[:, 0] = 1e4
    torch.testing.assert_close(entropy(even), torch.ones(1, 2, 2))
    assert torch.equal(entropy(sure), torch.zeros(1, 2, 2))


@given(draw_logits())
def test_entropy_equals_its_definition(logits):
    twin = [
        [-sum(p * math.log(p) for p in softmax(z)) / math.log(len(z)) for z in volume]
        for volume in voxels(logits.double())
    ]
    torch.testing.assert_close(entropy(logits.double()).flatten(1), torch.tensor(twin, dtype=torch.float64))
    torch.testing.assert_close(entropy_of_probs(logits.double().softmax(1)), entropy(logits.double()))


def test_gradient_is_right_and_finite_at_saturation(generator):
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(entropy, logits)
    assert torch.autograd.gradcheck(entropy_of_probs, logits.detach().softmax(1).requires_grad_())
    extreme = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1).requires_grad_()
    entropy(extreme).sum().backward()
    probs = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1).requires_grad_()
    entropy_of_probs(probs).sum().backward()
    assert extreme.grad.isfinite().all()
    assert probs.grad.isfinite().all()


@pytest.mark.parametrize("function", [entropy, entropy_of_probs])
def test_one_class_is_refused(function):
    with pytest.raises(ValueError, match="K >= 2"):
        function(torch.zeros(1, 1, 4, 4))
