# SPDX-License-Identifier: Apache-2.0
"""Each defect, put into clean phantoms, is found and named; nothing is found where there is none."""

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from tqdm import tqdm

from ssmis.data import FAMILIES, DataError, Family, load_la, verify, write_la, write_phantoms
from ssmis.data.fingerprint import Fingerprint, array_digest, likeness
from ssmis.data.la import FILE, FOLDER

FIRST, LABELLED, UNLABELLED, TEST = "phantom_0000", "phantom_0001", "phantom_0003", "phantom_0005"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("clean"), labelled=2, unlabelled=3, test=2, size=(24, 22, 20))


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "data")


def path_of(root, name):
    return root / FOLDER / name / FILE


def look(root, family="phantom", **options):
    return verify(root, family, progress=False, **options)


def volume(root, name):
    return load_la(FAMILIES["phantom"].case(root, name, "train"))


def rewrite(root, name, *, image=None, label=None):
    old = volume(root, name)
    write_la(root, name, old.image[0] if image is None else image, old.label if label is None else label)


def the_only(report, kind, *, serious=True):
    assert [finding.kind for finding in report.findings] == [kind], str(report)
    (finding,) = report.findings
    assert finding.serious is serious
    assert report.ok is not serious
    assert str(finding) in str(report)
    return finding


def test_nothing_is_found_where_nothing_is_wrong(root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report = look(root)
    assert report.findings == ()
    assert report.ok
    assert report.cases == {"train": 5, "test": 2}
    assert str(report) == f"phantom in {root}: 5 train, 2 test; problems: 0, notes: 0"
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_missing_file(root):
    path_of(root, UNLABELLED).unlink()
    finding = the_only(look(root), "missing")
    assert finding.where == UNLABELLED
    assert FILE in finding.message


def test_extra_file(root):
    shutil.copytree(path_of(root, FIRST).parent, root / FOLDER / "stranger")
    assert "stranger" in the_only(look(root), "extra", serious=False).where


@pytest.mark.parametrize("keep", [0, 100, 0.6])
def test_truncated_file(root, keep):
    path = path_of(root, TEST)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    finding = the_only(look(root), "unreadable")
    assert finding.where == TEST
    assert "truncated" in finding.message


@pytest.mark.parametrize(
    ("break_label", "message"),
    [
        (lambda label: label * 0, "no foreground"),
        (lambda label: label * 7, r"values [0, 7]; expected 0 to 1"),
        (lambda label: label[:-1], "to match the image"),
    ],
)
def test_label_problems(root, break_label, message):
    rewrite(root, LABELLED, label=break_label(volume(root, LABELLED).label))
    finding = the_only(look(root), "label")
    assert finding.where == LABELLED
    assert message in finding.message


def test_a_label_of_foreground_alone(root):
    rewrite(root, LABELLED, label=np.ones((24, 22, 20), np.uint8))
    finding = the_only(look(root), "label", serious=False)
    assert (finding.where, finding.message) == (LABELLED, "100% of the label is foreground.")


def test_a_label_that_is_not_there(root):
    with h5py.File(path_of(root, TEST), "a") as file:
        del file["label"]
    assert "no data set 'label'" in the_only(look(root), "label").message


def test_an_image_of_one_value(root):
    rewrite(root, TEST, image=np.zeros((24, 22, 20)))
    assert the_only(look(root), "constant").where == TEST


@pytest.mark.parametrize(("name", "serious"), [(TEST, True), (UNLABELLED, False)])
def test_exact_copy(root, name, serious):
    image = volume(root, FIRST).image[0]
    rewrite(root, name, image=image)
    finding = the_only(look(root), "duplicate", serious=serious)
    assert FIRST in finding.where
    assert name in finding.where


@pytest.mark.parametrize(
    "change", [lambda image: image[3:, 2:-2, :-3], lambda image: image[::-1]], ids=["cropped", "mirrored"]
)
def test_one_scan_cropped_or_mirrored(root, change):
    old = volume(root, FIRST)
    rewrite(root, TEST, image=change(old.image[0]), label=change(old.label))
    finding = the_only(look(root), "same scan")
    assert FIRST in finding.where
    assert TEST in finding.where


@pytest.mark.parametrize(
    "change", [lambda image: 1.001 * image[:, ::-1], lambda image: np.round(50 * image[::-1, :, ::-1])]
)
def test_a_mirrored_copy_with_other_values(root, change):
    old = volume(root, FIRST)
    rewrite(root, TEST, image=change(old.image[0]), label=change(old.label) > 0)
    finding = the_only(look(root), "near duplicate")
    assert FIRST in finding.where
    assert TEST in finding.where
    assert "one of them turned or mirrored" in finding.message


@pytest.mark.parametrize(
    ("change", "values", "told"),
    [
        (lambda array: np.rot90(array), lambda image: 1.7 * image + 3, "by 1.00, one of them turned or mirrored"),
        (lambda array: array.transpose(2, 0, 1), lambda image: 1.7 * image + 3, "turned or mirrored"),
        (lambda array: array, lambda image: -image, "by -1.00."),
        (lambda array: array[::-1], lambda image: 3 - 2 * image, "by -1.00, one of them turned or mirrored"),
        (
            lambda array: array[4:-1, 2:-2, :-3],
            lambda image: 1.7 * image + 3,
            "by 1.00 within the boxes of their labels",
        ),
        (
            lambda array: np.rot90(array[4:-1, 2:-2, :-3]).repeat(2, axis=2),
            lambda image: 3 - 2 * image,
            "by -1.00 within the boxes of their labels, one of them turned or mirrored",
        ),
    ],
    ids=[
        "turned",
        "axes exchanged",
        "inverted",
        "mirrored and inverted",
        "cropped",
        "cropped, turned, finer, inverted",
    ],
)
def test_a_copy_with_other_values_in_another_place(root, change, values, told):
    old = volume(root, FIRST)
    rewrite(root, TEST, image=change(values(old.image[0])), label=change(old.label))
    finding = the_only(look(root), "near duplicate")
    assert FIRST in finding.where
    assert TEST in finding.where
    assert told in finding.message


@pytest.mark.parametrize("by", [0, 1], ids=["same", "moved"])
@pytest.mark.parametrize(("name", "serious"), [(TEST, True), (UNLABELLED, False)])
def test_the_same_label_under_another_image(root, name, serious, by):
    rewrite(root, name, label=np.roll(volume(root, FIRST).label, by, axis=2))
    finding = the_only(look(root), "same label", serious=serious)
    assert FIRST in finding.where
    assert name in finding.where


def test_labels_that_say_nothing_of_a_patient_are_not_compared(root):
    small, cuboid = np.zeros((2, 24, 22, 20), np.uint8)
    small[3:9, 3:9, 3:9] = 1
    cuboid[3:13, 3:13, 3:13] = 1
    for label in (small, cuboid):
        for name in (FIRST, TEST):
            rewrite(root, name, label=label)
        assert look(root).findings == ()


def test_of_two_cases_one_is_cut_from_the_other(root):
    (root / "train.list").write_text(f"{FIRST}\n")
    (root / "test.list").write_text(f"{TEST}\n")
    assert look(root).ok
    old, other = volume(root, FIRST), volume(root, TEST).label
    for whole in (False, True):
        image = np.round(50 * old.image[0]) if whole else old.image[0]
        rewrite(root, FIRST, image=image)
        rewrite(root, TEST, image=image[8:, 6:, 5:], label=other[8:, 6:, 5:])
        kinds = {finding.kind for finding in look(root).findings if finding.serious}
        assert kinds == (set() if whole else {"same scan"})  # whole numbers are everybody's


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ({}, "both or neither of 'train' and 'labelled'"),
        ({"trian": "train.list"}, "which has 'trian'"),
        ({"train": "train.list", "valid": "test.list"}, "which has 'valid'"),
        ({"train": "train.list", "labelled": "train.list"}, "both or neither"),
    ],
)
def test_roles_that_there_are_not(root, lists, told):
    for call in (partial(look, root), partial(FAMILIES["phantom"].split, root, labelled=2)):
        with pytest.raises(ValueError, match=told):
            call(lists=lists)


def test_a_validation_list_that_leaves_nothing_to_train_on(root):
    lists = {"train": "train.list", "val": "train.list"}
    (finding,) = look(root, lists=lists).of_kind("list")
    assert "nothing is left to train on" in finding.message
    assert finding.serious
    with pytest.raises(DataError, match="no case that is not in the validation list"):
        FAMILIES["phantom"].split(root, labelled=2, lists=lists)
    with pytest.raises(ValueError, match="labelled is '2'; expected a whole number of patients or 'all'"):
        FAMILIES["phantom"].split(root, labelled="2")


@pytest.mark.parametrize("name", [f"./{TEST}", f"{TEST}/", f"a//{TEST}", f"a/./{TEST}"])
def test_a_case_has_one_name(root, name):
    (root / "test.list").write_text(f"{name}\n")
    with pytest.raises(DataError, match="is no name of a case"):
        FAMILIES["phantom"].split(root, labelled=2)


def test_near_copy(root):
    old = volume(root, FIRST)
    noise = 0.1 * np.random.default_rng(0).normal(size=old.image[0].shape)
    rewrite(root, TEST, image=1.1 * old.image[0] + noise)
    finding = the_only(look(root), "near duplicate")
    assert FIRST in finding.where
    assert TEST in finding.where
    assert look(root, near=1.0).ok


def test_name_twice_in_a_list(root):
    with (root / "train.list").open("a") as file:
        file.write(f"{FIRST}\n")
    report = look(root)
    assert "was already named in line 1" in the_only(report, "list").message
    assert report.cases["train"] == 5


def test_case_in_both_lists(root):
    with (root / "test.list").open("a") as file:
        file.write(f"{UNLABELLED}\n")
    report = look(root)
    assert [finding.where for finding in report.of_kind("overlap")] == [UNLABELLED]
    assert not report.ok


def test_missing_list(root):
    (root / "test.list").unlink()
    report = look(root)
    assert "there is no such list file" in report.of_kind("list")[0].message
    assert {finding.kind for finding in report.findings} == {"list", "extra"}


def test_a_validation_list_is_cut_from_the_training_list(root):
    (root / "val.list").write_text(f"{UNLABELLED}\n")
    report = look(root, lists={"train": "train.list", "val": "val.list", "test": "test.list"})
    assert report.findings == ()
    assert report.cases == {"train": 4, "val": 1, "test": 2}
    rewrite(root, UNLABELLED, image=volume(root, FIRST).image[0])  # now a leak, before a copy inside the training list
    assert not look(root, lists={"train": "train.list", "val": "val.list", "test": "test.list"}).ok


def test_another_list_than_the_public_one(root):
    report = look(root, "la/paper")
    assert [finding.message for finding in report.of_kind("count")] == [
        "5 cases; the public list has 80.",
        "2 cases; the public list has 20.",
    ]
    assert report.of_kind("order")[0].where == "train list, line 1"


@pytest.mark.parametrize("part", ["image", "label"])
def test_changed_values(root, monkeypatch, part):
    public = {}
    for index in range(5):
        old = volume(root, f"phantom_{index:04d}")
        public[f"phantom_{index:04d}"] = (array_digest(old.image[0]), array_digest(old.label))
    monkeypatch.setattr(sys.modules[verify.__module__], "_known", lambda family: public)
    assert look(root).findings == ()
    old = volume(root, LABELLED)
    array = (old.image[0] if part == "image" else old.label).copy()
    array[5, 5, 5] += 1
    rewrite(root, LABELLED, **{part: array})
    finding = the_only(look(root), "changed")
    assert finding.where == LABELLED
    assert part in finding.message


def test_the_digest_does_not_depend_on_the_layout():
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    assert array_digest(array) == array_digest(np.asfortranarray(array.astype(">f4")))
    assert array_digest(array) != array_digest(array.reshape(5, 4, 6))


def test_values_that_all_scans_share_say_nothing(root):
    """As in CT that was rescaled: every image is made of the same few numbers."""
    for index in range(7):
        rewrite(root, f"phantom_{index:04d}", image=np.round(10 * volume(root, f"phantom_{index:04d}").image[0]) / 10)
    assert look(root).findings == ()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("scale", [lambda image: image / 255, lambda image: (image - 100) / 400])
def test_few_scans_of_one_scale_of_numbers_are_no_copies(count, scale):
    rng = np.random.default_rng(count)
    images = [scale(rng.integers(0, 200, (16, 16, 16)).astype(np.float32)) for _ in range(count)]
    assert [len(Fingerprint.of(image).values) for image in images] == [0] * count
    scored = [(image - image.mean()) / image.std() for image in images]  # each scan by itself: it has values of its own
    marks = [Fingerprint.of(image) for image in scored]
    assert all(len(mark.values) > 100 for mark in marks)
    assert marks[0].shared_values(marks[1]) < 0.02


def test_a_patient_on_both_sides(root):
    family = replace(FAMILIES["phantom"], name="own", patient=r"\d\d$")
    for name, new in (("phantom_0004", "a04"), (TEST, "b04")):
        path_of(root, name).parent.rename(root / FOLDER / new)
        for file in ("train.list", "test.list"):
            (root / file).write_text((root / file).read_text().replace(name, new))
    assert the_only(look(root, family), "patient").where == "04"


@pytest.mark.parametrize(
    ("family", "train", "test", "told"),
    [
        ("pancreas/mcnet", ["image0002", "image0070", "image0001"], ["image0025", "image0003"],
         "known to be one patient; image0002, image0070 in the train list and image0025 in the test list."),
        ("pancreas/mcnet", ["image0002", "image0070"], ["image0001"], ""),
        ("pancreas/mcf", ["image0070"], ["image0002"],
         "known to be one patient; image0070 in the train list and image0002 in the test list."),
        ("acdc", ["patient074_frame01_slice_1"], ["patient076_frame01", "patient075_frame01"],
         "known to be one patient; patient074 in the train list and patient076 in the test list."),
        ("acdc", ["patient074_frame01_slice_1", "patient076_frame01_slice_1"], ["patient075_frame01"], ""),
    ],
)  # fmt: skip
def test_a_patient_that_has_two_names(tmp_path, family, train, test, told):
    for role, names in (("train", train), ("test", test)):
        (tmp_path / f"{role}.list").write_text("\n".join(names))
    report = look(tmp_path, family, lists={"train": "train.list", "test": "test.list"})
    assert [finding.message for finding in report.of_kind("patient")] == ([told] if told else [])


def test_a_patient_that_has_two_names_counts_twice_in_published_tables():
    acdc = FAMILIES["acdc"]
    assert acdc.patient_of("patient074_frame01_slice_1") != acdc.patient_of("patient076_frame01_slice_1")


@pytest.fixture
def slices(tmp_path):
    """Slices for training, volumes for the test, as in ACDC."""
    (tmp_path / "data" / "slices").mkdir(parents=True)
    random = np.random.default_rng(0)

    def write(name, image):
        with h5py.File(tmp_path / "data" / f"{name}.h5", "w") as file:
            file["image"] = image.astype(np.float32)
            file["label"] = np.digitize(image, [0.5, 1.0, 1.5]).astype(np.uint8)

    names = [f"patient{p:03d}_frame01_slice_{k}" for p in (3, 1, 2) for k in (1, 2)]
    planes = random.normal(size=(len(names), 20, 18))
    for name, plane in zip(names, planes):
        write(f"slices/{name}", plane)
    write("patient009_frame01", random.normal(size=(3, 20, 18)))
    (tmp_path / "train_slices.list").write_text("\n".join(names))
    (tmp_path / "test.list").write_text("patient009_frame01\n")
    return tmp_path, planes, write


SLICES = {"train": "train_slices.list", "test": "test.list"}


def test_slices_and_volumes(slices):
    root, planes, write = slices
    assert look(root, "acdc", lists=SLICES).findings == ()
    write("patient009_frame01", np.concatenate([np.random.default_rng(1).normal(size=(2, 20, 18)), planes[3:4]]))
    finding = the_only(look(root, "acdc", lists=SLICES), "duplicate")
    assert "patient009_frame01 slice 2 (test)" in finding.where
    assert "patient001_frame01_slice_2 (train)" in finding.where


def test_labelled_slices_are_counted_in_patients(slices):
    split = FAMILIES["acdc"].split(slices[0], labelled=2, lists=SLICES)
    assert [case.id[:10] for case in split.labelled] == ["patient003"] * 2 + ["patient001"] * 2
    assert [case.id[:10] for case in split.unlabelled] == ["patient002"] * 2
    assert not any(case.labelled for case in split.unlabelled)
    assert load_la(split.labelled[0], classes=4).image.shape == (1, 20, 18)
    assert load_la(split.test[0], classes=4).image.shape == (1, 3, 20, 18)
    with pytest.raises(DataError, match="4 labelled cases of 'acdc' asked for; expected 1 to 3"):
        FAMILIES["acdc"].split(slices[0], labelled=4, lists=SLICES)


def test_the_standard_rule_takes_the_first_of_the_list(root):
    split = FAMILIES["phantom"].split(root, labelled=2)
    assert [case.id for case in split.labelled] == [FIRST, LABELLED]
    assert [len(group) for group in vars(split).values()] == [2, 3, 0, 2]
    assert len(FAMILIES["phantom"].split(root, labelled="all").labelled) == 5


def test_a_family_with_a_list_of_labelled_cases(root):
    own = {"labelled": "lab.txt", "unlabelled": "unlab.txt", "test": "test.list"}
    family = replace(FAMILIES["phantom"], name="own", lists=own)
    names = (root / "train.list").read_text().split()
    (root / "lab.txt").write_text("\n".join(names[:3]))
    (root / "unlab.txt").write_text("\n".join(names[3:]))
    assert look(root, family).findings == ()
    assert [case.id for case in family.split(root, labelled=3).labelled] == names[:3]
    with pytest.raises(DataError, match="2 labelled cases of 'own' asked for; expected 3, as its list has"):
        family.split(root, labelled=2)


@pytest.mark.parametrize(("name", "family"), [("la", "la"), ("la/cpu", "la"), ("pancreas/mcf", "pancreas/mcf")])
def test_a_protocol_names_its_family(root, tmp_path, name, family):
    (tmp_path / "empty" / FOLDER).mkdir(parents=True)
    report = look(tmp_path / "empty", name)
    assert report.family == family
    assert {finding.kind for finding in report.findings} == {"list"}


def test_wrong_arguments(root, tmp_path):
    with pytest.raises(ValueError, match="protocol is 'pancreas'; expected one of 'la', 'phantom'"):
        look(root, "pancreas")
    with pytest.raises(ValueError, match=r"near is 1\.5"):
        look(root, near=1.5)
    with pytest.raises(DataError, match="there is no such folder"):
        look(tmp_path / "nowhere", "acdc")


def test_progress_is_shown(root, capsys):
    verify(root, "phantom")
    tqdm._instances.clear()
    assert "7/7" in capsys.readouterr().err


def test_every_family_knows_its_files():
    for family in FAMILIES.values():
        assert isinstance(family, Family)
        assert set(family.counts) <= set(family.lists)
        assert family.case(Path("root"), "A", "train").image.suffix in ("", ".h5")


def test_constant_images_have_a_fingerprint():
    mark = Fingerprint.of(np.full((4, 5, 6), 1.5, np.float32))
    assert mark.correlation(mark) == 0.0
    assert mark.shared_values(mark) == 1.0
    assert likeness(mark.picture[None], mark.picture, turned=True)[0].tolist() == [0.0]


@pytest.mark.data
@pytest.mark.slow
def test_the_real_data_is_as_published(data_root):
    report = verify(data_root / "la", "la", lists={"train": "train.list", "val": "dev_val.list"}, progress=False)
    assert report.ok, str(report)
    assert report.cases == {"train": 68, "val": 12}
    assert [finding.kind for finding in report.findings] == ["near duplicate"] * 3
