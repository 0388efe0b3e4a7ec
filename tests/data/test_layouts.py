# SPDX-License-Identifier: Apache-2.0
"""Every layout is found by itself, with the right pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from data.folders import nifti, picture, plain, scan

from ssmis.data import DataError, find_dataset
from ssmis.data.la import write_la
from ssmis.data.scans import case_labels, case_scan
from ssmis.data.splits import make_split, read_split, write_split

pytest.importorskip("nibabel")
IMAGE, LABEL = scan(0)


def pairs(dataset):
    return {case.id: case.label is not None for case in dataset.cases}


def test_msd(tmp_path):
    for name in ("a", "b"):
        nifti(tmp_path / "imagesTr" / f"{name}.nii.gz", IMAGE)
        nifti(tmp_path / "labelsTr" / f"{name}.nii.gz", LABEL)
    nifti(tmp_path / "imagesTs" / "c.nii.gz", IMAGE)
    nifti(tmp_path / "imagesUn" / "d.nii.gz", IMAGE)
    info = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("a", "b")],
        "test": ["./imagesTs/c.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    found = find_dataset(tmp_path)
    assert found.layout == "MSD"
    assert pairs(found) == {"a": True, "b": True, "c": False, "d": False}
    assert found.roles == {"c": "test"}
    assert (found.label_names, found.channel_names) == ({0: "background", 1: "organ"}, ("MRI",))
    assert {case.id for case in make_split(found, test=0).unlabelled} == {"d"}
    assert found.notes == ()
    nifti(tmp_path / "imagesTr" / "e.nii.gz", IMAGE)
    assert find_dataset(tmp_path).notes == ("1 images of imagesTr are not listed in dataset.json, such as e.nii.gz",)


def test_nnunet_with_two_channels(tmp_path):
    for folder, name in (("imagesTr", "a"), ("imagesTr", "b"), ("imagesUn", "u"), ("imagesTs", "t")):
        for channel in range(2):
            nifti(tmp_path / folder / f"{name}_{channel:04d}.nii.gz", IMAGE + channel)
    nifti(tmp_path / "labelsTr" / "a.nii.gz", LABEL)
    nifti(tmp_path / "labelsTr" / "z.nii.gz", LABEL)
    info = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1, "ring": [1, 2]}}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    found = find_dataset(tmp_path)
    assert found.layout == "nnU-Net"
    assert pairs(found) == {"a": True, "b": False, "u": False, "t": False}
    assert found.channel_names == ("T1", "T2")
    assert "z.nii.gz: this label has no image" in found.notes[0]
    assert case_scan(found.cases[0]).image.shape == (2, *IMAGE.shape)
    (tmp_path / "dataset.json").unlink()
    assert find_dataset(tmp_path).layout == "nnU-Net"  # the names alone tell it


def test_plain_folders_with_and_without_an_ending(tmp_path):
    found = find_dataset(plain(tmp_path / "a"))
    assert found.layout == "images/ and labels/"
    assert [*pairs(found).values()] == [True] * 3 + [False] * 3
    nifti(tmp_path / "b" / "images" / "x.nii", IMAGE)
    nifti(tmp_path / "b" / "masks" / "x_seg.nii", LABEL)
    nifti(tmp_path / "b" / "unlabelled" / "y.nii", IMAGE)
    nifti(tmp_path / "b" / "images" / "._x.nii", IMAGE)  # what macOS leaves behind
    assert pairs(find_dataset(tmp_path / "b")) == {"x": True, "y": False}


def test_labels_beside_images(tmp_path):
    for name in ("p1/t1.nii.gz", "p2/t1.nii.gz"):
        nifti(tmp_path / name, IMAGE)
    nifti(tmp_path / "p1/t1_seg-manual.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert found.layout == "labels beside images"
    assert pairs(found) == {"p1_t1": True, "p2_t1": False}


@pytest.mark.parametrize("ending", ["", "_seg"])
def test_a_number_of_four_digits_is_the_case_where_labels_have_it(tmp_path, ending):
    for index in range(3):  # names as cameras give them
        picture(tmp_path / "images" / f"img_{index:04d}.png", np.full((6, 8), index, np.uint8))
    picture(tmp_path / "labels" / f"img_0001{ending}.png", np.eye(6, 8, dtype=np.uint8))
    assert pairs(find_dataset(tmp_path)) == {"img_0000": False, "img_0001": True, "img_0002": False}


def test_a_number_of_four_digits_is_the_channel_where_labels_lack_it(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        nifti(tmp_path / "images" / f"{name}.nii.gz", IMAGE)
    nifti(tmp_path / "labels" / "a.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert pairs(found) == {"a": True, "b": False}
    assert all(len(case.channels) == 1 for case in found.cases)
    for index in (1, 2):
        nifti(tmp_path / "raw" / "imagesTr" / f"case_{index:04d}.nii.gz", IMAGE)
    assert pairs(find_dataset(tmp_path / "raw")) == {"case_0001": False, "case_0002": False}
    nifti(tmp_path / "raw" / "labelsTr" / "case_0001.nii.gz", LABEL)
    assert pairs(find_dataset(tmp_path / "raw")) == {"case_0001": True, "case_0002": False}


def test_an_exact_name_pairs_before_one_with_an_ending(tmp_path):
    for name in ("a", "a_mask", "b"):
        nifti(tmp_path / "images" / f"{name}.nii.gz", IMAGE)
    for name in ("a", "a_mask", "b_seg"):
        nifti(tmp_path / "labels" / f"{name}.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert {case.id: case.label.name for case in found.cases} == {
        "a": "a.nii.gz", "a_mask": "a_mask.nii.gz", "b": "b_seg.nii.gz"
    }  # fmt: skip


def test_a_run_inside_of_the_data_is_no_data(tmp_path):
    nifti(tmp_path / "a.nii.gz", IMAGE)
    nifti(tmp_path / "a_seg.nii.gz", LABEL)
    nifti(tmp_path / "runs" / "first" / "predictions" / "a.nii.gz", LABEL)
    assert set(pairs(find_dataset(tmp_path))) == {"a", "runs_first_predictions_a"}
    (tmp_path / "runs" / "first" / "options.json").write_text("{}")
    assert pairs(find_dataset(tmp_path)) == {"a": True}


def test_the_scan_of_most_subjects_is_the_image_of_bids(tmp_path):
    for subject in ("01", "02"):
        nifti(tmp_path / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz", IMAGE)
        for run in range(3):
            nifti(tmp_path / f"sub-{subject}/func/sub-{subject}_run-{run}_bold.nii.gz", IMAGE)
    for name in ("desc-a", "desc-b"):
        nifti(tmp_path / f"derivatives/sub-01_{name}_dseg.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert pairs(found) == {"sub-01_T1w": True, "sub-02_T1w": False}
    assert any("sub-01_desc-b_dseg.nii.gz: this is a further label" in note for note in found.notes)
    assert "6 images that are no T1w" in found.notes


def test_bids(tmp_path):
    for subject in ("01", "02"):
        for session in ("a", "b"):
            stem = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
            nifti(tmp_path / f"{stem}_T1w.nii.gz", IMAGE)
    nifti(tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz", IMAGE)
    nifti(tmp_path / "derivatives/manual/sub-01/ses-a/anat/sub-01_ses-a_desc-x_dseg.nii.gz", LABEL)
    found = find_dataset(tmp_path)
    assert found.layout == "BIDS"
    assert pairs(found) == {
        "sub-01_ses-a_T1w": True, "sub-01_ses-b_T1w": False, "sub-02_ses-a_T1w": False, "sub-02_ses-b_T1w": False
    }  # fmt: skip
    assert {case.subject for case in found.cases} == {"sub-01", "sub-02"}


def test_pictures_with_pixel_sizes(tmp_path):
    for index in range(3):
        picture(tmp_path / "images" / f"{index}.png", np.full((6, 8), index, np.uint8))
    picture(tmp_path / "labels" / "0_Annotation.png", np.eye(6, 8, dtype=np.uint8) * 255)
    (tmp_path / "pixel_size.csv").write_text("filename,pixel size(mm)\n0.png,0.5\n1.png,0.25\n")
    found = find_dataset(tmp_path)
    assert pairs(found) == {"0": True, "1": False, "2": False}
    assert [case.spacing_mm for case in found.cases] == [(0.5, 0.5), (0.25, 0.25), ()]
    assert set(np.unique(case_labels(found.cases[0], case_scan(found.cases[0]).grid))) == {0, 255}


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_tables(tmp_path, kind):
    for name in ("a", "b", "c"):
        nifti(tmp_path / f"{name}.nii.gz", IMAGE)
    nifti(tmp_path / "a_label.nii.gz", LABEL)
    rows = [
        {"image": "a.nii.gz", "label": "a_label.nii.gz", "split": "train", "subject": "s1"},
        {"image": "b.nii.gz", "label": "", "split": "", "subject": "s1"},
        {"image": "c.nii.gz", "label": "a_label.nii.gz", "split": "test", "subject": "s2"},
    ]
    if kind == "csv":
        text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    else:
        text = json.dumps({"cases": rows})
    (tmp_path / f"cases.{kind}").write_text(text)
    found = find_dataset(tmp_path)
    assert (
        found == find_dataset(tmp_path / f"cases.{kind}")
        or found.cases == find_dataset(tmp_path / f"cases.{kind}").cases
    )
    assert pairs(found) == {"a": True, "b": False, "c": True}
    split = make_split(found)
    assert ([c.id for c in split.test], [c.id for c in split.labelled]) == (["c"], ["a"])


def test_h5_with_lists(tmp_path):
    for name in ("A", "B", "C"):
        write_la(tmp_path, name, IMAGE, LABEL)
    (tmp_path / "train.list").write_text("A\nB\n")
    (tmp_path / "test.list").write_text("C\n")
    found = find_dataset(tmp_path)
    assert found.layout == "HDF5 with lists"
    assert pairs(found) == {"A": True, "B": True, "C": True}
    assert found.roles["C"] == "test"
    case = found.cases[0]
    np.testing.assert_array_equal(case_labels(case, case_scan(case).grid), LABEL)


def test_what_is_no_layout_says_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no layout fits; it holds notes.txt\. Expected one of"):
        find_dataset(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_dataset(tmp_path / "nowhere")


def test_splits_nest_keep_subjects_together_and_are_read_back(tmp_path):
    for subject in range(6):
        for visit in range(2):
            nifti(tmp_path / f"sub-{subject}/sub-{subject}_run-{visit}_T1w.nii.gz", IMAGE)
            nifti(tmp_path / f"derivatives/sub-{subject}_run-{visit}_dseg.nii.gz", LABEL)
    dataset = find_dataset(tmp_path)
    few, more = (make_split(dataset, labelled=share, test="20%", seed=3) for share in ("25%", "50%"))
    assert {case.id for case in few.labelled} < {case.id for case in more.labelled}
    assert few.test == more.test
    for split in (few, more):
        trained = {case.subject for case in (*split.labelled, *split.unlabelled)}
        assert not trained & {case.subject for case in split.test}
        assert not any(case.labelled for case in split.unlabelled)
        assert len(split.labelled) + len(split.unlabelled) + len(split.test) == 12
    assert make_split(dataset, seed=3).test != make_split(dataset, seed=5).test
    write_split(few, tmp_path / "split")
    assert read_split(dataset, tmp_path / "split") == few
    bare = replace(dataset, cases=tuple(replace(case, label=None) for case in dataset.cases))
    with pytest.raises(DataError, match=r"labelled\.list: case '.*' has no label; expected one, as when the list was"):
        read_split(bare, tmp_path / "split")
    chosen = tmp_path / "mine.list"
    chosen.write_text(f"{few.labelled[0].id}\n")
    assert make_split(dataset, labelled=str(chosen), seed=3).labelled == few.labelled[:1]
