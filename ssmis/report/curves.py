# SPDX-License-Identifier: Apache-2.0
"""Small charts as SVG: curves of training, scores of cases, reliability; colours come from the page's style."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import numpy as np

from ssmis.metrics import Reliability
from ssmis.report._cuts import Array
from ssmis.report._markup import Markup, element

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 40, 310, 8, 158
BINS = 60  # parts of a long log: so few that dashes still tell nets apart


@dataclass(frozen=True, eq=False)
class Series:
    """A line of a chart: values over steps, its colour (a run's) and dash (a net's).

    Attributes:
        name: for the tooltip.
        steps: `(N,)`, growing.
        values: `(N,)`; what is not finite is a gap.
        colour: index of the run.
        dash: index of the net.
        points: names of the values; then they are drawn as points, and not joined.
    """

    name: str
    steps: Array
    values: Array
    colour: int = 0
    dash: int = 0
    points: Sequence[str] | None = None


def decimate(steps: Array, values: Array, *, bins: int = BINS) -> tuple[Array, Array, Array, Array]:
    """Shorten a long log: steps, mean, least and greatest value of `bins` parts of about equal length, each `(M,)`.

    A log of at most twice as many values stays as it is. Values that are not finite do not count; a
    part without any is nan.

    >>> [part.tolist() for part in decimate(np.arange(4.0), np.array([1.0, 3.0, 0.0, 8.0]), bins=1)]
    [[1.5], [3.0], [0.0], [8.0]]
    """
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) <= 2 * bins:
        return steps, values, values, values
    parts = np.array_split(np.arange(len(values)), bins)
    kept = [part[np.isfinite(values[part])] for part in parts]
    mean, least, greatest = (
        np.array([reduce(values[part]) if len(part) else np.nan for part in kept])
        for reduce in (np.mean, np.min, np.max)
    )
    return np.array([steps[part].mean() for part in parts]), mean, least, greatest


def chart(series: Sequence[Series], *, label: str, top: float | None = None, log: bool = False) -> Markup:
    """Draw lines over steps; a line shorter than its log is the mean, with a band from the least to the greatest value.

    Args:
        series: with at least one finite value among them.
        label: what is drawn, for screen readers.
        top: end of the axis of values; None is by the values. The axis begins at 0 unless values
            are below it or far from it.
        log: logarithmic axis, where all values are positive.
    """
    curves = [decimate(one.steps, one.values) for one in series]
    means = np.concatenate([mean[np.isfinite(mean)] for _, mean, _, _ in curves])
    log = log and bool(means.min() > 0) and all(not (low <= 0).any() for _, _, low, _ in curves)
    scale = np.log10 if log else np.asarray
    low, high = scale(means).min(), scale(means).max() if top is None else top
    if not log and low > 0 and high - low > 0.25 * high:
        low = 0.0
    ticks = _ticks(floor(low), ceil(high), whole=True) if log else _ticks(low, high)
    y = _Axis(ticks[0], max(ticks[-1], high), BOTTOM, TOP)
    first, last = (edge(float(edge(one.steps)) for one in series if len(one.steps)) for edge in (min, max))
    x = _Axis(first, last, LEFT, RIGHT)
    steps = [tick for tick in _ticks(first, last, whole=True) if first <= tick <= last]
    parts = [
        _grid(x, steps, [f"{tick:g}" for tick in steps], y, ticks, [_power(t) if log else f"{t:g}" for t in ticks])
    ]
    for one, (where, mean, least, greatest) in zip(series, curves):
        points = [(x(a), y(b), name) for a, b, name in zip(where, scale(mean), one.points or [""] * len(where))]
        style = f"c{one.colour}"
        if one.points is None:
            if least is not mean:
                parts.append(
                    _band(
                        x(where), np.clip(y(scale(least)), TOP, BOTTOM), np.clip(y(scale(greatest)), TOP, BOTTOM), style
                    )
                )
            line = element("path", element("title", one.name), class_=f"line d{one.dash} {style}", d=_path(points))
            parts.append(line)
        if one.points is not None or len(points) <= 30:
            parts += [
                element(
                    "circle",
                    element("title", name or one.name),
                    class_=f"dot {style}",
                    cx=_n(a),
                    cy=_n(b),
                    r=3 if one.points else 1.8,
                )
                for a, b, name in points
                if np.isfinite(b)
            ]
    return _svg(parts, label)


def reliability_chart(bins: Reliability, *, colour: int, label: str) -> Markup:
    """Draw how often forecasts of each confidence came true, the gap to the confidence, and the share of the voxels.

    The axis of confidence begins where there are voxels; the numbers are per cent of them.
    """
    edges, some = np.linspace(0, 1, len(bins.count) + 1), np.flatnonzero(bins.count)
    first = float(edges[some[0]]) if len(some) else 0.0
    x, y = _Axis(first, 1.0, LEFT, RIGHT), _Axis(0.0, 1.0, BOTTOM, TOP)
    across, up = _ticks(first, 1.0), _ticks(0.0, 1.0)
    across = [tick for tick in across if tick >= first]
    parts = [_grid(x, across, [f"{tick:g}" for tick in across], y, up, [f"{tick:g}" for tick in up])]
    for index in some:
        left, width = x(edges[index]) + 0.5, x(edges[index + 1]) - x(edges[index]) - 1
        came_true, sure = y(bins.frequency[index]), y(bins.confidence[index])
        share = 100 * bins.count[index] / bins.count.sum()
        words = (
            f"confidence {bins.confidence[index]:.3f}, right {bins.frequency[index]:.3f}, {share:.2g} % of the voxels"
        )
        box = {"x": _n(left), "width": _n(width)}
        parts.append(element("rect", class_=f"bar c{colour}", y=_n(came_true), height=_n(BOTTOM - came_true), **box))
        gap = {"y": _n(min(came_true, sure)), "height": _n(abs(came_true - sure))}
        style = "gap over" if came_true < sure else "gap"  # over the bar, where more came true than was forecast
        parts.append(element("rect", element("title", words), class_=f"{style} c{colour}", **gap, **box))
        if width > 16:
            parts.append(element("text", f"{share:.0f}", class_="share", x=_n(left + width / 2), y=BOTTOM - 4))
    parts.append(element("path", class_="diagonal", d=f"M{_n(x(first))} {_n(y(first))}L{RIGHT} {TOP}"))
    return _svg(parts, label)


@dataclass(frozen=True)
class _Axis:
    """Numbers from `low` to `high` on the drawing from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: Array | float) -> Array:
        return self.start + (np.asarray(value) - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers that enclose `low` to `high`, about four steps."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** floor(log10(span / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 4.5 >= span)
    if whole:
        step = max(1.0, float(round(step)))
    count = ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(floor(low / step + 1e-9), max(count, floor(low / step) + 1) + 1)]


def _grid(
    x: _Axis, across: Sequence[float], names: Sequence[str], y: _Axis, up: Sequence[float], values: Sequence[str]
) -> Markup:
    lines = "".join(f"M{LEFT} {_n(y(tick))}H{RIGHT}" for tick in up)
    parts = [element("path", class_="rule", d=lines)]
    parts += [element("text", value, class_="up", x=LEFT - 5, y=_n(y(tick) + 3.5)) for tick, value in zip(up, values)]
    for tick, name in zip(across, names):
        end = "last" if x(tick) > RIGHT - 12 else "across"
        parts.append(element("text", name, class_=end, x=_n(min(x(tick), RIGHT)), y=BOTTOM + 15))
    return Markup("".join(parts))


def _band(x: Array, low: Array, high: Array, style: str) -> Markup:
    some = np.isfinite(low)
    edge = [*zip(x[some], high[some]), *zip(x[some][::-1], low[some][::-1])]
    return element("path", class_=f"band {style}", d="M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in edge) + "Z")


def _path(points: Sequence[tuple[Any, Any, str]]) -> str:
    """Join neighbours; a value that is not finite begins a new line."""
    path, joined = [], False
    for a, b, _ in points:
        if np.isfinite(b):
            path.append(f"{'L' if joined else 'M'}{_n(a)} {_n(b)}")
        joined = bool(np.isfinite(b))
    return "".join(path)


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    return element("svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def _power(exponent: float) -> str:
    return f"{10.0**exponent:g}"


def _n(value: Any) -> str:
    """A coordinate, to a tenth."""
    return f"{float(value):.1f}".removesuffix(".0")
