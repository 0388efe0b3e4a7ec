# SPDX-License-Identifier: Apache-2.0
"""Files in, files out: nothing about where a voxel lies may change on the way."""

import os
from pathlib import Path

import numpy as np
import pytest
from data.affines import affines, shapes
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmis.data import DataError
from ssmis.data.grid import Grid
from ssmis.data.scans import read_grid, read_labels, read_scan, write_map
from ssmis.data.suffixes import stem_of, suffix_of

nib = pytest.importorskip("nibabel")
Image = pytest.importorskip("PIL.Image")
WHEEL = Path(nib.__file__).parent / "tests" / "data"
GEOMETRY = (
    "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
    "qoffset_y", "qoffset_z", "xyzt_units",
)  # fmt: skip


def save(path, array, affine, *, qform=None, sform=None):
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, qform, strip_shears=True)
    image.set_sform(affine, sform)
    nib.save(image, path)
    return path


def assert_same_geometry(source, written):
    a, b = nib.load(source), nib.load(written)
    np.testing.assert_array_equal(a.affine, b.affine)
    for name in GEOMETRY:
        np.testing.assert_array_equal(a.header[name], b.header[name], err_msg=name)
    np.testing.assert_array_equal(a.header["pixdim"][:4], b.header["pixdim"][:4])


@given(affines(), shapes, st.sampled_from([(1, 1), (0, 2), (2, 0), (0, 0), (3, 4)]), st.integers(0, 1000))
def test_a_label_map_comes_back_on_its_grid_to_the_last_bit(affine, shape, codes, seed):
    folder = Path(os.environ["SSMIS_TEST_FOLDER"])
    labels = np.random.default_rng(seed).integers(0, 5, shape).astype(np.uint8)
    source = save(folder / "source.nii", labels, affine, qform=codes[0], sform=codes[1])
    scan = read_scan(source)
    written = write_map(folder / "written.nii", scan.image[0], scan.grid)
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), labels)
    assert nib.load(written).get_data_dtype() == np.uint8
    assert_same_geometry(source, written)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SSMIS_TEST_FOLDER", str(tmp_path))


@pytest.mark.parametrize(
    "name", ["anatomical.nii", "functional.nii", "example4d.nii.gz", "standard.nii.gz", "reoriented_anat_moved.nii",
             "resampled_anat_moved.nii", "example_nifti2.nii.gz"]
)  # fmt: skip
def test_the_volumes_of_the_nibabel_wheel_keep_their_geometry(name, tmp_path):
    source = WHEEL / name
    scan = read_scan(source)
    image = nib.load(source)
    values = np.asarray(image.dataobj).reshape(*scan.grid.shape, -1)
    assert scan.image.shape[0] == values.shape[-1]
    np.testing.assert_array_equal(scan.grid.restore(scan.image), np.moveaxis(values, -1, 0))
    labels = (scan.image[0] > np.median(scan.image[0])).astype(np.uint8)
    written = write_map(tmp_path / "labels.nii.gz", labels, scan.grid)
    assert_same_geometry(source, written)
    np.testing.assert_array_equal(read_labels(written, scan.grid), labels)
    maps = np.stack([labels, 1 - labels]).astype(np.float32) / 3
    probs = write_map(tmp_path / "probs.nii.gz", maps, scan.grid)
    assert nib.load(probs).shape == (*scan.grid.shape, 2)
    np.testing.assert_array_equal(read_scan(probs).image, maps)
    assert_same_geometry(source, probs)


def assert_comes_back(folder, values, labels, affine, codes):
    """An image and its label map on a grid: read, turned, written and read again, to the last bit."""
    source = save(folder / "image.nii", values, affine, qform=codes[0], sform=codes[1])
    truth = save(folder / "truth.nii", labels, affine, qform=codes[0], sform=codes[1])
    scan = read_scan(source)
    found = read_labels(truth, scan.grid)
    assert found.shape == scan.image.shape[1:] == scan.grid.canonical_shape
    np.testing.assert_array_equal(scan.grid.restore(scan.image[0]), values)
    written = write_map(folder / "written.nii.gz", found.astype(labels.dtype), scan.grid)
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), labels)
    assert_same_geometry(source, written)


codes = st.sampled_from([(1, 1), (0, 2), (2, 0), (0, 0), (3, 4)])


@given(affines(), st.sampled_from(["anatomical.nii", "reoriented_anat_moved.nii", "resampled_anat_moved.nii"]), codes)
@settings(max_examples=15)
def test_volumes_of_the_nibabel_wheel_come_back_from_any_grid(affine, name, codes):
    values = np.asarray(nib.load(WHEEL / name).dataobj)
    values = values.reshape(values.shape[:3])
    labels = np.digitize(values, np.quantile(values, (0.5, 0.9))).astype(np.uint8)
    assert_comes_back(Path(os.environ["SSMIS_TEST_FOLDER"]), values, labels, affine, codes)


@pytest.mark.data
@pytest.mark.parametrize("name", ["t1/t1w", "t2/t2", "t2s/t2s"])
def test_spinal_cord_comes_back_from_any_grid(name, data_root, tmp_path):
    source = data_root / "spinal_cord" / f"{name}.nii.gz"
    label = next(iter(sorted(source.parent.glob("*seg-manual*")) or sorted(source.parent.glob("*_seg*"))))
    labels = np.asarray(nib.load(label).dataobj).astype(np.uint8)
    low = np.maximum(np.argwhere(labels).min(0) - 3, 0)
    box = tuple(slice(at, at + 40) for at in low)  # around the cord's end
    values = np.asarray(nib.load(source).dataobj)[box]
    assert labels[box].any()

    @given(affines(), codes)
    @settings(max_examples=10)
    def check(affine, codes):
        assert_comes_back(tmp_path, values, labels[box], affine, codes)

    check()


@pytest.mark.parametrize("name", ["test.mgz", "tiny.mnc", "nifti1.hdr"])
def test_other_formats_are_read_and_written_as_nifti(name, tmp_path):
    if name.endswith(".hdr"):
        base = nib.Nifti1Pair(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([-1, 2, 3, 1]))
        nib.save(base, tmp_path / name)
        source = tmp_path / name
    else:
        source = WHEEL / name
    scan = read_scan(source)
    written = write_map(tmp_path / "out", scan.image[0].astype(np.float32), scan.grid)
    assert written.name == "out.nii.gz"
    np.testing.assert_allclose(nib.load(written).affine, nib.load(source).affine, atol=1e-5)
    np.testing.assert_array_equal(read_scan(written).image[0], scan.image[0].astype(np.float32))


@pytest.mark.data
@pytest.mark.parametrize("name", ["t1/t1w", "t2/t2", "t2s/t2s"])
def test_spinal_cord_keeps_its_geometry(name, data_root, tmp_path):
    source = data_root / "spinal_cord" / f"{name}.nii.gz"
    scan = read_scan(source)
    label = next(iter(sorted((source.parent).glob("*seg-manual*")) or sorted(source.parent.glob("*_seg*"))))
    labels = read_labels(label, scan.grid, image=source)
    assert labels.any()
    written = write_map(tmp_path / "labels.nii.gz", labels.astype(np.uint8), scan.grid)
    assert_same_geometry(source, written)
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), np.asarray(nib.load(label).dataobj))


@given(affines(degrees=30, shear=0.0), st.integers(0, 47), st.integers(0, 1000))
def test_a_label_in_another_orientation_than_its_image_is_brought_to_it(affine, turn, seed):
    folder = Path(os.environ["SSMIS_TEST_FOLDER"])
    labels = np.random.default_rng(seed).integers(0, 5, (3, 4, 5)).astype(np.int16)
    source = nib.Nifti1Image(labels, affine)
    code = np.column_stack([np.array(list(__import__("itertools").permutations(range(3)))[turn % 6]),
                            [1 if turn // 6 >> axis & 1 else -1 for axis in range(3)]])  # fmt: skip
    nib.save(source, folder / "image.nii")
    nib.save(source.as_reoriented(code), folder / "label.nii")
    scan = read_scan(folder / "image.nii")
    np.testing.assert_array_equal(read_labels(folder / "label.nii", scan.grid), scan.image[0])


def test_a_label_without_geometry_is_taken_voxel_by_voxel(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 6], [0, 0, -3, 7], [0, 0, 0, 1]])
    labels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = save(tmp_path / "image.nii", labels, affine, qform=1, sform=1)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "label.nii")
    scan = read_scan(image)
    np.testing.assert_array_equal(read_labels(tmp_path / "label.nii", scan.grid), scan.image[0])


def test_float_labels_are_whole_numbers_or_an_error(tmp_path):
    good = save(tmp_path / "good.nii", np.array([[[0, 1.0002, 2]]], dtype=np.float32), np.eye(4), sform=1)
    grid = read_scan(good).grid
    assert read_labels(good, grid).tolist() == [[[0, 1, 2]]]
    for value, told in ((0.5, r"values \[0.5\]"), (np.nan, "nan")):
        bad = save(tmp_path / "bad.nii", np.array([[[0, value, 2]]], dtype=np.float32), np.eye(4), sform=1)
        with pytest.raises(DataError, match=told):
            read_labels(bad, grid)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_pictures_there_and_back(suffix, tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (5, 7)).astype(np.uint8) * 255
    Image.fromarray(labels).save(tmp_path / f"a{suffix}")
    scan = read_scan(tmp_path / f"a{suffix}", spacing_mm=(0.1, 0.2))
    assert scan.image.shape == (1, 5, 7)
    assert scan.grid.spacing_mm == (0.1, 0.2)
    written = write_map(tmp_path / "out", read_labels(tmp_path / f"a{suffix}", scan.grid).astype(np.uint8), scan.grid)
    np.testing.assert_array_equal(np.asarray(Image.open(written)), labels)


def test_colour_pictures_have_bands_and_grey_ones_in_colour_have_one(tmp_path):
    colour = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(np.repeat(colour[..., :1], 3, 2)).save(tmp_path / "grey.png")
    Image.fromarray(np.concatenate([colour, colour[..., :1]], 2)).save(tmp_path / "alpha.png")
    assert read_scan(tmp_path / "colour.png").image.shape == (3, 5, 7)
    assert read_scan(tmp_path / "alpha.png").image.shape == (3, 5, 7)
    assert read_scan(tmp_path / "grey.png").image.shape == (1, 5, 7)
    grid = read_scan(tmp_path / "colour.png").grid
    with pytest.raises(DataError, match="3 channels; colours are no classes"):
        read_labels(tmp_path / "colour.png", grid)


def test_channels_are_stacked_and_must_share_the_grid(tmp_path):
    first = save(tmp_path / "a_0000.nii", np.zeros((2, 3, 4), np.int16), np.eye(4), sform=1)
    second = save(tmp_path / "a_0001.nii", np.ones((2, 3, 4), np.int16), np.eye(4), sform=1)
    assert read_scan(first, channels=[second]).image.mean((1, 2, 3)).tolist() == [0, 1]
    third = save(tmp_path / "a_0002.nii", np.ones((2, 3, 5), np.int16), np.eye(4), sform=1)
    with pytest.raises(DataError, match=r"a_0002.nii: this channel has shape \(2, 3, 5\)"):
        read_scan(first, channels=[third])


def test_reading_the_grid_touches_no_voxel(tmp_path):
    source = save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16), np.diag([-1.0, 2, 3, 1]), sform=1)
    source.write_bytes(source.read_bytes()[:352])
    grid, channels, kind = read_grid(source)
    assert (grid.shape, grid.orientation, channels, kind) == ((2, 3, 4), "LAS", 1, "int16")
    with pytest.raises(DataError, match="perhaps truncated"):
        read_scan(source)


def test_suffixes():
    assert suffix_of("a/b.NII.GZ") == ".nii.gz"
    assert suffix_of("a/b.txt") == ""
    assert stem_of("a/b.c.png") == "b.c"
    with pytest.raises(ValueError, match="unsigned integers"):
        write_map("x.png", np.zeros((2, 2), np.float32), Grid((2, 2), (1, 1)))
