# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import sizes

from ssmis.memory import sample_voxels


@given(st.integers(0, 2**31), sizes(high=6), st.integers(1, 40), st.floats(0, 1))
def test_draws_distinct_labelled_voxels_as_many_as_there_are(seed, size, count, share):
    generator = torch.Generator().manual_seed(seed)
    voxels = torch.Size(size).numel()
    features = torch.arange(2.0 * voxels).reshape(2, 1, *size)  # a feature tells where it comes from
    labels = torch.randint(0, 3, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) > share] = -1
    drawn, own = sample_voxels(features, labels, count=count, generator=generator)
    assert drawn.shape == (2, 1, min(count, voxels))
    for volume in range(2):
        used = drawn[volume, 0][own[volume] >= 0].long()
        assert len(set(used.tolist())) == len(used) == min(count, int((labels[volume] >= 0).sum()))
        assert torch.equal(labels.flatten()[used], own[volume][own[volume] >= 0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_integer_type_are_drawn_alike(dtype):
    features, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 3, (2, 5, 5))
    drawn, own = sample_voxels(features, labels.to(dtype), count=7, generator=torch.Generator().manual_seed(0))
    expected = sample_voxels(features, labels, count=7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, expected[0])
    assert torch.equal(own, expected[1])
    assert own.dtype == torch.int64


def test_gradient_reaches_the_drawn_voxels_only():
    features = torch.randn(1, 4, 5, 5, requires_grad=True)
    drawn, _ = sample_voxels(features, torch.zeros(1, 5, 5, dtype=torch.long), count=7)
    drawn.sum().backward()
    assert features.grad.sum() == 4 * 7
    assert set(features.grad.unique().tolist()) == {0.0, 1.0}


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="count is 0"):
        sample_voxels(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long), count=0)
    with pytest.raises(ValueError, match="labels has shape"):
        sample_voxels(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 4, dtype=torch.long), count=2)
