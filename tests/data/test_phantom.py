# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import ndimage

import ssmis.data.phantom
from ssmis.data import DataError, atrium_phantom, la_split, load_la, write_phantoms
from ssmis.data.la import FOLDER


@pytest.fixture(scope="module")
def phantoms():
    return [atrium_phantom(seed) for seed in range(12)]


def test_types_and_scale(phantoms):
    for image, label in phantoms:
        assert (image.shape, image.dtype) == ((48, 48, 32), np.float32)
        assert (label.shape, label.dtype) == ((48, 48, 32), np.uint8)
        assert abs(image.mean()) < 1e-4
        assert image.std() == pytest.approx(1, abs=1e-4)
        assert set(np.unique(label)) == {0, 1}


def test_same_seed_same_case_other_seed_other_case(phantoms):
    again = atrium_phantom(3)
    np.testing.assert_array_equal(again[0], phantoms[3][0])
    np.testing.assert_array_equal(again[1], phantoms[3][1])
    assert len({label.tobytes() for _, label in phantoms}) == len(phantoms)


def test_the_atrium_is_one_piece_of_plausible_size(phantoms):
    for _, label in phantoms:
        pieces, count = ndimage.label(label)
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() / label.sum() > 0.9, count
        assert 0.015 < label.mean() < 0.12


def test_intensity_alone_does_not_decide(phantoms):
    # The best threshold of each case, chosen with its label in hand, still is poor: others are as bright.
    for image, label in phantoms:
        scores = []
        for threshold in np.quantile(image, np.linspace(0.5, 0.98, 25)):
            guess = image > threshold
            scores.append(2 * (guess & (label > 0)).sum() / (guess.sum() + label.sum()))
        assert max(scores) < 0.75


def test_blood_is_brighter_than_its_wall(phantoms):
    for image, label in phantoms:
        smooth = ndimage.gaussian_filter(image, 1)
        shell = ndimage.binary_dilation(label, iterations=3) & ~ndimage.binary_dilation(label, iterations=1)
        assert smooth[label > 0].mean() > smooth[shell].mean()


def test_place_is_consistent_but_not_fixed(phantoms):
    centres = np.array([ndimage.center_of_mass(label) for _, label in phantoms])
    assert np.abs(centres.mean(0) - np.array([24, 24, 16])).max() < 5
    assert centres.std(0).min() > 0.5


def test_appearance_varies(phantoms):
    brightness = [image[label > 0].mean() for image, label in phantoms]
    assert np.std(brightness) > 0.2


def test_any_size():
    image, label = atrium_phantom(0, size=(33, 20, 17))
    assert image.shape == label.shape == (33, 20, 17)
    with pytest.raises(ValueError, match=r"size is \(8, 20, 20\); expected three lengths of at least 16"):
        atrium_phantom(0, size=(8, 20, 20))


def test_written_phantoms_are_an_la_data_set(tmp_path):
    write_phantoms(tmp_path, labelled=2, unlabelled=1, test=1, size=(16, 16, 16), seed=5)
    split = la_split(tmp_path, labelled=2, test="test.list")
    assert [len(group) for group in (split.labelled, split.unlabelled, split.test)] == [2, 1, 1]
    assert len(list((tmp_path / FOLDER).iterdir())) == 4
    volume = load_la(split.test[0])
    assert volume.image.shape == (1, 16, 16, 16)
    write_phantoms(tmp_path / "other", labelled=2, size=(16, 16, 16), seed=6)
    assert not (tmp_path / "other" / "test.list").exists()
    other = load_la(la_split(tmp_path / "other", labelled=2).labelled[0])
    assert not np.array_equal(other.image, load_la(split.labelled[0]).image)


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_phantoms_that_are_there_are_not_written_again(tmp_path, monkeypatch):
    settings = {"labelled": 2, "unlabelled": 1, "test": 1, "size": (16, 16, 16), "seed": 5}
    write_phantoms(tmp_path, **settings)
    before = stamps(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ssmis.data.phantom, "atrium_phantom", None)  # drawing one would fail
        assert write_phantoms(tmp_path, **{**settings, "size": [16, 16, 16]}) == tmp_path
    assert stamps(tmp_path) == before


@pytest.mark.parametrize("lost", ["phantoms.json", "train.list", "test.list", f"{FOLDER}/phantom_0001/mri_norm2.h5"])
def test_incomplete_phantoms_are_completed(tmp_path, lost):
    settings = {"labelled": 2, "test": 1, "size": (16, 16, 16)}
    write_phantoms(tmp_path, **settings)
    before = stamps(tmp_path)
    (tmp_path / lost).unlink()
    write_phantoms(tmp_path, **settings)
    after = stamps(tmp_path)
    assert set(after) == set(before)
    if lost != "phantoms.json":  # without it nobody knows what the others are
        assert {path for path in after if after[path] != before[path]} == {tmp_path / lost}
    assert len(la_split(tmp_path, labelled=2, test="test.list").test) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"labelled": 1}, {"size": (16, 16, 18)}, {"test": 0}])
def test_other_settings_in_one_folder_are_an_error(tmp_path, change):
    settings = {"labelled": 2, "unlabelled": 0, "test": 1, "size": (16, 16, 16), "seed": 0}
    write_phantoms(tmp_path, **settings)
    before = stamps(tmp_path)
    (name,) = change
    value = list(change[name]) if name == "size" else change[name]
    was = list(settings[name]) if name == "size" else settings[name]
    with pytest.raises(DataError, match=r"phantoms\.json: the phantoms there have settings") as caught:
        write_phantoms(tmp_path, **{**settings, **change})
    found, expected = str(caught.value).split("; expected ")
    assert f"'{name}': {was}" in found
    assert f"'{name}': {value}" in expected
    assert stamps(tmp_path) == before
