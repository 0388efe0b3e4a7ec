# SPDX-License-Identifier: Apache-2.0
"""Means over seeds: what the interval covers, and when a difference is more than the seeds' own spread."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ssmis.metrics import CaseScore, compare_methods, compare_runs, compare_seeds, summarise, summarise_seeds


def score(case, dice, status="ok", unit="mm"):
    return CaseScore(case, 1, status, 5, 5, dice, dice / 2, 6.0, 7.0, 5.0, 4.0, 3.0, 0.5, unit)


def runs_of(table):
    """Scores of trainings from Dice `(seeds, cases)`."""
    return [
        [score(f"case{i}", value, "na" if math.isnan(value) else "ok") for i, value in enumerate(row)] for row in table
    ]


def test_mean_and_spread_are_over_seeds():
    table = np.array([[0.8, 0.6, 0.7], [0.9, 0.5, 0.7], [0.7, 0.7, 0.4]])
    found = summarise_seeds(runs_of(table), metric="dice")
    means = table.mean(1)
    assert (found.seeds, found.n, found.n_miss) == (3, 3, 0)
    assert (found.mean, found.sd) == (pytest.approx(means.mean()), pytest.approx(means.std(ddof=1)))
    assert found.low < found.mean < found.high


def test_one_seed_is_an_ordinary_summary():
    rows = runs_of([[0.8, 0.6, 0.75, 0.9]])
    found, plain = summarise_seeds(rows, metric="dice"), summarise(rows[0], metric="dice")
    assert (found.mean, found.low, found.high) == pytest.approx((plain.mean, plain.low, plain.high))
    assert math.isnan(found.sd)


def test_the_interval_covers_new_seeds_and_new_cases():
    rng = np.random.default_rng(0)
    hits = 0
    for draw in range(100):
        table = 0.8 + 0.02 * rng.standard_normal((6, 1)) + 0.05 * rng.standard_normal((1, 25))
        found = summarise_seeds(runs_of(table + 0.02 * rng.standard_normal((6, 25))), metric="dice", resamples=300)
        hits += found.low <= 0.8 <= found.high
        assert draw or found.high - found.low > 0.02
    assert hits >= 85


def test_cases_that_do_not_apply_are_left_out_where_they_do_not():
    table = np.array([[0.8, np.nan, 0.6], [0.4, np.nan, np.nan]])
    found = summarise_seeds(runs_of(table), metric="dice")
    assert (found.n, found.mean) == (2, pytest.approx((0.7 + 0.4) / 2))
    nothing = summarise_seeds(runs_of(np.full((2, 2), np.nan)), metric="dice")
    assert (nothing.n, math.isnan(nothing.mean)) == (0, True)


def test_misses_add_up():
    rows = [[score("a", 0.5), score("b", 0.0, "miss")], [score("a", 0.0, "miss"), score("b", 0.0, "miss")]]
    assert summarise_seeds(rows, metric="dice").n_miss == 3


def test_the_difference_is_students():
    rng = np.random.default_rng(1)
    a, b = 0.8 + 0.02 * rng.standard_normal((3, 5)), 0.75 + 0.02 * rng.standard_normal((4, 5))
    found = compare_seeds(runs_of(a), runs_of(b), metric="dice")
    theirs = stats.ttest_ind(a.mean(1), b.mean(1)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(theirs))
    assert found.mean == pytest.approx(a.mean() - b.mean())
    back = compare_seeds(runs_of(b), runs_of(a), metric="dice")
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_within_the_spread_and_beyond_it():
    a = np.array([[0.80], [0.81], [0.79]])
    assert compare_seeds(runs_of(a), runs_of(a - 0.01), metric="dice").within_spread is True
    assert compare_seeds(runs_of(a), runs_of(a - 0.10), metric="dice").within_spread is False
    alone = compare_seeds(runs_of(a), runs_of(a[:1]), metric="dice")
    assert alone.within_spread is None
    assert math.isnan(alone.low)


def test_other_seeds_seldom_turn_it_around():
    """Of methods that do not differ, at most about one pair in twenty is told apart."""
    rng = np.random.default_rng(2)
    apart = [
        compare_seeds(runs_of(rng.normal(0.8, 0.01, (3, 1))), runs_of(rng.normal(0.8, 0.01, (3, 1))), metric="dice")
        for _ in range(200)
    ]
    assert np.mean([not found.within_spread for found in apart]) < 0.1


def test_errors():
    rows = runs_of([[0.5, 0.6], [0.5, 0.6]])
    with pytest.raises(ValueError, match="runs is empty"):
        summarise_seeds([], metric="dice")
    with pytest.raises(ValueError, match=r"case 'case1' is in only one of runs\[0\] and runs\[1\]"):
        summarise_seeds([rows[0], rows[1][:1]], metric="dice")
    with pytest.raises(ValueError, match=r"hd95 of runs\[1\] is in voxel; expected mm"):
        summarise_seeds([[score("a", 0.5)], [score("a", 0.5, unit="voxel")]], metric="hd95")
    with pytest.raises(ValueError, match="is in only one"):
        compare_seeds(rows, runs_of([[0.5]]), metric="dice")
    larger = [[replace(row, n_reference=6) for row in rows[1]]]
    with pytest.raises(ValueError, match=r"has 5 reference voxels in runs\[0\] and 6 in runs\[1\]"):
        summarise_seeds([rows[0], *larger], metric="dice")
    with pytest.raises(ValueError, match="expected scores against one reference"):
        compare_seeds(rows, larger, metric="dice")


def test_methods_are_compared_by_seeds_by_cases_and_by_both():
    rng = np.random.default_rng(3)
    a, b = 0.8 + 0.05 * rng.standard_normal((3, 9)), 0.75 + 0.05 * rng.standard_normal((3, 9))
    ours, theirs = runs_of(a), runs_of(b)
    found = compare_methods(ours, [run[::-1] for run in theirs], metric="dice")
    spread = compare_seeds(ours, theirs, metric="dice")
    pair = compare_runs(runs_of(a.mean(0, keepdims=True))[0], runs_of(b.mean(0, keepdims=True))[0], metric="dice")
    both = summarise_seeds(runs_of((a - b + 1) / 2), metric="dice")
    assert (found.seeds, found.n) == (3, 9)
    assert (found.mean, *found.over_seeds) == pytest.approx((spread.mean, spread.low, spread.high))
    assert (found.mean, *found.over_cases, found.p_value) == pytest.approx(
        (pair.mean, pair.low, pair.high, pair.p_value)
    )
    assert found.over_both == pytest.approx((2 * both.low - 1, 2 * both.high - 1))
    back = compare_methods(theirs, ours, metric="dice")
    assert (back.mean, *back.over_both) == pytest.approx((-found.mean, -found.over_both[1], -found.over_both[0]))


def test_the_difference_of_one_seed_is_that_over_cases():
    ours, theirs = runs_of([[0.8, 0.7, np.nan, 0.9]]), runs_of([[0.7, 0.5, np.nan, 0.95]])
    found = compare_methods(ours, theirs, metric="dice")
    assert (found.seeds, found.n, found.mean) == (1, 3, pytest.approx(0.25 / 3))
    assert found.over_both == pytest.approx(found.over_cases)
    assert all(map(math.isnan, found.over_seeds))
    with pytest.raises(ValueError, match="b has 2 trainings; expected 1"):
        compare_methods(ours, [*theirs, *theirs], metric="dice")


def test_a_case_counts_only_where_both_trainings_of_a_seed_have_it():
    a = np.array([[0.8, 0.7, np.nan], [0.9, 0.6, 0.5]])
    b = np.array([[0.6, np.nan, 0.2], [0.8, 0.5, np.nan]])
    found = compare_methods(runs_of(a), runs_of(b), metric="dice")
    assert (found.seeds, found.n, found.mean) == (2, 2, pytest.approx((0.2 + 0.1) / 2))
    masked = [[0.8, np.nan, np.nan], [0.9, 0.6, np.nan]], [[0.6, np.nan, np.nan], [0.8, 0.5, np.nan]]
    same = compare_methods(*map(runs_of, masked), metric="dice")
    assert (same.over_seeds, same.over_cases, same.over_both) == (found.over_seeds, found.over_cases, found.over_both)
    alone = compare_methods(runs_of([[np.nan, np.nan, np.nan], a[1]]), runs_of(b), metric="dice")
    assert (alone.seeds, alone.n, alone.mean) == (1, 2, pytest.approx(0.1))
    nothing = compare_methods(runs_of([[0.5, np.nan]]), runs_of([[np.nan, 0.5]]), metric="dice")
    assert (nothing.seeds, nothing.n, math.isnan(nothing.mean), math.isnan(nothing.p_value)) == (0, 0, True, True)


def test_a_difference_over_both_covers_new_seeds_and_new_cases():
    """Each case of a seed differs by the method, its case and its seed."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(100):
        gain = 0.02 + 0.01 * rng.standard_normal((6, 1)) + 0.02 * rng.standard_normal((1, 25))
        base = 0.7 + 0.05 * rng.standard_normal((1, 25)) + 0.01 * rng.standard_normal((6, 25))
        found = compare_methods(runs_of(base + gain), runs_of(base), metric="dice", resamples=300)
        hits += found.over_both[0] <= 0.02 <= found.over_both[1]
    assert 85 <= hits < 100
