# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.metrics import dice, jaccard, overlap_per_class


def masks(seed, density=0.5, shape=(5, 6, 4)):
    return np.random.default_rng(seed).random((2, *shape)) < density


@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_laws_of_overlap(seed, density):
    a, b = masks(seed, density)
    d, j = dice(a, b), jaccard(a, b)
    if math.isnan(d):
        assert not a.any()
        assert not b.any()
        return
    assert 0 <= j <= d <= 1
    assert j == pytest.approx(d / (2 - d))
    assert (d, j) == (dice(b, a), jaccard(b, a))
    assert d == pytest.approx(sum(2 * (x and y) for x, y in zip(a.flat, b.flat)) / (int(a.sum()) + int(b.sum())))


def test_empty_masks():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(jaccard(empty, empty))
    assert dice(empty, full) == dice(full, empty) == jaccard(empty, full) == 0.0
    assert dice(full, full) == jaccard(full, full) == 1.0


def test_torch_and_numpy_agree_and_many_voxels_do_not_overflow():
    a, b = masks(3, shape=(40, 300, 300))
    assert dice(torch.from_numpy(a), torch.from_numpy(b)) == dice(a, b)
    assert 0.49 < dice(a, b) < 0.51


def test_classes_are_compared_one_by_one_outside_ignored_voxels():
    prediction = torch.tensor([[1, 1, 2], [2, 0, 2]])
    reference = torch.tensor([[1, 2, 2], [-1, 0, 0]])
    scores = overlap_per_class(prediction, reference, classes=(1, 2, 3))
    assert scores[1].dice == pytest.approx(2 / 3)
    assert scores[2].dice == pytest.approx(2 / 4)
    assert (scores[2].n_prediction, scores[2].n_reference) == (2, 2)
    assert math.isnan(scores[3].jaccard)


def test_errors_name_the_argument():
    mask = np.ones((2, 2), bool)
    with pytest.raises(ValueError, match=r"prediction has dtype int64; expected a bool mask"):
        dice(mask.astype(np.int64), mask)
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 2\); expected \(2, 3\) to match reference"):
        jaccard(mask, np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"prediction has shape \(\); expected at least one axis"):
        dice(np.array(True), np.array(True))
    with pytest.raises(ValueError, match=r"prediction_labels has shape \(\); expected at least one axis"):
        overlap_per_class(np.array(1), np.array(1), classes=(1,))
    with pytest.raises(ValueError, match=r"reference_labels has dtype float32"):
        overlap_per_class(torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2), classes=(1,))
