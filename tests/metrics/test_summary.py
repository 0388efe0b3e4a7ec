# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import numpy as np
import pytest

from ssmis.metrics import (
    METRICS,
    bootstrap_interval,
    compare_runs,
    evaluate_case,
    paired_difference,
    summarise,
    summarise_seeds,
    summarise_values,
)


def square(at, size=3, label=1, shape=(12, 12)):
    labels = np.zeros(shape, np.int64)
    labels[at : at + size, at : at + size] = label
    return labels


def scores(pairs, classes=(1,)):
    rows = []
    for index, (prediction, reference) in enumerate(pairs):
        rows += evaluate_case(prediction, reference, classes=classes, spacing_mm=(3.0, 4.0), case=f"case{index}")
    return rows


def shifted(by):
    """Rows of eight cases whose squares are off by `by` pixels or, in every other case, one more."""
    return scores([(square(2 + by + index % 2), square(2)) for index in range(8)])


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


def test_without_a_label_cases_are_averaged_over_their_classes_first():
    both = np.maximum(square(1), square(7, label=2))
    rows = scores([(both, both), (square(1), square(1)), (square(1), both)], classes=(1, 2))
    summary = summarise(rows, metric="dice")
    assert (summary.n, summary.n_na, summary.n_miss) == (3, 0, 1)
    assert summary.mean == pytest.approx((1 + 1 + 0.5) / 3)


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
    with pytest.raises(ValueError, match=r"missed is 'zero'; expected one of 'diagonal', 'legacy_zero'"):
        summarise(rows, metric="dice", missed="zero")


def test_units_are_named_and_not_mixed():
    pair = {"prediction_labels": square(2), "reference_labels": square(3), "classes": (1,), "spacing_mm": (3.0, 4.0)}
    mm = evaluate_case(**pair, case="a")
    assert [summarise(mm, metric=m).unit for m in ("dice", "hd95", "nsd")] == ["", "mm", "share within 1 mm"]
    mixed = mm + evaluate_case(**pair, case="b", convention="medpy")
    assert summarise(mixed, metric="dice").n == 2
    with pytest.raises(ValueError, match=r"assd of the rows is in mm and in voxel; expected one unit"):
        summarise(mixed, metric="assd")
    tolerances = mm + evaluate_case(**pair, case="b", nsd_tolerance_mm=2.0)
    assert summarise(tolerances, metric="assd").n == 2
    with pytest.raises(ValueError, match=r"nsd of the rows is in share within 1 mm and in share within 2 mm"):
        summarise(tolerances, metric="nsd")


def test_the_legacy_policy_is_named_and_touches_distances_of_misses_only():
    nothing = np.zeros((12, 12), np.int64)
    rows = scores([(square(2), square(3)), (nothing, square(2)), (nothing, nothing)])
    honest, legacy = (summarise(rows, metric="hd", missed=missed) for missed in ("diagonal", "legacy_zero"))
    assert (honest.mean, honest.missed) == (pytest.approx((5 + 60) / 2), "diagonal")
    assert (legacy.mean, legacy.missed) == (pytest.approx((5 + 0) / 2), "legacy_zero")
    assert (legacy.n, legacy.n_na, legacy.n_miss) == (2, 1, 1)
    for metric in ("dice", "jaccard", "nsd"):
        assert summarise(rows, metric=metric, missed="legacy_zero").mean == summarise(rows, metric=metric).mean


def test_values_of_another_metric():
    summary = summarise_values([0.1, math.nan, 0.3], metric="ece")
    assert (summary.metric, summary.n, summary.n_na, summary.n_miss) == ("ece", 2, 1, 0)
    assert (summary.mean, summary.sd) == (pytest.approx(0.2), pytest.approx(0.1 * math.sqrt(2)))


def test_runs_are_paired_by_case():
    near, far = shifted(0), shifted(1)
    found = compare_runs(near, list(reversed(far)), metric="dice")
    ours, theirs = ([row.dice for row in rows] for rows in (near, far))
    assert found == paired_difference(ours, theirs)
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.p_value < 0.05
    assert compare_runs(far, near, metric="dice").mean == pytest.approx(-found.mean)


def test_runs_that_cannot_be_paired():
    rows = shifted(0)
    with pytest.raises(ValueError, match=r"1 cases are in only one of a and b, the first is 'case7'"):
        compare_runs(rows, rows[:-1], metric="dice")
    voxels = evaluate_case(square(2), square(2), classes=(1,), spacing_mm=(1, 1), case="case0", convention="medpy")
    with pytest.raises(ValueError, match=r"hd95 of b is in voxel; expected mm to match a"):
        compare_runs(rows[:1], voxels, metric="hd95")
    assert compare_runs(rows[:1], voxels, metric="dice").mean == 0
    larger = [replace(row, n_reference=10) if row.case == "case3" else row for row in rows]
    with pytest.raises(ValueError, match="case case3, label 1 has 9 reference voxels in a and 10 in b; expected"):
        compare_runs(rows, larger, metric="dice")


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
    for pair, name in ((([math.inf], [1.0]), "a"), (([1.0], [-math.inf]), "b")):
        with pytest.raises(ValueError, match=rf"a value of {name} is -?inf; expected finite numbers"):
            paired_difference(*pair)


def test_infinite_values_have_no_mean():
    rows = [replace(shifted(0)[0], hd95=math.inf), shifted(0)[1]]
    with pytest.raises(ValueError, match=r"hd95 of case 'case0' is inf; expected finite numbers, or nan where"):
        summarise(rows, metric="hd95")
    with pytest.raises(ValueError, match=r"hd95 of case 'case0' is inf"):
        summarise_seeds([rows, rows], metric="hd95")
    with pytest.raises(ValueError, match=r"ece is -inf; expected finite numbers"):
        summarise_values([0.5, -math.inf], metric="ece")


@pytest.mark.parametrize("resamples", [0, -1, 2.5, True])
def test_resamples_are_a_whole_number(resamples):
    rows = shifted(0)
    calls = [
        lambda: summarise(rows, metric="dice", resamples=resamples),
        lambda: summarise_values([0.5], metric="ece", resamples=resamples),
        lambda: summarise_seeds([rows], metric="dice", resamples=resamples),
        lambda: compare_runs(rows, rows, metric="dice", resamples=resamples),
        lambda: bootstrap_interval(np.ones(3), resamples=resamples),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"resamples is {resamples}; expected a whole number of at least 1"):
            call()


def test_an_interval_of_nothing():
    with pytest.raises(ValueError, match="values is empty"):
        bootstrap_interval(np.zeros(0))
