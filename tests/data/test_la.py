# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import h5py
import numpy as np
import pytest

from ssmis.data import (
    Case,
    DataError,
    Split,
    TwoStreamSampler,
    Volume,
    check_volume,
    find_la,
    la_cases,
    la_split,
    load_la,
    read_list,
    write_la,
)
from ssmis.data.la import FILE, FOLDER

SHAPE = (5, 6, 4)


def volume(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=SHAPE).astype(np.float32), random.integers(0, 2, SHAPE).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    names = [f"case{i}" for i in range(6)]
    for i, name in enumerate(names):
        write_la(tmp_path, name, *volume(i))
    (tmp_path / "train.list").write_text("\n".join(names[:5]) + "\n\n")
    (tmp_path / "val.list").write_text("  case4 \n")
    (tmp_path / "test.list").write_text("case5\n")
    return tmp_path


def one(root, name="case0"):
    (case,) = la_cases(root, [name])
    return case


def rewrite(case, **datasets):
    with h5py.File(case.image, "w") as file:
        for key, values in datasets.items():
            file[key] = values


def test_what_is_written_is_read_back(root):
    got, (image, label) = load_la(one(root, "case3")), volume(3)
    assert got.image.dtype == np.float32
    assert got.label.dtype == np.uint8
    np.testing.assert_array_equal(got.image, image[None])
    np.testing.assert_array_equal(got.label, label)
    assert got.spacing_mm == (0.625, 0.625, 0.625)


def test_a_case_without_label_dataset_is_readable_as_unlabelled(root):
    image, _ = volume()
    write_la(root, "bare", image, None)
    (case,) = la_cases(root, ["bare"], labelled=False)
    assert load_la(case).label is None
    assert load_la(one(root, "bare"), with_label=False).label is None


def test_label_that_is_not_asked_for_is_not_read(root):
    image, _ = volume()
    case = one(root)
    rewrite(case, image=image, label=np.full((1, 1), 99.5))
    (hidden,) = la_cases(root, ["case0"], labelled=False)
    assert load_la(case, with_label=False).label is None
    assert load_la(hidden, with_label=True).label is None


def test_whole_float_labels_are_accepted(root):
    image, label = volume()
    rewrite(one(root), image=image, label=label.astype(np.float32))
    np.testing.assert_array_equal(load_la(one(root)).label, label)


def test_list_drops_blanks(root):
    assert read_list(root / "train.list") == ["case0", "case1", "case2", "case3", "case4"]
    assert read_list(root / "val.list") == ["case4"]


@pytest.mark.parametrize("inside", ["", "la", FOLDER])
def test_the_folder_is_found_from_near_it(root, tmp_path, inside):
    if inside == "la":
        (tmp_path / "outer").mkdir()
        (tmp_path / "outer" / "la").symlink_to(root)
        assert find_la(tmp_path / "outer") == tmp_path / "outer" / "la"
    else:
        assert find_la(root / inside) == root


def test_missing_list(root):
    with pytest.raises(DataError, match=r"none\.list: there is no such list file"):
        read_list(root / "none.list")


def test_empty_list(root):
    (root / "none.list").write_text("\n \n")
    with pytest.raises(DataError, match=r"none\.list: the list names no case"):
        read_list(root / "none.list")


def test_repeated_case_is_named_with_its_line(root):
    (root / "train.list").write_text("case0\ncase1\n\ncase0\n")
    with pytest.raises(DataError, match=r"train\.list, line 4: case 'case0' was already named in line 1"):
        la_split(root, labelled=1)


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: there is no such folder"):
        find_la(tmp_path / "nowhere")


def test_root_without_the_layout(tmp_path):
    with pytest.raises(DataError, match=r"neither it nor its folder 'la' holds '2018LA_Seg_Training Set'"):
        find_la(tmp_path)


def test_missing_case(root):
    with pytest.raises(DataError, match=r"mri_norm2\.h5: case 'ghost' has no such file"):
        la_cases(root, ["case0", "ghost"])


def test_case_asked_for_twice(root):
    with pytest.raises(DataError, match="case 'case0' is twice in names"):
        la_cases(root, ["case0", "case0"])


@pytest.mark.parametrize("missing", ["image", "label"])
def test_missing_dataset_says_which_there_are(root, missing):
    image, label = volume()
    other = {"image": image, "label": label, "spam": label}
    del other[missing]
    rewrite(one(root), **other)
    with pytest.raises(DataError, match=rf"mri_norm2\.h5: there is no data set '{missing}'; it has '\w+', 'spam'"):
        load_la(one(root))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(root, value):
    image, label = volume()
    image[1, 2, 3] = value
    rewrite(one(root), image=image, label=label)
    with pytest.raises(DataError, match=r"mri_norm2\.h5: the image has 1 NaN or infinite voxels of 120"):
        load_la(one(root))


def test_label_out_of_range(root):
    image, label = volume()
    label[0, 0, 0] = 255
    rewrite(one(root), image=image, label=label)
    with pytest.raises(DataError, match=r"mri_norm2\.h5: the label has values \[0, 1, 255\]; expected 0 to 1"):
        load_la(one(root))
    assert load_la(one(root), classes=256).label.max() == 255


@pytest.mark.parametrize("value", [0.5, -1.0, 300.0, np.nan, np.inf])
def test_label_that_is_no_class_index(root, value):
    image, label = volume()
    label = label.astype(np.float32)
    label[0, 0, 0] = value
    rewrite(one(root), image=image, label=label)
    with pytest.raises(DataError, match=rf"the label has values \[{value}\]; expected whole numbers"):
        load_la(one(root))


@pytest.mark.parametrize("name", ["image", "label"])
def test_group_instead_of_a_data_set(root, name):
    image, label = volume()
    values = {"image": image, "label": label}
    del values[name]
    rewrite(one(root), **values)
    with h5py.File(one(root).image, "a") as file:
        file.create_group(name)
    with pytest.raises(DataError, match=rf"mri_norm2\.h5: '{name}' is a Group; expected a data set"):
        load_la(one(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((5, 0, 4), np.float32)}, r"the image has shape \(5, 0, 4\); expected at least one voxel"),
        ({"label": np.zeros((0, 6, 4), np.uint8)}, r"the label has shape \(0, 6, 4\); expected at least one voxel"),
        ({"image": h5py.Empty("f")}, "the image has shape None; expected at least one voxel"),
        ({"image": np.full(SHAPE, b"spam")}, r"the image has dtype \|S4; expected real numbers"),
        ({"image": np.ones(SHAPE, np.complex64)}, "the image has dtype complex64; expected real numbers"),
        ({"image": np.full(SHAPE, 1e300)}, "the image has 120 NaN or infinite voxels of 120"),
    ],
)
def test_data_set_without_usable_voxels(root, change, message):
    image, label = volume()
    rewrite(one(root), **{"image": image, "label": label, **change})
    with pytest.raises(DataError, match=rf"mri_norm2\.h5: {message}"):
        load_la(one(root))


@pytest.mark.parametrize("error", [OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError])
def test_whatever_h5py_raises_is_a_data_error(root, monkeypatch, error):
    def broken(self, key):
        raise error("bad header")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", broken)
    with pytest.raises(DataError, match=r"case0/mri_norm2\.h5: cannot be read as HDF5.*bad header") as caught:
        load_la(one(root))
    assert isinstance(caught.value.__cause__, error)


def test_flipped_bytes_give_a_volume_or_a_data_error(root):
    case = one(root)
    content = case.image.read_bytes()
    random = np.random.default_rng(0)
    outcomes = []
    for _ in range(60):
        damaged = bytearray(content)
        for at in random.integers(0, len(content), 8):
            damaged[at] ^= random.integers(1, 256)
        case.image.write_bytes(damaged)
        try:
            outcomes.append(type(load_la(case)))
        except DataError as error:
            assert str(error).startswith(f"{case.image}: ")  # noqa: PT017
            outcomes.append(DataError)
    assert set(outcomes) == {Volume, DataError}


def test_shape_mismatch(root):
    image, label = volume()
    rewrite(one(root), image=image, label=label[:-1])
    with pytest.raises(DataError, match=r"label has shape \(4, 6, 4\); expected \(5, 6, 4\) to match the image"):
        load_la(one(root))


def test_wrong_number_of_axes(root):
    image, label = volume()
    rewrite(one(root), image=image[0], label=label[0])
    with pytest.raises(DataError, match=r"the image has shape \(6, 4\); expected 3 axes"):
        load_la(one(root))


@pytest.mark.parametrize("keep", [0, 100, 0.6])
def test_truncated_file_chains_the_cause(root, keep):
    case = one(root)
    content = case.image.read_bytes()
    case.image.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(DataError, match=r"case0/mri_norm2\.h5: cannot be read as HDF5") as caught:
        load_la(case)
    assert isinstance(caught.value.__cause__, OSError)


def test_split_takes_validation_out_of_training(root):
    split = la_split(root, labelled=2, val="val.list", test=root / "test.list")
    ids = {role: [case.id for case in cases] for role, cases in vars(split).items()}
    assert ids == {
        "labelled": ["case0", "case1"],
        "unlabelled": ["case2", "case3"],
        "val": ["case4"],
        "test": ["case5"],
    }
    assert all(case.label is None for case in split.unlabelled)
    assert all(case.labelled for case in (*split.labelled, *split.val, *split.test))


def test_a_list_of_your_own_is_found_from_where_you_are(root, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    Path("own.list").write_text("case3\n")
    Path("val.list").write_text("case0\n")  # the one of the data set comes first
    assert [case.id for case in la_split(root, labelled=1, val="own.list").val] == ["case3"]
    assert [case.id for case in la_split(root, labelled=1, val="val.list").val] == ["case4"]
    with pytest.raises(DataError, match=rf"{root}/no\.list: there is no such list file"):
        la_split(root, labelled=1, val="no.list")


@pytest.mark.parametrize("labelled", ["all", 5])
def test_split_without_unlabelled(root, labelled):
    split = la_split(root, labelled=labelled)
    assert len(split.labelled) == 5
    assert split.unlabelled == split.val == split.test == ()


@pytest.mark.parametrize("labelled", [0, 5, -1])
def test_more_or_fewer_labelled_than_there_are(root, labelled):
    with pytest.raises(DataError, match=rf"train\.list: {labelled} labelled cases asked for; expected 1 to 4"):
        la_split(root, labelled=labelled, val="val.list")


def test_test_case_in_training(root):
    (root / "test.list").write_text("case1\n")
    with pytest.raises(DataError, match=r"case 'case1' is in both train\.list and test"):
        la_split(root, labelled=2, test="test.list")


def test_test_case_in_validation(root):
    with pytest.raises(DataError, match="case 'case4' is in both val and test"):
        la_split(root, labelled=2, val="val.list", test="val.list")


def test_split_refuses_a_case_with_two_roles(root):
    case = one(root)
    with pytest.raises(DataError, match="case 'case0' is in both labelled and unlabelled"):
        Split(labelled=(case,), unlabelled=(case,))


def test_fewer_cases_than_a_batch_needs(root):
    split = la_split(root, labelled=1)
    with pytest.raises(DataError, match="there are 1 labelled cases; a batch needs 2"):
        TwoStreamSampler([case.id for case in split.labelled], [case.id for case in split.unlabelled])


def test_check_volume_accepts_unlabelled():
    volume_ = Volume(np.zeros((1, 2, 2), np.float32), None, (1.0, 1.0))
    check_volume(volume_, "somewhere", classes=2)
    assert Case("a", None, None, (1.0,)).labelled is False


@pytest.mark.data
def test_real_volumes(data_root):
    split = la_split(data_root, labelled=8, val="dev_val.list")
    assert [len(group) for group in (split.labelled, split.unlabelled, split.val)] == [8, 60, 12]
    got = load_la(split.labelled[0])
    assert got.image.shape[1:] == got.label.shape
    assert got.image.shape[3] == 88
    assert 0.02 < got.label.mean() < 0.2
    assert load_la(split.unlabelled[0]).label is None
    assert (split.labelled[0].image.parent.parent.name, split.labelled[0].image.name) == (FOLDER, FILE)
