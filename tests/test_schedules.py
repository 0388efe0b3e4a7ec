# SPDX-License-Identifier: Apache-2.0
"""Schedules: ends, direction, range of progress."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmis import schedules

PROGRESS = st.floats(0, 1)
RISING = {
    "gaussian": schedules.gaussian_ramp,
    "gaussian to 0.4": lambda t: schedules.gaussian_ramp(t, end=0.4),
    "exponential": schedules.exponential_ramp,
    "linear": schedules.linear_ramp,
    "linear inside": lambda t: schedules.linear_ramp(t, start=0.2, end=0.6),
    "linear as a step": lambda t: schedules.linear_ramp(t, start=0.5, end=0.5),
    "warmup": lambda t: schedules.warmup(t, share=0.1),
    "no warmup": lambda t: schedules.warmup(t, share=0.0),
}
FALLING = {
    "cosine": schedules.cosine_decay,
    "polynomial": schedules.polynomial_decay,
    "step": lambda t: schedules.step_decay(t, milestones=(0.4, 0.8)),
}
ALL = {**RISING, **FALLING, "constant": lambda t: schedules.constant(t, 0.3)}


@pytest.mark.parametrize("name", ALL)
@given(PROGRESS, PROGRESS)
def test_schedules_are_monotone_and_in_range(name, first, second):
    early, late = sorted([first, second])
    start, end = ALL[name](early), ALL[name](late)
    assert 0 <= start <= 1
    assert 0 <= end <= 1
    if name in RISING:
        assert start <= end
        assert RISING[name](1.0) == 1
    if name in FALLING:
        assert start >= end
        assert FALLING[name](0.0) == 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan, math.inf])
def test_progress_outside_the_run_is_an_error(name, progress):
    with pytest.raises(ValueError, match="progress"):
        ALL[name](progress)


def test_known_values():
    assert schedules.gaussian_ramp(0.0) == pytest.approx(math.exp(-5))
    assert schedules.gaussian_ramp(0.5) == pytest.approx(math.exp(-1.25))
    assert schedules.gaussian_ramp(0.3, end=0.6, steepness=2.0) == pytest.approx(math.exp(-0.5))
    assert schedules.linear_ramp(0.4, start=0.2, end=0.6) == pytest.approx(0.5)
    assert schedules.warmup(0.05, share=0.1) == pytest.approx(0.5)
    assert schedules.cosine_decay(0.5) == pytest.approx(0.5)
    assert schedules.cosine_decay(1.0) == pytest.approx(0.0)
    assert schedules.polynomial_decay(0.5) == pytest.approx(0.5**0.9)
    assert schedules.polynomial_decay(1.0) == 0
    assert [schedules.step_decay(t, milestones=(0.4, 0.8), factor=0.5) for t in (0.39, 0.4, 0.8)] == [1, 0.5, 0.25]
    assert schedules.constant(0.7, 2.5) == 2.5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: schedules.gaussian_ramp(0.5, end=0.0), "end"),
        (lambda: schedules.linear_ramp(0.5, start=0.6, end=0.4), "start"),
        (lambda: schedules.polynomial_decay(0.5, power=0.0), "power"),
        (lambda: schedules.step_decay(0.5, milestones=(2500, 5000)), "milestones"),
        (lambda: schedules.warmup(0.5, share=2.0), "share"),
    ],
)
def test_wrong_settings_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
