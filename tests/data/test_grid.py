# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from data.affines import affines, shapes
from hypothesis import assume, given
from hypothesis import strategies as st

from ssmis.data.grid import Grid, closest_axes

nib = pytest.importorskip("nibabel")


def spacing(affine):
    return tuple(np.linalg.norm(affine[:3, :3], axis=0))


def grid_of(shape, affine):
    return Grid(tuple(shape), spacing(affine), affine)


@given(affines(), shapes, st.integers(0, 3))
def test_turning_back_gives_the_same_array_without_a_copy(affine, shape, lead):
    grid = grid_of(shape, affine)
    array = np.arange(np.prod(shape) * lead if lead else np.prod(shape)).reshape(*([lead] if lead else []), *shape)
    turned = grid.canonical(array)
    assert turned.shape[array.ndim - 3 :] == grid.canonical_shape
    assert np.shares_memory(turned, array) or not array.size
    np.testing.assert_array_equal(grid.restore(turned), array)


@given(affines(), shapes)
def test_voxels_stay_where_they_are_in_the_world(affine, shape):
    grid = grid_of(shape, affine)
    index = np.moveaxis(np.indices(shape), 0, -1)  # each voxel holds its own index
    turned = np.stack([grid.canonical(index[..., axis]) for axis in range(3)], -1)
    old = turned.reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    new = np.moveaxis(np.indices(grid.canonical_shape), 0, -1).reshape(-1, 3)
    new = new @ grid.canonical_affine[:3, :3].T + grid.canonical_affine[:3, 3]
    np.testing.assert_allclose(new, old, atol=1e-9)


@given(affines(degrees=35, shear=0.1), shapes)
def test_small_rotations_agree_with_nibabel(affine, shape):
    """Beyond 45 degrees the assignment is a matter of taste; below, two implementations must agree."""
    grid = grid_of(shape, affine)
    rotation = affine[:3, :3] / spacing(affine)
    second = np.sort(np.abs(rotation), axis=0)[-2]
    assume((second < 0.6).all())
    assert "".join(nib.aff2axcodes(affine)) == grid.orientation
    image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine)
    theirs = nib.as_closest_canonical(image)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), grid.canonical(np.asarray(image.dataobj)))
    np.testing.assert_allclose(theirs.affine, grid.canonical_affine, atol=1e-9)


@given(affines(), shapes)
def test_a_canonical_grid_is_its_own(affine, shape):
    grid = grid_of(shape, affine)
    again = grid_of(grid.canonical_shape, grid.canonical_affine)
    assert again.axes == (0, 1, 2)
    assert again.flips == (False, False, False)
    assert again.orientation == "RAS"
    assert grid.distance_to(again) < 1e-6


@given(affines(), st.tuples(*[st.integers(2, 7)] * 3), st.floats(0.5, 20), st.integers(0, 2))
def test_the_distance_of_two_grids_is_in_voxels(affine, shape, shift, axis):
    grid, moved = grid_of(shape, affine), affine.copy()
    moved[axis, 3] += shift
    assert grid.distance_to(grid_of(shape, moved)) == pytest.approx(shift / min(spacing(affine)))
    assert grid.distance_to(grid_of([n + 1 for n in shape], affine)) == float("inf")


@pytest.mark.parametrize(
    ("affine", "told"),
    [
        (np.eye(3), "expected finite numbers"),
        (np.full((4, 4), np.nan), "expected finite numbers"),
        (np.diag([1.0, 0, 1, 1]), "size"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "plane"),
    ],
)
def test_what_is_no_geometry_is_refused(affine, told):
    with pytest.raises(ValueError, match=told):
        closest_axes(affine)


def test_a_picture_stays_as_it_is():
    grid = Grid((4, 6), (0.1, 0.2))
    array = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(grid.canonical(array), array)
    assert grid.canonical_spacing_mm == (0.1, 0.2)
    assert grid.orientation == "picture"
    assert grid.distance_to(Grid((4, 6), (0.1, 0.2))) == 0


def test_an_array_that_does_not_fit_is_named():
    grid = Grid((4, 6), (1, 1))
    with pytest.raises(ValueError, match=r"spatial shape \(6, 4\); expected \(4, 6\)"):
        grid.canonical(np.zeros((6, 4)))
