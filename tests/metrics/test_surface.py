# SPDX-License-Identifier: Apache-2.0
from dataclasses import astuple
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.metrics import surface, surface_distances

SHAPES = st.sampled_from([(9, 7), (5, 6, 4), (1, 8, 3)])


def random_masks(seed, shape):
    rng = np.random.default_rng(seed)
    masks = rng.random((2, *shape)) < rng.uniform(0.1, 0.9)
    masks[:, *(0 for _ in shape)] = True
    return masks, tuple(rng.uniform(0.3, 3, size=len(shape)))


def brute_force_boundary(mask):
    points = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                near = index.copy()
                near[axis] += step
                if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                    points.append(tuple(index))
    return np.array(sorted(set(points)), dtype=float)


def brute_force(prediction, reference, spacing):
    a, b = (brute_force_boundary(mask) * spacing for mask in (prediction, reference))
    table = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return table.min(1), table.min(0)


@given(st.integers(0, 10_000), SHAPES)
def test_brute_force_twin(seed, shape):
    (prediction, reference), spacing = random_masks(seed, shape)
    forth, back = brute_force(prediction, reference, spacing)
    ours = surface_distances(prediction, reference, spacing_mm=spacing, nsd_tolerance_mm=0.7)
    both = np.concatenate([forth, back])
    expected = (
        max(np.percentile(forth, 95), np.percentile(back, 95)),
        both.max(),
        both.mean(),
        (forth.mean() + back.mean()) / 2,
        forth.mean(),
        (both <= 0.7).mean(),
    )
    assert astuple(ours) == pytest.approx(expected, abs=1e-9)

    forth, back = brute_force(prediction, reference, np.ones(len(shape)))
    medpy = surface_distances(prediction, reference, spacing_mm=spacing, convention="medpy")
    assert medpy.hd95 == pytest.approx(np.percentile(np.concatenate([forth, back]), 95), abs=1e-9)
    assert medpy.asd == pytest.approx(forth.mean(), abs=1e-9)


@pytest.mark.parametrize("convention", ["default", "medpy"])
@given(st.integers(0, 10_000), SHAPES, st.integers(0, 2), st.floats(0.1, 10))
def test_laws(convention, seed, shape, axis, factor):
    (a, b), spacing = random_masks(seed, shape)
    measure = partial(surface_distances, convention=convention)
    found = measure(a, b, spacing_mm=spacing)
    swapped = measure(b, a, spacing_mm=spacing)
    assert (found.hd95, found.hd, found.assd, found.masd, found.nsd) == pytest.approx(
        (swapped.hd95, swapped.hd, swapped.assd, swapped.masd, swapped.nsd)
    )
    assert found.masd == pytest.approx((found.asd + swapped.asd) / 2)
    assert found.hd95 <= found.hd <= np.linalg.norm(np.array(shape) * (spacing if convention == "default" else 1))
    assert found.assd <= found.hd

    axis %= len(shape)
    flipped = measure(np.flip(a, axis), np.flip(b, axis), spacing_mm=spacing)
    assert astuple(flipped) == pytest.approx(astuple(found))
    moved = [np.moveaxis(mask, axis, 0) for mask in (a, b)]
    order = (spacing[axis], *spacing[:axis], *spacing[axis + 1 :])
    assert astuple(measure(*moved, spacing_mm=order)) == pytest.approx(astuple(found))
    for around in (2, (0, 3), (1, 0)):  # a crop gives what the image gives, wherever the masks lie in it
        padded = measure(np.pad(a, around), np.pad(b, around), spacing_mm=spacing)
        assert astuple(padded) == pytest.approx(astuple(found))
    if convention == "medpy":  # in voxels whatever the spacing
        assert measure(a, b, spacing_mm=[s * factor for s in spacing]) == found
    else:  # a tolerance that no distance is near of
        tolerance = 1.2345678
        found = measure(a, b, spacing_mm=spacing, nsd_tolerance_mm=tolerance)
        scaled = measure(a, b, spacing_mm=[s * factor for s in spacing], nsd_tolerance_mm=tolerance * factor)
        assert astuple(scaled) == pytest.approx((*(value * factor for value in astuple(found)[:5]), found.nsd))


@pytest.mark.parametrize("convention", ["default", "medpy"])
@given(st.integers(0, 10_000), SHAPES)
def test_tree_and_transform_find_the_same_distances(convention, seed, shape):
    (a, b), spacing = random_masks(seed, shape)
    found = []
    for voxels in (0, 10**9):  # always the tree, always the transform
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(surface, "TRANSFORM_FROM", voxels)
            found.append(astuple(surface_distances(a, b, spacing_mm=spacing, convention=convention)))
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_identical_masks_are_at_zero():
    mask = np.zeros((6, 6, 6), bool)
    mask[1:4, 2:5, 1:3] = True
    assert astuple(surface_distances(torch.from_numpy(mask), mask, spacing_mm=(1, 2, 3))) == (0, 0, 0, 0, 0, 1)


def test_empty_masks_are_not_applicable_or_the_diagonal():
    empty, some = np.zeros((3, 4), bool), np.eye(3, 4, dtype=bool)
    assert np.isnan(astuple(surface_distances(empty, empty, spacing_mm=(1, 1)))).all()
    for pair in ((empty, some), (some, empty)):
        assert astuple(surface_distances(*pair, spacing_mm=(2, 2))) == (10, 10, 10, 10, 10, 0)
        assert surface_distances(*pair, spacing_mm=(2, 2), convention="medpy").hd95 == 5


def test_a_missed_lobe_costs_asd_nothing():
    reference = np.zeros((20, 20), bool)
    reference[2:6, 2:6] = reference[14:18, 14:18] = True
    prediction = reference.copy()
    prediction[14:18, 14:18] = False
    found = surface_distances(prediction, reference, spacing_mm=(1, 1))
    assert found.asd == 0
    assert found.assd > 4.9


def test_errors_name_the_argument():
    mask = np.ones((2, 2), bool)
    with pytest.raises(ValueError, match=r"spacing_mm is \(1, 1, 1\); expected 2 positive numbers"):
        surface_distances(mask, mask, spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match=r"spacing_mm is \(1, 0\)"):
        surface_distances(mask, mask, spacing_mm=(1, 0))
    for wrong in (1.0, None, "11", ("a", "b"), (1, float("nan")), (1, float("inf")), (1, True), np.ones(2, bool)):
        with pytest.raises(ValueError, match=r"spacing_mm is .*; expected 2 positive numbers, one per axis"):
            surface_distances(mask, mask, spacing_mm=wrong)
    with pytest.raises(ValueError, match=r"prediction has shape \(\); expected at least one axis"):
        surface_distances(np.array(True), np.array(True), spacing_mm=())
    with pytest.raises(ValueError, match=r"convention is 'monai'; expected one of 'default', 'medpy'"):
        surface_distances(mask, mask, spacing_mm=(1, 1), convention="monai")
    with pytest.raises(ValueError, match=r"nsd_tolerance_mm is -1"):
        surface_distances(mask, mask, spacing_mm=(1, 1), nsd_tolerance_mm=-1)
