# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data.regrid import axis_weights, resample_axis, resample_labels, resample_maps, resampled_size

LENGTH = st.integers(1, 40)
SIZES = st.sampled_from([2, 3]).flatmap(lambda dims: st.tuples(*[st.integers(1, 9)] * dims))


def draw(seed, *size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


@given(LENGTH, LENGTH)
def test_weights_are_a_mean_of_samples_inside(old, new):
    index, weight = axis_weights(old, new)
    assert index.min() >= 0
    assert index.max() < old
    assert weight.min() >= 0
    torch.testing.assert_close(weight.sum(1), torch.ones(new))


@given(LENGTH, LENGTH, st.integers(0, 1000))
def test_weights_against_the_definition(old, new, seed):
    values = draw(seed, old).double()
    found = resample_axis(values, 0, new)
    width = max(1.0, old / new)
    for j in range(new):
        x = (j + 0.5) * old / new - 0.5
        x = min(max(x, 0), old - 1) if new >= old else x
        w = torch.tensor([max(0.0, 1 - abs(i - x) / width) for i in range(old)]).double()
        torch.testing.assert_close(found[j], (w * values).sum() / w.sum(), atol=1e-6, rtol=1e-6)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 1000))
def test_a_finer_grid_is_the_linear_interpolation_of_torch(height, width, factor, seed):
    image = draw(seed, 2, height, width)
    size = (height * factor, width + factor)
    theirs = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resample_maps(image, size), theirs, atol=1e-5, rtol=1e-5)


@given(st.integers(2, 14), st.integers(4, 14), st.integers(0, 1000))  # torch 2.14 errs on axes of length 1
def test_a_coarser_grid_is_the_antialiased_one_of_torch(height, width, seed):
    image = draw(seed, 2, height, width)
    size = (-(-height // 2), -(-width // 3))
    theirs = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    torch.testing.assert_close(resample_maps(image, size), theirs, atol=1e-5, rtol=1e-5)


@given(SIZES, SIZES, st.integers(0, 1000))
def test_probabilities_still_add_up(size, other, seed):
    if len(size) != len(other):
        other = size
    probs = draw(seed, 3, *size).softmax(0)
    found = resample_maps(probs, other)
    torch.testing.assert_close(found.sum(0), torch.ones(other), atol=1e-5, rtol=1e-5)
    assert resample_maps(probs, size) is probs


@given(SIZES, st.integers(1, 3), st.integers(0, 1000))
def test_labels_survive_a_finer_grid_and_the_way_back(size, factor, seed):
    labels = (draw(seed, *size) * 4).long() * 100
    finer = resample_labels(labels, [n * (2 * factor + 1) for n in size])
    assert set(finer.unique().tolist()) <= set(labels.unique().tolist())
    middle = finer[tuple(slice(factor, None, 2 * factor + 1) for _ in size)]
    torch.testing.assert_close(middle, labels)


@given(st.tuples(*[st.floats(0.3, 3)] * 3), st.tuples(*[st.floats(0.3, 3)] * 3), st.integers(0, 1000))
def test_centroids_stay_within_half_a_voxel(spacing, target, seed):
    """There and back: a blob's centre of mass, in voxels of its own grid."""
    random = np.random.default_rng(seed)
    size = (24, 22, 20)
    extent = np.array(size) * spacing
    radius = max(0.25 * extent.min(), 2.5 * max(*spacing, *target))
    axes = [(np.arange(n) + 0.5) * mm for n, mm in zip(size, spacing)]
    centre = extent / 2 + random.uniform(-0.1, 0.1, 3) * extent
    away = sum((axis - c) ** 2 for axis, c in zip(np.meshgrid(*axes, indexing="ij"), centre))
    labels = torch.from_numpy((away < radius**2).astype(np.int64))
    coarse = resample_labels(labels, resampled_size(size, spacing, target))
    back = resample_labels(coarse, size)
    before, after = (np.argwhere(part.numpy()).mean(0) for part in (labels, back))
    assert np.abs(before - after).max() < 0.5


def test_sizes_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="positive lengths"):
        resampled_size((4, 4), (1, 1), (0, 1))
    with pytest.raises(ValueError, match="expected 2 lengths"):
        resample_maps(torch.zeros(1, 4, 4), (4,))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("new", [5, 40, 150])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_axis_is_the_weighted_sum_of_its_old_samples(axis, new, dtype):
    """On every axis, counted from either end, in the type that came in, whatever autocast says."""
    maps = torch.rand(37, 11, 70, dtype=dtype, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    index, weight = axis_weights(maps.shape[axis], new)
    samples = maps.movedim(axis, -1).double()[..., index]  # (..., new, taps)
    expected = (samples * weight.to(dtype).double()).sum(-1).movedim(-1, axis)
    with torch.autocast("cpu", torch.bfloat16):
        found = resample_axis(maps, axis, new)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol={torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 1e-2))
