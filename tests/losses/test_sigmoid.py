# SPDX-License-Identifier: Apache-2.0
"""The sigmoid pair against brute force, and its slices."""

import math

import pytest
import torch
from hypothesis import given
from strategies import make_labels, make_logits, mean, supervised_pair, voxels

from ssmis.losses import sigmoid_dice_bce


def brute(logits, labels, mask, smooth):
    """Dice and cross-entropy `[volume][class]`."""
    found = []
    for own, truth, inside in zip(voxels(logits), labels.flatten(1).tolist(), mask.flatten(1).tolist()):
        row = []
        for k in range(logits.shape[1]):
            pairs = [(1 / (1 + math.exp(-z[k])), float(y == k)) for z, y, m in zip(own, truth, inside) if m and y >= 0]
            ce = mean([-math.log(p if y else 1 - p) for p, y in pairs])
            overlap = sum(p * y for p, y in pairs)
            row.append(ce + 1 - (2 * overlap + smooth) / (sum(p + y for p, y in pairs) + smooth))
        found.append(row)
    return found


@given(supervised_pair())
def test_equals_brute_force(case):
    logits, _, labels, mask = case
    expected = torch.tensor(brute(logits, labels, mask, 0.1), dtype=torch.float64)
    values = sigmoid_dice_bce(logits, labels, smooth=0.1, mask=mask, reduction="none")
    torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(sigmoid_dice_bce(logits, labels, smooth=0.1, mask=mask), expected.mean())


def test_the_dice_of_slices_is_the_mean_of_the_slices():
    logits, labels = make_logits(0, 2, 3, (4, 5, 6)).double(), make_labels(0, 2, 3, (4, 5, 6), low=-1)
    alone = [sigmoid_dice_bce(logits[:, :, i], labels[:, i], bce_weight=0) for i in range(4)]
    whole = sigmoid_dice_bce(logits, labels, bce_weight=0, per_slice=True)
    torch.testing.assert_close(whole, torch.stack(alone).mean())
    pooled = sigmoid_dice_bce(logits[:1], labels[:1], bce_weight=0, per_slice=True, reduction="pooled")
    torch.testing.assert_close(pooled, sigmoid_dice_bce(logits[:1], labels[:1], bce_weight=0, per_slice=True))


def test_a_slice_is_a_volume_in_2d():
    logits, labels = make_logits(0, 2, 3, (5, 6)), make_labels(0, 2, 3, (5, 6))
    assert sigmoid_dice_bce(logits, labels, per_slice=True) == sigmoid_dice_bce(logits, labels)


@pytest.mark.parametrize("setting", ["dice_weight", "bce_weight", "smooth"])
def test_negative_settings_are_named(setting):
    with pytest.raises(ValueError, match=setting):
        sigmoid_dice_bce(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.int64), **{setting: -1.0})
