# SPDX-License-Identifier: Apache-2.0
import csv
import math

import numpy as np
import pytest

from ssmis.metrics import METRICS, bootstrap_interval, evaluate_case, paired_difference, summarise, write_cases_csv


def square(at, size=3, label=1, shape=(12, 12)):
    labels = np.zeros(shape, np.int64)
    labels[at : at + size, at : at + size] = label
    return labels


def scores(pairs, classes=(1,)):
    rows = []
    for index, (prediction, reference) in enumerate(pairs):
        rows += evaluate_case(prediction, reference, classes=classes, spacing_mm=(3.0, 4.0), case=f"case{index}")
    return rows


def test_misses_count_and_empty_pairs_do_not():
    nothing = np.zeros((12, 12), np.int64)
    rows = scores([(square(2), square(2)), (nothing, square(2)), (nothing, nothing)])
    assert [row.status for row in rows] == ["ok", "miss", "na"]
    assert (rows[1].dice, rows[1].assd) == (0.0, 60.0)
    assert all(math.isnan(getattr(rows[2], metric)) for metric in METRICS)

    dice = summarise(rows, metric="dice", label=1)
    assert (dice.n, dice.n_na, dice.n_miss) == (2, 1, 1)
    assert (dice.mean, dice.median, dice.sd) == pytest.approx((0.5, 0.5, math.sqrt(0.5)))
    assert summarise(rows, metric="hd95", label=1).mean == 30.0


def test_units_follow_the_convention():
    pair = {"prediction_labels": square(2), "reference_labels": square(3), "classes": (1,), "spacing_mm": (3.0, 4.0)}
    (mm,), (voxel,) = evaluate_case(**pair), evaluate_case(**pair, convention="medpy")
    assert (mm.unit, mm.hd) == ("mm", 5.0)
    assert (voxel.unit, voxel.hd) == ("voxel", pytest.approx(math.sqrt(2)))
    assert (mm.n_prediction, mm.n_reference) == (9, 9)


def test_without_a_label_cases_are_averaged_over_their_classes_first():
    both = np.maximum(square(1), square(7, label=2))
    rows = scores([(both, both), (square(1), square(1)), (square(1), both)], classes=(1, 2))
    summary = summarise(rows, metric="dice")
    assert (summary.n, summary.n_na, summary.n_miss) == (3, 0, 1)
    assert summary.mean == pytest.approx((1 + 1 + 0.5) / 3)


def test_ignored_voxels_are_left_out():
    reference = square(2)
    reference[8:] = -1
    prediction = square(2).astype(np.uint8)
    prediction[9:, 9:] = 1
    (row,) = scores([(prediction, reference)])
    assert (row.dice, row.hd) == (1.0, 0.0)


def test_summaries_of_little():
    nothing = np.zeros((12, 12), np.int64)
    empty = summarise(scores([(nothing, nothing)]), metric="dice")
    assert (empty.n, empty.n_na) == (0, 1)
    assert math.isnan(empty.mean)
    one = summarise(scores([(square(2), square(2))]), metric="dice")
    assert (one.mean, one.low, one.high) == (1, 1, 1)
    assert math.isnan(one.sd)


def test_summary_errors():
    rows = scores([(square(2), square(2))])
    with pytest.raises(ValueError, match=r"metric is 'iou'"):
        summarise(rows, metric="iou")
    with pytest.raises(ValueError, match=r"no score of label 7 among 1 rows"):
        summarise(rows, metric="dice", label=7)
    with pytest.raises(ValueError, match=r"case 'case0' has more than one score of a class"):
        summarise(rows + rows, metric="dice")


def test_csv_holds_every_row_and_nan(tmp_path):
    nothing = np.zeros((12, 12), np.int64)
    rows = scores([(square(2), square(3)), (nothing, nothing)])
    write_cases_csv(tmp_path / "cases.csv", rows)
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [line["case"] for line in back] == ["case0", "case1"]
    assert float(back[0]["dice"]) == rows[0].dice
    assert back[1]["hd95"] == "nan"
    assert list(back[0]) == ["case", "label", "status", "n_prediction", "n_reference", *METRICS, "unit"]


def test_bootstrap_interval_is_seeded_and_covers():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sample = rng.normal(0.8, 0.1, size=30)
        low, high = bootstrap_interval(sample, resamples=400)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 200 <= 0.99
    assert (
        bootstrap_interval(sample, seed=1) == bootstrap_interval(sample, seed=1) != bootstrap_interval(sample, seed=2)
    )


def test_paired_difference():
    rng = np.random.default_rng(1)
    base = rng.random(20)
    better = base + 0.1 + 0.01 * rng.standard_normal(20)
    found = paired_difference([*better, math.nan], [*base, 0.5])
    assert (found.n, found.n_dropped) == (20, 1)
    assert found.low < 0.1 < found.high
    assert found.low > 0.08
    assert found.p_value < 0.01
    reverse = paired_difference(base, better)
    assert (reverse.mean, reverse.p_value) == pytest.approx((-found.mean, found.p_value))
    same = paired_difference(base, base)
    assert (same.mean, same.p_value) == (0.0, 1.0)


def test_the_sign_flip_test_holds_its_level():
    rng = np.random.default_rng(2)
    p_values = [paired_difference(rng.random(15), rng.random(15), resamples=300).p_value for _ in range(200)]
    assert np.mean(np.array(p_values) <= 0.05) < 0.1


def test_paired_difference_errors():
    with pytest.raises(ValueError, match=r"b has 1 cases; expected 2 to match a"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"none of the 1 cases has a value in both"):
        paired_difference([math.nan], [1.0])
