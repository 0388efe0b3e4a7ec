# SPDX-License-Identifier: Apache-2.0
import csv
import math
from dataclasses import asdict

import numpy as np
import pytest

from ssmis.metrics import METRICS, evaluate_case, overlap_per_class, read_cases_csv, surface_distances, write_cases_csv


def square(at, size=3, label=1, shape=(12, 12)):
    labels = np.zeros(shape, np.int64)
    labels[at : at + size, at : at + size] = label
    return labels


def scores(pairs, classes=(1,)):
    rows = []
    for index, (prediction, reference) in enumerate(pairs):
        rows += evaluate_case(prediction, reference, classes=classes, spacing_mm=(3.0, 4.0), case=f"case{index}")
    return rows


def test_units_follow_the_convention():
    pair = {"prediction_labels": square(2), "reference_labels": square(3), "classes": (1,), "spacing_mm": (3.0, 4.0)}
    (mm,), (voxel,) = evaluate_case(**pair), evaluate_case(**pair, convention="medpy")
    assert (mm.unit, mm.hd) == ("mm", 5.0)
    assert (voxel.unit, voxel.hd) == ("voxel", pytest.approx(math.sqrt(2)))
    assert (mm.nsd_tolerance, mm.nsd, voxel.nsd) == (1.0, 4 / 16, 14 / 16)  # two corners are sqrt(2) away
    assert (mm.n_prediction, mm.n_reference) == (9, 9)


def test_ignored_voxels_are_left_out():
    reference = square(2)
    reference[8:] = -1
    prediction = square(2).astype(np.uint8)
    prediction[9:, 9:] = 1
    (row,) = scores([(prediction, reference)])
    assert (row.dice, row.hd) == (1.0, 0.0)


@pytest.mark.parametrize("shape", [(11, 13), (6, 9, 7)])
def test_every_class_is_scored_as_its_own_mask(shape):
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(4, size=(2, *shape))
    spacing = (0.5, 1.0, 2.0)[: len(shape)]
    rows = evaluate_case(prediction, reference, classes=(3, 1), spacing_mm=spacing, nsd_tolerance_mm=0.6)
    assert [row.label for row in rows] == [3, 1]
    overlaps = overlap_per_class(prediction, reference, classes=(3, 1))
    for row in rows:
        masks = prediction == row.label, reference == row.label
        distances = surface_distances(*masks, spacing_mm=spacing, nsd_tolerance_mm=0.6)
        assert asdict(row).items() >= (asdict(distances) | asdict(overlaps[row.label])).items()


def test_csv_holds_every_row_and_nan(tmp_path):
    nothing = np.zeros((12, 12), np.int64)
    rows = scores([(square(2), square(3)), (nothing, nothing)])
    write_cases_csv(tmp_path / "cases.csv", rows)
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [line["case"] for line in back] == ["case0", "case1"]
    assert float(back[0]["dice"]) == rows[0].dice
    assert back[1]["hd95"] == "nan"
    assert list(back[0]) == [
        "case",
        "label",
        "status",
        "n_prediction",
        "n_reference",
        *METRICS,
        "unit",
        "nsd_tolerance",
    ]


def test_csv_reads_back_what_was_written(tmp_path):
    nothing = np.zeros((12, 12), np.int64)
    rows = scores([(square(2), square(3)), (nothing, nothing), (nothing, square(2))], classes=(1, 2))
    write_cases_csv(tmp_path / "cases.csv", rows)
    back = read_cases_csv(tmp_path / "cases.csv")
    assert [repr(row) for row in back] == [repr(row) for row in rows]  # nan is not equal to itself
    assert len(back) == 6


def test_csv_errors_name_the_line(tmp_path):
    path = tmp_path / "cases.csv"
    write_cases_csv(path, scores([(square(2), square(3))]))
    path.write_text(path.read_text().replace(",ok,9,", ",ok,many,"))
    with pytest.raises(ValueError, match=r"cases\.csv, line 2: invalid literal for int"):
        read_cases_csv(path)
    path.write_text("case,dice\n1,0.5\n")
    with pytest.raises(ValueError, match=r"has the columns \['case', 'dice'\]; expected \['case', 'label'"):
        read_cases_csv(path)


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (["1"], r"classes\[0\] is '1'; expected a whole number of at least 0"),
        ([1, 1.5], r"classes\[1\] is 1.5; expected a whole number of at least 0"),
        ([True], r"classes\[0\] is True; expected a whole number of at least 0"),
        ([1, -1], r"classes\[1\] is -1; expected a whole number of at least 0"),
        ([1, 2, 1], "classes has 1 twice; expected every class once"),
        (1, "classes is 1; expected whole numbers, one a class"),
        ("12", "classes is '12'; expected whole numbers, one a class"),
    ],
)
def test_classes_are_whole_numbers_each_once(classes, told):
    pair = square(2), square(3)
    with pytest.raises(ValueError, match=told):
        evaluate_case(*pair, classes=classes, spacing_mm=(1, 1))
    with pytest.raises(ValueError, match=told):
        overlap_per_class(*pair, classes=classes)


def test_classes_may_be_numbers_of_numpy():
    (row,) = evaluate_case(square(2), square(2), classes=np.array([1], np.uint8), spacing_mm=(1, 1))
    assert (row.label, type(row.label)) == (1, int)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dice": "7"}, r"dice is 7\.0; expected a number in \[0, 1\]"),
        ({"nsd": "-0.5"}, r"nsd is -0\.5; expected a number in \[0, 1\]"),
        ({"hd95": "inf"}, "hd95 is inf; expected a number of at least 0"),
        ({"jaccard": "nan"}, r"jaccard is nan; expected a number in \[0, 1\]"),
        ({"status": "na"}, "dice is 0.4.*; expected nan, as the status is na"),
        ({"status": "bogus"}, "status is 'bogus'; expected one of ok, miss, na"),
        ({"unit": "inch"}, "unit is 'inch'; expected one of mm, voxel"),
        ({"n_reference": "-5"}, "n_reference is -5; expected a number of at least 0"),
        ({"nsd_tolerance": None}, "it has other than 15 cells"),
        ({"more": "1"}, "it has other than 15 cells"),
    ],
)
def test_csv_refuses_what_no_score_can_be(tmp_path, change, told):
    (row,) = scores([(square(2), square(3))])
    values = {name: value for name, value in (asdict(row) | change).items() if value is not None}
    (tmp_path / "cases.csv").write_text("\n".join([",".join(asdict(row)), ",".join(map(str, values.values()))]))
    with pytest.raises(ValueError, match=rf"cases\.csv, line 2: {told}"):
        read_cases_csv(tmp_path / "cases.csv")
