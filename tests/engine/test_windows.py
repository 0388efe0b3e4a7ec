# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.engine.windows import blend_weight, window_starts

AXIS = st.tuples(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8)).map(lambda t: (t[0], t[1], min(t[1:])))


@pytest.mark.parametrize(
    ("size", "stride", "count"),
    [
        ((176, 145, 88), (18, 18, 4), 5 * 3 * 3),
        ((244, 132, 88), (18, 18, 4), 9 * 3 * 3),
        ((176, 145, 88), (56, 56, 40), 3 * 2 * 2),
        ((112, 112, 80), (18, 18, 4), 1),
        ((100, 60, 30), (56, 56, 40), 1),
        ((113, 112, 80), (56, 56, 40), 2),
    ],
)
def test_counts_of_left_atrium_volumes(size, stride, count):
    assert len(window_starts(size, (112, 112, 80), stride)) == count


@given(st.lists(AXIS, min_size=1, max_size=3))
def test_every_voxel_is_covered_and_the_last_window_ends_at_the_border(axes):
    size, patch, stride = zip(*axes)
    starts = window_starts(size, patch, stride)
    assert len(set(starts)) == len(starts)
    covered = np.zeros([max(s, p) for s, p in zip(size, patch)], int)
    for start in starts:
        box = tuple(slice(at, at + length) for at, length in zip(start, patch))
        assert covered[box].shape == tuple(patch)
        covered[box] += 1
    assert covered.min() >= 1
    assert starts[-1] == tuple(max(s - p, 0) for s, p in zip(size, patch))
    for axis, step in enumerate(stride):
        places = sorted({start[axis] for start in starts})
        assert all(0 < b - a <= step for a, b in pairwise(places))


def test_gaussian_weight_is_a_floored_symmetric_bell():
    weight = blend_weight((8, 16, 9))
    assert weight.shape == (8, 16, 9)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.flip(0, 1, 2))
    assert weight.min() == pytest.approx(1e-3)
    assert weight.argmax() == (3 * 16 + 7) * 9 + 4
    assert weight[3, 7, 4] / weight[3, 7, 5] == pytest.approx(np.exp(0.5 / (9 / 8) ** 2), rel=1e-5)
    assert torch.equal(blend_weight((3, 4), "uniform"), torch.ones(3, 4))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"stride is \(5, 2\); expected at most the patch \(4, 4\)"):
        window_starts((9, 9), (4, 4), (5, 2))
    with pytest.raises(ValueError, match=r"patch \(4,\).*expected a positive number per axis"):
        window_starts((9, 9), (4,), (4, 4))
    with pytest.raises(ValueError, match=r"size is \(0, 9\)"):
        window_starts((0, 9), (4, 4), (4, 4))
    with pytest.raises(ValueError, match=r"blending is 'linear'; expected one of 'gaussian', 'uniform'"):
        blend_weight((4,), "linear")
