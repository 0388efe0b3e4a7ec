# SPDX-License-Identifier: Apache-2.0
"""Ramps and decays: pure functions of progress, the share of a run that is over, in [0, 1]."""

import math
from collections.abc import Sequence

from ssmis._checks import check_range


def constant(progress: float, value: float) -> float:
    """Return `value` at any progress."""
    check_range(progress, 0, 1, name="progress")
    return value


def gaussian_ramp(progress: float, *, end: float = 1.0, steepness: float = 5.0) -> float:
    r"""Rise from $e^{-s}$ to 1: $e^{-s (1 - \min(t / t_{end}, 1))^2}$ with steepness s.

    Raises:
        ValueError: progress outside [0, 1], end outside (0, 1].

    Paper: Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017 (arXiv 1610.02242).

    >>> gaussian_ramp(0.5, end=0.5), round(gaussian_ramp(0.0), 4)
    (1.0, 0.0067)
    """
    check_range(progress, 0, 1, name="progress")
    check_range(end, 0, 1, name="end", open_low=True)
    return math.exp(-steepness * (1 - min(progress / end, 1)) ** 2)


def ramp_to(progress: float, end: float) -> float:
    """Return `gaussian_ramp` that reaches 1 at progress `end`; with end 0 it is 1 from the start.

    Raises:
        ValueError: progress or end outside [0, 1].

    >>> ramp_to(0.0, 0.0), ramp_to(0.5, 0.5)
    (1.0, 1.0)
    """
    return constant(progress, 1.0) if end == 0 else gaussian_ramp(progress, end=end)


def exponential_ramp(progress: float, *, start: float = 0.01) -> float:
    r"""Rise from `start` to 1 by equal factors: $s^{1 - t}$.

    Raises:
        ValueError: progress outside [0, 1], start outside (0, 1].

    >>> round(exponential_ramp(0.5), 3)
    0.1
    """
    check_range(progress, 0, 1, name="progress")
    check_range(start, 0, 1, name="start", open_low=True)
    return start ** (1 - progress)


def linear_ramp(progress: float, *, start: float = 0.0, end: float = 1.0) -> float:
    """Rise from 0 at `start` to 1 at `end` on a straight line; a step where they are equal.

    Raises:
        ValueError: progress, start or end outside [0, 1], or start > end.
    """
    check_range(progress, 0, 1, name="progress")
    check_range(end, 0, 1, name="end")
    check_range(start, 0, end, name="start")
    if progress >= end:
        return 1.0
    return (progress - start) / (end - start) if progress > start else 0.0


def cosine_decay(progress: float) -> float:
    r"""Fall from 1 to 0 along half a cosine: $(1 + \cos \pi t) / 2$."""
    check_range(progress, 0, 1, name="progress")
    return (1 + math.cos(math.pi * progress)) / 2


def polynomial_decay(progress: float, *, power: float = 0.9) -> float:
    r"""Fall from 1 to 0: $(1 - t)^{power}$, power > 0."""
    check_range(progress, 0, 1, name="progress")
    check_range(power, 0, math.inf, name="power", open_low=True)
    return (1 - progress) ** power


def step_decay(progress: float, *, milestones: Sequence[float], factor: float = 0.1) -> float:
    """Multiply by `factor` at each of the `milestones`, shares of the run.

    >>> [round(step_decay(t, milestones=(0.4, 0.8)), 3) for t in (0.0, 0.4, 1.0)]
    [1.0, 0.1, 0.01]
    """
    check_range(progress, 0, 1, name="progress")
    for index, milestone in enumerate(milestones):
        check_range(milestone, 0, 1, name=f"milestones[{index}]")
    return factor ** sum(progress >= milestone for milestone in milestones)


def warmup(progress: float, *, share: float) -> float:
    """Rise from 0 to 1 on a straight line over the first `share` of the run; 1 throughout for share 0."""
    check_range(share, 0, 1, name="share")
    return linear_ramp(progress, end=share)
