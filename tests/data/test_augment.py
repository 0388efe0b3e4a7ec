# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ssmis.data import (
    Augment,
    Intensity,
    add_noise,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    bias_field,
    coarse_field,
    gaussian_blur,
)
from ssmis.data.augment import Rows, _Draw

SIZES = st.sampled_from([(8, 8), (8, 6), (8, 8, 6), (6, 8, 8)])


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Intensity, {"probability": 1.5}, r"probability is 1\.5; expected a number in \[0, 1\]"),
        (Intensity, {"gamma": (0.0, 2.0)}, r"gamma is \(0\.0, 2\.0\); expected two factors, 0 < low <= high"),
        (Intensity, {"gamma": (2.0, 0.5)}, "gamma is"),
        (Intensity, {"noise": -0.1}, r"noise is -0\.1"),
        (Intensity, {"bias": float("nan")}, "bias is nan"),
        (Augment, {"affine_probability": -1.0}, "affine_probability is"),
        (Augment, {"zoom": (0.0, 1.0)}, "zoom is"),
        (Augment, {"degrees": -15.0}, "degrees is"),
        (Augment, {"shift": float("inf")}, "shift is inf"),
    ],
)
def test_settings_without_a_meaning_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def batch(seed, size=(8, 8, 6), count=3, channels=2):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, *size, generator=random) * 1.3 + 0.7
    labels = torch.randint(-1, 3, (count, *size), generator=random)
    return images, labels, labels >= 0


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 2**30), SIZES, st.sampled_from(["weak", "strong", "none"]))
def test_presets_are_pure_functions_of_the_generator(seed, size, preset):
    augment = getattr(Augment, preset)()
    images, labels, valid = batch(seed, size)
    kept = images.clone(), labels.clone(), valid.clone()
    first = augment(images, gen(seed), labels, valid)
    second = augment(images, gen(seed), labels, valid)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, (images, labels, valid), kept))
    assert [(x.shape, x.dtype) for x in first] == [(x.shape, x.dtype) for x in kept]
    assert first[0].isfinite().all()
    assert preset != "none" or all(map(torch.equal, first, kept))


@given(st.integers(0, 2**30), SIZES)
def test_label_as_image_gets_the_labels_geometry(seed, size):
    _, labels, valid = batch(seed, size)
    moved, moved_labels, moved_valid = Augment.weak().move(labels[:, None].float(), gen(seed), labels, valid)
    assert torch.equal(moved[:, 0].long(), moved_labels)
    assert torch.equal(moved_valid, moved_labels >= 0)


@given(st.integers(0, 2**30))
def test_affine_moves_only_chosen_volumes_and_marks_the_outside(seed):
    images, labels, _ = batch(seed, (8, 8, 8))
    labels = labels.clamp_min(0)
    valid = torch.ones_like(labels, dtype=torch.bool)
    augment = Augment(flip_axes=(), rot90=False, affine_probability=0.5, shift=0.3)
    moved, moved_labels, moved_valid = augment.move(images, gen(seed), labels, valid)
    assert torch.equal(moved_valid, moved_labels >= 0)
    for index in range(len(images)):
        same = torch.equal(moved[index], images[index])
        assert torch.equal(moved_labels[index], labels[index]) or not same
        assert moved_valid[index].all() or not same


def test_geometry_works_without_labels():
    images, _, _ = batch(0)
    moved, labels, valid = Augment.strong()(images, gen(1))
    assert moved.shape == images.shape
    assert labels is None
    assert valid is None


def test_quarter_turns_only_in_square_planes():
    assert {t for s in range(20) for t in Augment.weak().draw(batch(0, (8, 8, 6))[0], gen(s)).turns} == {0, 1, 2, 3}
    assert {t for s in range(20) for t in Augment.weak().draw(batch(0, (6, 8, 8))[0], gen(s)).turns} == {0, 2}


def test_quarter_turns_only_where_voxels_are_square_in_mm():
    images = torch.zeros(64, 1, 6, 6, 4)
    found = Augment(spacing_mm=(0.7, 1.4, 0.7)).draw(images, torch.Generator().manual_seed(0))
    assert set(found.turns) == {0, 2}
    found = Augment(spacing_mm=(0.7, 0.7, 5.0)).draw(images, torch.Generator().manual_seed(0))
    assert set(found.turns) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"spacing_mm is \(1\.0, 0\.0\); expected sizes above 0"):
        Augment(spacing_mm=(1.0, 0.0))


def test_turns_of_thick_slices_keep_most_labels():
    images, labels = torch.zeros(256, 1, 64, 64, 8), torch.zeros(256, 64, 64, 8, dtype=torch.long)
    lost = {}
    for spacing in (None, (0.7, 0.7, 5.0)):
        turn = Augment(flip_axes=(), rot90=False, affine_probability=1.0, zoom=(1, 1), shift=0, spacing_mm=spacing)
        moved = turn.move(images, torch.Generator().manual_seed(0), labels)[1]
        lost[spacing] = float((moved < 0).float().mean())
    assert lost[None] > 1.5 * lost[0.7, 0.7, 5.0]


def test_factors_are_drawn_evenly_in_the_logarithm():
    draw = _Draw(Rows(0, 4000, 4000), torch.Generator().manual_seed(0))
    logarithms = draw.log_uniform(0.25, 4.0).log() / math.log(4)
    assert abs(float(logarithms.mean())) < 0.05
    assert abs(float((logarithms < -0.5).float().mean()) - 0.25) < 0.03


def test_flips_stay_on_their_axes_and_reach_all():
    augment = Augment(flip_axes=(0, 2))
    drawn = {flips for s in range(30) for flips in augment.draw(batch(0)[0], gen(s)).flips}
    assert drawn == {(), (0,), (2,), (0, 2)}
    assert {f for s in range(30) for f in augment.draw(batch(0, (8, 8))[0], gen(s)).flips} == {(), (0,)}


def test_strong_changes_more_than_weak():
    images, _, _ = batch(0, (16, 16, 12), count=4, channels=1)

    def change(augment):
        return np.mean([(augment.intensity(images, gen(s)) - images).abs().mean().item() for s in range(20)])

    assert 0 < 3 * change(Augment.weak()) < change(Augment.strong())


def test_probability_zero_and_one():
    images, _, _ = batch(0)
    assert torch.equal(Intensity(probability=0.0)(images, gen()), images)
    moved = Intensity(probability=1.0)(images, gen())
    assert all(not torch.equal(a, b) for a, b in zip(moved, images))


def test_neutral_settings_change_nothing():
    neutral = Intensity(probability=1.0, gamma=(1, 1), brightness=0, contrast=(1, 1), noise=0, blur=0, bias=0)
    images, _, _ = batch(0)
    assert torch.equal(neutral(images, gen()), images)


@given(st.integers(0, 2**30), st.floats(0.3, 3))
def test_gamma_keeps_range_and_order(seed, gamma):
    images, _, _ = batch(seed)
    bent = adjust_gamma(images, torch.full((3,), gamma))
    low, high = images.flatten(2).amin(2), images.flatten(2).amax(2)
    torch.testing.assert_close(bent.flatten(2).amin(2), low)
    torch.testing.assert_close(bent.flatten(2).amax(2), high)
    order = images.flatten(2).argsort(2)
    assert (bent.flatten(2).gather(2, order).diff(dim=2) >= -1e-6).all()
    back = adjust_gamma(bent, torch.full((3,), 1 / gamma))
    torch.testing.assert_close(back, images, atol=2e-2, rtol=0)


@pytest.mark.parametrize("operation", [adjust_gamma, adjust_contrast, adjust_brightness, gaussian_blur])
def test_constant_image_stays_finite_and_constant(operation):
    images = torch.full((2, 1, 6, 6), 3.0)
    torch.testing.assert_close(operation(images, torch.tensor([0.5, 2.0])), images)


def test_parameters_belong_to_their_volume():
    images, _, _ = batch(0)
    values = torch.tensor([0.5, 1.0, 2.0])
    for operation in (adjust_gamma, adjust_contrast, adjust_brightness, gaussian_blur):
        together = operation(images, values)
        for index in range(3):
            alone = operation(images[index : index + 1], values[index : index + 1])
            torch.testing.assert_close(together[index], alone[0])


def test_contrast_and_brightness_by_hand():
    images, _, _ = batch(0)
    double, numbers = images.double(), images.double().numpy()
    mean = numbers.mean((2, 3, 4), keepdims=True)
    std = numbers.std((2, 3, 4), keepdims=True)
    twos = torch.full((3,), 2.0)
    np.testing.assert_allclose(adjust_contrast(double, twos).numpy(), mean + 2 * (numbers - mean), atol=1e-9)
    np.testing.assert_allclose(adjust_brightness(double, twos).numpy(), numbers + 2 * std, atol=1e-9)


def test_noise_is_scaled_per_volume():
    images, _, _ = batch(0)
    noise = torch.randn(images.shape, generator=gen())
    noisy = add_noise(images, noise, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(noisy - images, noise * torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1))


@given(st.integers(0, 2**30), st.floats(0.1, 1.5), SIZES)
def test_blur_against_scipy(seed, sigma, size):
    images = batch(seed, size, count=1)[0].double()
    got = gaussian_blur(images, torch.tensor([sigma], dtype=torch.float64))
    for channel in range(2):
        want = ndimage.gaussian_filter(images[0, channel].numpy(), sigma, mode="nearest", radius=2)
        np.testing.assert_allclose(got[0, channel].numpy(), want, atol=1e-9)


def test_blur_zero_changes_nothing():
    images, _, _ = batch(0)
    torch.testing.assert_close(gaussian_blur(images, torch.zeros(3)), images)


def test_bias_field_by_hand():
    images, _, _ = batch(0)
    low = images.flatten(2).amin(2)[..., None, None, None]
    flat = bias_field(images, torch.full((3, 1, 4, 4, 4), math.log(2)))
    torch.testing.assert_close(flat, (images - low) * 2 + low)
    field = coarse_field(torch.randn(3, 1, 4, 4, 4, generator=gen()), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(field.abs().flatten(1).amax(1), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(field.flatten(1).mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    gain = (bias_field(images, field) - low) / (images - low).clamp_min(1e-9)
    assert gain.max() <= math.e * 1.001
    torch.testing.assert_close(bias_field(images, field)[0], images[0])


def test_mixed_precision_images_keep_their_dtype():
    images = batch(0)[0].to(torch.bfloat16)
    assert Augment.strong().intensity(images, gen()).dtype == torch.bfloat16
