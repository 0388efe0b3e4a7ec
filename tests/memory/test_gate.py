# SPDX-License-Identifier: Apache-2.0
"""Which volumes are good enough to be remembered."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_labels, mean, sizes

from ssmis.memory import reliable_volumes


def brute(guess, labels, classes):
    """Dice of one volume."""
    pairs = [(g, y) for g, y in zip(guess.flatten().tolist(), labels.flatten().tolist()) if y >= 0]
    if not pairs:
        return 0.0
    found = []
    for k in range(1, classes):
        size = sum((g == k) + (y == k) for g, y in pairs)
        if size:
            found.append(2 * sum(g == y == k for g, y in pairs) / size)
    return mean(found) if found else 1.0


@given(st.integers(0, 2**31), st.integers(2, 4), sizes(), st.floats(0, 1))
def test_equals_brute_force(seed, classes, size, threshold):
    guess, labels = make_labels(seed, 3, classes, size), make_labels(seed + 9, 3, classes, size, low=-1)
    labels[0] = guess[0]
    quality = [brute(own, truth, classes) for own, truth in zip(guess, labels)]
    found = reliable_volumes(guess, labels, classes=classes, threshold=threshold)
    assert found.dtype == torch.bool
    for own, kept in zip(quality, found.tolist()):
        assert kept == (own > threshold) or abs(own - threshold) < 1e-6


def test_perfect_empty_and_unlabelled_volumes():
    guess = torch.tensor([[1, 0], [0, 0], [0, 1]])
    labels = torch.tensor([[1, 0], [0, 0], [-1, -1]])
    assert reliable_volumes(guess, labels, classes=2, threshold=0.99).tolist() == [True, True, False]
    assert reliable_volumes(guess, labels, classes=2, threshold=1.0).tolist() == [False, False, False]
    assert reliable_volumes(guess[:0], labels[:0], classes=2, threshold=0.5).tolist() == []


def test_wrong_arguments_are_named():
    guess = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="threshold is 2"):
        reliable_volumes(guess, guess, classes=2, threshold=2)
    with pytest.raises(ValueError, match="guess has shape"):
        reliable_volumes(guess[:1], guess, classes=2, threshold=0.5)
    with pytest.raises(ValueError, match=r"guess is torch\.float32"):
        reliable_volumes(guess.float(), guess, classes=2, threshold=0.5)
    with pytest.raises(ValueError, match="classes is 1"):
        reliable_volumes(guess, guess, classes=1, threshold=0.5)
