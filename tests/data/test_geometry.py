# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from ssmis.data import Geometry, affine, affine_matrices

SIZES = st.sampled_from([(5, 5), (4, 6), (4, 4, 3), (3, 5, 2)])


@st.composite
def geometries(draw):
    size, count = draw(SIZES), draw(st.integers(1, 3))
    axes = st.lists(st.sampled_from(range(len(size))), unique=True).map(tuple)
    turns = st.integers(0, 3) if size[0] == size[1] else st.sampled_from([0, 2])
    geometry = Geometry(
        tuple(draw(axes) for _ in range(count)), tuple(draw(turns) for _ in range(count)), dims=len(size)
    )
    return geometry, size, count


@given(geometries(), st.integers(0, 2**30))
def test_inverse_is_exact_both_ways(case, seed):
    geometry, size, count = case
    images = torch.randn(count, 2, *size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(geometry.invert(geometry.apply(images)), images)
    assert torch.equal(geometry.apply(geometry.invert(images)), images)


@given(geometries(), st.integers(0, 2**30))
def test_image_label_and_mask_move_alike(case, seed):
    geometry, size, count = case
    labels = torch.randint(-1, 4, (count, *size), generator=torch.Generator().manual_seed(seed))
    moved = geometry.apply(labels)
    assert torch.equal(geometry.apply(labels[:, None].float())[:, 0].long(), moved)
    assert torch.equal(geometry.apply(labels > 0), moved > 0)


def test_flip_and_turn_by_hand():
    image = torch.tensor([[1, 2], [3, 4]])
    assert Geometry(((0,),), (0,), 2).apply(image[None])[0].tolist() == [[3, 4], [1, 2]]
    assert Geometry(((),), (1,), 2).apply(image[None])[0].tolist() == [[2, 4], [1, 3]]
    assert Geometry(((0,),), (1,), 2).apply(image[None])[0].tolist() == [[4, 2], [3, 1]]


def test_all_symmetries_of_the_square_are_reached():
    image = torch.arange(4).reshape(1, 2, 2)
    seen = {
        tuple(Geometry((flips,), (turn,), 2).apply(image).flatten().tolist())
        for flips, turn in itertools.product([(), (0,), (1,), (0, 1)], range(4))
    }
    assert len(seen) == 8


def test_geometry_errors():
    with pytest.raises(ValueError, match="flips has 1 volumes; expected 2 to match turns"):
        Geometry(((),), (0, 0), 2)
    with pytest.raises(ValueError, match=r"a quarter turn needs a square plane \(0, 1\)"):
        Geometry(((),), (1,), 2).apply(torch.zeros(1, 4, 6))
    with pytest.raises(ValueError, match=r"volumes has shape \(2, 4, 6\); expected 1 volumes with 2 spatial axes"):
        Geometry(((),), (0,), 2).apply(torch.zeros(2, 4, 6))


def draw_matrices(seed, count, dims):
    random = torch.Generator().manual_seed(seed)
    degrees = 60 * torch.rand(count, 1 if dims == 2 else 3, generator=random, dtype=torch.float64) - 30
    scales = 0.7 + 0.7 * torch.rand(count, generator=random, dtype=torch.float64)
    return affine_matrices(degrees, scales, 2 * torch.randn(count, dims, generator=random, dtype=torch.float64))


@given(st.integers(0, 2**30), st.sampled_from([(9, 7), (7, 6, 5)]))
def test_affine_against_scipy(seed, size):
    matrices = draw_matrices(seed, 2, len(size))
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 1, *size, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, *size), generator=random)
    moved, moved_labels, valid = affine(images, matrices, labels, torch.ones_like(labels, dtype=torch.bool))
    centre = (np.array(size) - 1) / 2
    for index in range(2):
        linear, shift = matrices[index, :, :-1].numpy(), matrices[index, :, -1].numpy()
        offset = centre - linear @ centre + shift
        want = ndimage.affine_transform(images[index, 0].numpy(), linear, offset, order=1, mode="nearest")
        np.testing.assert_allclose(moved[index, 0].numpy(), want, atol=1e-9)
        places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) @ linear.T + offset
        nearest = np.rint(places).astype(int)
        safe = (np.abs(places - np.floor(places) - 0.5) > 1e-6).all(-1)  # ties may round either way
        inside = ((nearest >= 0) & (nearest < size)).all(-1)
        clipped = np.clip(nearest, 0, np.array(size) - 1)
        want_labels = np.where(inside, labels[index].numpy()[tuple(np.moveaxis(clipped, -1, 0))], -1)
        np.testing.assert_array_equal(moved_labels[index].numpy()[safe], want_labels[safe])
        np.testing.assert_array_equal(valid[index].numpy()[safe], inside[safe])


@pytest.mark.parametrize("dims", [2, 3])
def test_identity_changes_nothing(dims, generator):
    images = torch.randn(2, 2, *(6, 5, 4)[:dims], generator=generator)
    labels = torch.randint(-1, 3, (2, *images.shape[2:]), generator=generator)
    zero = torch.zeros(2, 1 if dims == 2 else 3)
    moved, moved_labels, valid = affine(images, affine_matrices(zero, torch.ones(2), torch.zeros(2, dims)), labels)
    torch.testing.assert_close(moved, images, atol=1e-5, rtol=0)
    assert torch.equal(moved_labels, labels)
    assert valid is None


def test_what_the_parameters_mean():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 2, 4] = 1.0
    none, one = torch.zeros(1, 1), torch.ones(1)
    shifted, *_ = affine(image, affine_matrices(none, one, torch.tensor([[3.0, -1.0]])))
    assert shifted[0, 0].argmax() == 5 * 9 + 3
    turned, *_ = affine(image, affine_matrices(none + 90, one, torch.zeros(1, 2)))
    assert turned[0, 0].argmax() == 4 * 9 + 2
    zoomed, *_ = affine(image, affine_matrices(none, 2 * one, torch.zeros(1, 2)))
    assert zoomed[0, 0].argmax() == 0 * 9 + 4


def test_image_and_label_get_the_same_affine(generator):
    # A smooth image whose half-maximum is the label: after resampling they must still agree almost everywhere.
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 3, indexing="ij")
    image = 0.6 - torch.stack(axes, -1).mul(torch.tensor([1.0, 1.3, 0.8])).norm(dim=-1)
    matrices = draw_matrices(3, 1, 3)
    moved, labels, _ = affine(image[None, None], matrices, (image > 0).long()[None])
    assert (labels == 1).sum() > 100
    agree = ((moved[:, 0] > 0).long() == labels)[labels >= 0]
    assert agree.float().mean() > 0.97


@given(angles=st.tuples(*[st.floats(-40, 40)] * 3), spacing=st.tuples(*[st.floats(0.3, 6)] * 3), zoom=st.floats(0.5, 2))
def test_turns_are_rigid_in_mm(angles, spacing, zoom):
    matrix = affine_matrices(
        torch.tensor([angles], dtype=torch.float64),
        torch.tensor([zoom], dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.float64),
        spacing_mm=spacing,
    )[0, :, :3]
    sizes = torch.tensor(spacing, dtype=torch.float64)
    in_mm = sizes[:, None] * torch.linalg.inv(matrix) / sizes
    np.testing.assert_allclose(torch.linalg.svdvals(in_mm), zoom, rtol=1e-9)
    assert torch.linalg.det(in_mm) > 0


def test_cubes_are_turned_in_voxels():
    arguments = torch.tensor([[10.0, -5.0, 3.0]]), torch.tensor([1.1]), torch.tensor([[1.0, 0.0, 2.0]])
    plain = affine_matrices(*arguments)
    assert torch.equal(affine_matrices(*arguments, spacing_mm=(2.5, 2.5, 2.5)), plain)
    assert not torch.equal(affine_matrices(*arguments, spacing_mm=(1.0, 1.0, 5.0)), plain)
    with pytest.raises(ValueError, match=r"spacing_mm is \(1\.0, 5\.0\); expected 3 numbers, one an axis"):
        affine_matrices(*arguments, spacing_mm=(1.0, 5.0))
