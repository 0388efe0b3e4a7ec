# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.metrics import calibration, calibration_per_class, pool_calibration, pool_reliability

SHAPES = st.sampled_from([(9, 7), (5, 6, 4), (1, 8, 3)])


def forecast(seed, classes, shape, sharpness=2.0):
    """Probs `(K, *S)` and labels that are drawn from them: calibrated by construction."""
    generator = torch.Generator().manual_seed(seed)
    probs = (sharpness * torch.randn(classes, *shape, generator=generator, dtype=torch.float64)).softmax(0)
    drawn = torch.multinomial(probs.flatten(1).T, 1, generator=generator)
    return probs, drawn.reshape(shape)


def brute_force(pairs, bins):
    """ECE of (confidence, came true) pairs, voxel by voxel."""
    found = [[] for _ in range(bins)]
    for confidence, true in pairs:
        found[max(0, next(m for m in range(bins) if confidence <= (m + 1) / bins + 1e-15))].append((confidence, true))
    gaps = [abs(sum(c - t for c, t in own)) for own in found if own]
    return sum(gaps) / sum(len(own) for own in found), [len(own) for own in found]


@given(st.integers(0, 10_000), SHAPES, st.integers(2, 5), st.integers(1, 20))
def test_brute_force_twin(seed, shape, classes, bins):
    probs, labels = forecast(seed, classes, shape)
    voxels = list(zip(probs.flatten(1).T.tolist(), labels.flatten().tolist()))
    found = calibration(probs, labels, bins=bins)
    ece, count = brute_force([(max(p), p.index(max(p)) == y) for p, y in voxels], bins)
    brier = sum(sum((q - (k == y)) ** 2 for k, q in enumerate(p)) for p, y in voxels) / len(voxels)
    assert (found.ece, found.brier, found.n) == pytest.approx((ece, brier, len(voxels)))
    assert found.reliability.count.tolist() == count

    own = calibration_per_class(probs, labels, classes=range(classes), bins=bins)
    for label in range(classes):
        ece, _ = brute_force([(p[label], y == label) for p, y in voxels], bins)
        assert own[label].ece == pytest.approx(ece)
    assert sum(each.brier for each in own.values()) == pytest.approx(found.brier)


@given(st.integers(0, 10_000), SHAPES, st.integers(2, 5))
def test_laws(seed, shape, classes):
    probs, labels = forecast(seed, classes, shape)
    found = calibration(probs, labels)
    assert 0 <= found.ece <= 1
    assert 0 <= found.brier <= 2
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    renamed = torch.argsort(order)[labels]
    flipped = calibration(probs[order].flip(-1), renamed.flip(-1))
    assert (flipped.ece, flipped.brier) == pytest.approx((found.ece, found.brier))
    one_bin = calibration(probs, labels, bins=1)  # splitting voxels into bins can only add to the gap
    assert one_bin.ece <= found.ece + 1e-12


def test_certain_forecasts():
    labels = torch.tensor([[0, 1, 2], [2, 2, 0]])
    right = torch.nn.functional.one_hot(labels, 3).movedim(-1, 0).float()
    found = calibration(right, labels)
    assert (found.ece, found.brier) == (0, 0)
    wrong = calibration(right, (labels + 1) % 3)
    assert (wrong.ece, wrong.brier) == (1, 2)
    assert wrong.reliability.count.tolist() == [0] * 14 + [6]


def test_a_bin_is_closed_above():
    probs = np.array([[0.5, 0.5, 0.0, 1.0], [0.5, 0.5, 1.0, 0.0]])
    found = calibration_per_class(probs, np.array([0, 1, 1, 0]), classes=(1,), bins=2)[1]
    assert found.reliability.count.tolist() == [3, 1]
    assert found.reliability.confidence.tolist() == pytest.approx([1 / 3, 1.0])
    assert found.reliability.frequency.tolist() == pytest.approx([1 / 3, 1.0])


@pytest.mark.parametrize("shape", [(300, 300), (50, 60, 30)])
def test_labels_drawn_from_the_forecast_are_calibrated_and_sharpening_is_overconfident(shape):
    probs, labels = forecast(0, 3, shape, sharpness=1.0)
    calibrated = calibration(probs, labels)
    assert calibrated.ece < 0.01
    sharp = calibration((probs.log() * 3).softmax(0), labels)
    assert sharp.ece > 0.1
    some = sharp.reliability.count > 100
    assert (sharp.reliability.confidence > sharp.reliability.frequency)[some].all()
    assert calibrated.brier < sharp.brier


def test_the_box_around_the_foreground_leaves_out_certain_background():
    probs, labels = forecast(1, 2, (10, 12, 9), sharpness=1.0)
    around = [(6, 7), (5, 8), (7, 6)]
    labels[0, 0, 0] = labels[-1, -1, -1] = 1  # so that the box is all of it
    wide_labels = np.pad(labels.numpy(), around)
    wide = np.stack([np.pad(probs[k].numpy(), around, constant_values=1.0 - k) for k in (0, 1)])
    narrow, whole = calibration(probs, labels), calibration(wide, wide_labels)
    assert whole.ece < narrow.ece / 2
    box = calibration(wide, wide_labels, foreground_margin=0)
    assert (box.ece, box.brier, box.n) == pytest.approx((narrow.ece, narrow.brier, narrow.n))
    assert calibration(wide, wide_labels, foreground_margin=2).n == 14 * 16 * 13
    assert calibration(wide, wide_labels, foreground_margin=100).n == wide_labels.size


def test_unlabelled_voxels_are_left_out():
    probs, labels = forecast(2, 3, (6, 8))
    labels[:, 5:] = -1
    probs[:, :, 5:] = math.nan
    found, expected = calibration(probs, labels), calibration(probs[:, :, :5], labels[:, :5])
    assert (found.ece, found.brier, found.n) == (expected.ece, expected.brier, 30)


def test_nothing_to_count_is_not_applicable():
    probs, labels = forecast(3, 2, (4, 5))
    nowhere = calibration(probs, torch.full_like(labels, -1))
    no_foreground = calibration(probs, torch.zeros_like(labels), foreground_margin=3)
    for found in (nowhere, no_foreground):
        assert math.isnan(found.ece)
        assert math.isnan(found.brier)
        assert found.n == 0


def test_pooled_bins_are_those_of_all_voxels():
    probs, labels = forecast(4, 3, (20, 9))
    parts = [calibration(probs[:, cut], labels[cut]).reliability for cut in (slice(6), slice(6, 20))]
    pooled, whole = pool_reliability(parts), calibration(probs, labels).reliability
    assert pooled.count.tolist() == whole.count.tolist()
    np.testing.assert_allclose(pooled.confidence, whole.confidence)
    np.testing.assert_allclose(pooled.frequency, whole.frequency)
    assert pooled.ece == pytest.approx(whole.ece)
    with pytest.raises(ValueError, match=r"parts have \[15, 3\] bins"):
        pool_reliability([whole, calibration(probs, labels, bins=3).reliability])
    with pytest.raises(ValueError, match=r"expected at least one part"):
        pool_reliability([])


def test_pooled_calibration_is_that_of_all_voxels():
    probs, labels = forecast(5, 3, (20, 9))
    labels[:6] = -1  # a part without a voxel
    parts = [calibration(probs[:, cut], labels[cut]) for cut in (slice(6), slice(6, 9), slice(9, 20))]
    pooled, whole = pool_calibration(parts), calibration(probs, labels)
    assert pooled.n == whole.n == 14 * 9
    assert (pooled.ece, pooled.brier) == pytest.approx((whole.ece, whole.brier))
    nothing = pool_calibration(parts[:1])
    assert nothing.n == 0
    assert math.isnan(nothing.ece)
    assert math.isnan(nothing.brier)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_comes_close(dtype):
    probs, labels = forecast(5, 4, (30, 40))
    found, expected = calibration(probs.to(dtype), labels), calibration(probs, labels)
    assert (found.ece, found.brier) == pytest.approx((expected.ece, expected.brier), abs=0.01)


def test_errors_name_the_argument():
    probs, labels = forecast(6, 2, (4, 5))
    with pytest.raises(ValueError, match=r"probs is int64 of shape \(2, 4, 5\)"):
        calibration(probs.long(), labels)
    with pytest.raises(ValueError, match=r"probs is float64 of shape \(1, 4, 5\); expected .* K >= 2"):
        calibration(probs[:1], labels)
    with pytest.raises(ValueError, match=r"reference_labels is int64 of shape \(3, 5\); expected .* \(4, 5\)"):
        calibration(probs, labels[:3])
    with pytest.raises(ValueError, match=r"reference_labels has class 2; expected 0\.\.1"):
        calibration(probs, labels + 1 + (labels == 0))
    with pytest.raises(ValueError, match=r"apply the softmax to logits first"):
        calibration(probs.log(), labels)
    with pytest.raises(ValueError, match=r"apply the softmax to logits first"):
        calibration(probs * math.nan, labels)
    for wrong in (0, 2.5, True, None):
        with pytest.raises(ValueError, match=rf"bins is {wrong}; expected a whole number of at least 1"):
            calibration(probs, labels, bins=wrong)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=rf"foreground_margin is {wrong}; expected a whole number of at least 0"):
            calibration(probs, labels, foreground_margin=wrong)
    with pytest.raises(ValueError, match=r"classes has 1 twice"):
        calibration_per_class(probs, labels, classes=(1, 1))
    with pytest.raises(ValueError, match=r"classes has 2; expected 0\.\.1"):
        calibration_per_class(probs, labels, classes=(0, 2))
