# SPDX-License-Identifier: Apache-2.0
"""Charts and panels: what is drawn is where the numbers say."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ssmis.metrics import Reliability
from ssmis.report import CaseView
from ssmis.report._markup import Markup, element, png_uri
from ssmis.report.curves import BOTTOM, LEFT, RIGHT, TOP, Series, chart, decimate, reliability_chart
from ssmis.report.panels import case_strips, outline, palette


def drawn(markup, kind):
    return [item for item in ElementTree.fromstring(markup).iter() if kind in item.get("class", "").split()]


def numbers(path):
    return np.array(re.findall(r"-?[\d.]+", path), dtype=float)


def test_a_line_runs_through_its_values():
    values = np.array([0.0, 4.0, 1.0, 3.0])
    svg = chart([Series("x", np.arange(4.0), values, colour=2, dash=1)], label="loss")
    (line,) = drawn(svg, "line")
    points = numbers(line.get("d")).reshape(-1, 2)
    assert set(line.get("class").split()) == {"line", "c2", "d1"}
    np.testing.assert_allclose(points[:, 0], np.linspace(LEFT, RIGHT, 4), atol=0.06)
    np.testing.assert_allclose(points[:, 1], BOTTOM + values / 4 * (TOP - BOTTOM), atol=0.06)
    assert {text.text for text in drawn(svg, "up")} == {"0", "1", "2", "3", "4"}


def test_what_is_not_finite_is_a_gap():
    values = np.array([1.0, 2.0, np.nan, np.inf, 2.0, 1.0])
    (line,) = drawn(chart([Series("x", np.arange(6.0), values)], label=""), "line")
    assert line.get("d").count("M") == 2
    assert line.get("d").count("L") == 2


def test_a_logarithmic_axis_has_decades():
    svg = chart([Series("x", np.arange(3.0), np.array([0.01, 1.0, 100.0]))], label="", log=True)
    (line,) = drawn(svg, "line")
    np.testing.assert_allclose(numbers(line.get("d"))[1::2], [BOTTOM, (BOTTOM + TOP) / 2, TOP], atol=0.06)
    assert [text.text for text in drawn(svg, "up")] == ["0.01", "0.1", "1", "10", "100"]
    below = chart([Series("x", np.arange(2.0), np.array([0.0, 100.0]))], label="", log=True)
    assert "25" in {text.text for text in drawn(below, "up")}


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [3.0, 3.0], [-1.0, -7.0], [1e-9, 2e-9], [1e12, 3e12]])
def test_every_range_has_an_axis_that_holds_it(values):
    svg = chart([Series("x", np.arange(float(len(values))), np.array(values))], label="")
    heights = numbers(drawn(svg, "line")[0].get("d"))[1::2]
    assert heights.min() >= TOP - 0.1
    assert heights.max() <= BOTTOM + 0.1
    assert 2 <= len(drawn(svg, "up")) <= 8


@given(
    arrays.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6) | st.just(np.nan)),
    st.integers(1, 12),
)
def test_decimation_keeps_mean_and_extremes(values, bins):
    steps, mean, least, greatest = decimate(np.arange(float(len(values))), values, bins=bins)
    if len(values) <= 2 * bins:
        np.testing.assert_array_equal(mean, values)
        return
    assert len(steps) == len(mean) == bins
    for index, part in enumerate(np.array_split(values, bins)):
        own = [value for value in part if value == value]
        if own:
            assert (least[index], greatest[index]) == (min(own), max(own))
            assert mean[index] == pytest.approx(sum(own) / len(own), abs=1e-6)
        else:
            assert np.isnan([mean[index], least[index], greatest[index]]).all()


def test_a_short_line_has_a_band_around_the_mean():
    steps = np.arange(1000.0)
    svg = chart([Series("x", steps, np.where(steps % 2, 0.9, 1.1))], label="")
    (line,), (band,) = drawn(svg, "line"), drawn(svg, "band")
    mean, edge = numbers(line.get("d"))[1::2], numbers(band.get("d"))[1::2]
    assert edge.min() < mean.min()
    assert edge.max() > mean.max()
    assert not drawn(chart([Series("x", steps[:50], steps[:50])], label=""), "band")


def test_bars_of_a_reliability_diagram_end_at_the_frequency():
    nan = float("nan")
    bins = Reliability(np.array([0, 0, 30, 10]), np.array([nan, nan, 0.6, 0.9]), np.array([nan, nan, 0.5, 1.0]))
    svg = reliability_chart(bins, colour=1, label="")
    bars, gaps = drawn(svg, "bar"), drawn(svg, "gap")
    tops = [float(bar.get("y")) for bar in bars]
    assert tops == [pytest.approx(BOTTOM + f * (TOP - BOTTOM), abs=0.06) for f in (0.5, 1.0)]
    assert [float(gap.get("height")) for gap in gaps] == [pytest.approx(0.1 * (BOTTOM - TOP), abs=0.06)] * 2
    assert ["over" in gap.get("class") for gap in gaps] == [False, True]  # right more often than sure
    assert [text.text for text in drawn(svg, "share")] == ["75", "25"]
    nothing = Reliability(np.zeros(4, int), np.full(4, nan), np.full(4, nan))
    assert not drawn(reliability_chart(nothing, colour=0, label=""), "bar")


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(-1, 2)))
def test_an_outline_is_every_edge_between_classes(labels):
    height, width = labels.shape

    def at(row, column):
        return max(labels[row, column], 0) if 0 <= row < height and 0 <= column < width else 0

    expected = {("h", c, r) for r in range(height + 1) for c in range(width) if at(r - 1, c) != at(r, c)}
    expected |= {("v", c, r) for r in range(height) for c in range(width + 1) if at(r, c - 1) != at(r, c)}
    found = []
    for x, y, way, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", outline(labels)):
        for step in range(int(length)):
            found.append((way, int(x) + step * (way == "h"), int(y) + step * (way == "v")))
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_pictures_hold_their_pixels():
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5), dtype=np.uint8)

    def read(uri):
        return image_module.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))

    np.testing.assert_array_equal(np.asarray(read(png_uri(pixels))), pixels)
    np.testing.assert_array_equal(np.asarray(read(png_uri(pixels, palette())).convert("RGB")), palette()[pixels])


def test_lightness_grows_with_uncertainty():
    assert (np.diff(palette() @ np.array([0.2126, 0.7152, 0.0722])) >= -0.5).all()


def test_panels_have_the_shape_of_the_anatomy():
    labels = np.zeros((20, 16, 10), np.int64)
    labels[4:9, 5:12, 2:7] = 1
    view = CaseView("c", np.random.default_rng(0).random(labels.shape), {"a": labels}, labels, spacing_mm=(3, 1, 1))
    shared, strips, where = case_strips(view, "k", {"a": 0})
    shapes = [[float(n) for n in box.split()[2:]] for box in re.findall(r'viewBox="([^"]*)"', strips["a"])]
    assert shapes == [[10, 16], [10, 60], [16, 60]]
    assert re.findall(r'id="([^"]*)"', shared) == ["k-0", "k-1", "k-2"]
    assert where == "slices 6 of axis 0, 8 of axis 1, 4 of axis 2"
    flat = CaseView("c", view.image[6], {"a": labels[6]})
    assert len(re.findall("viewBox", case_strips(flat, "k", {"a": 0})[1]["a"])) == 1


def test_text_is_escaped_and_markup_is_not():
    assert element("p", "<b>", Markup("<i></i>"), title='"&') == '<p title="&quot;&amp;">&lt;b&gt;<i></i></p>'
