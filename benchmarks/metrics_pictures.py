# SPDX-License-Identifier: Apache-2.0
"""The pictures of the documentation of the metrics; every number in them comes from `ssmis.metrics`.

python benchmarks/metrics_pictures.py [--out docs/assets]
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage, spatial

from ssmis.metrics import Reliability, calibration, surface_distances

PREDICTION, REFERENCE, GREY = "#0072b2", "#d55e00", "#8c8c8c"
WORDS = "ASD {:.1f}", "MASD {:.1f}", "ASSD {:.1f}", 'HD95 "medpy" {:.1f}', 'HD95 "default" {:.1f}'


def boundary(mask):
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


def nearest(points, targets):
    """Distance from each point to the nearest target, and that target."""
    distances, index = spatial.cKDTree(targets).query(points)
    return distances, targets[index]


def draw_arrows(axes):
    """From every other boundary pixel of one mask to the nearest of the other, both ways."""
    rows, columns = np.mgrid[:15, :21]
    prediction = ((rows - 7) / 4.2) ** 2 + ((columns - 8) / 5.2) ** 2 <= 1
    reference = ((rows - 7) / 5.7) ** 2 + ((columns - 9.6) / 7.2) ** 2 <= 1
    axes.set_title("a. boundary pixels, nearest distances", loc="left")
    for mask, other, colour in ((prediction, reference, PREDICTION), (reference, prediction, REFERENCE)):
        points = boundary(mask)
        axes.scatter(points[:, 1], points[:, 0], s=28, marker="s", color=colour, alpha=0.4, linewidths=0)
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
        for (y, x), (to_y, to_x) in list(zip(points, nearest(points, boundary(other))[1]))[::2]:
            axes.annotate("", (to_x, to_y), (x, y), arrowprops=arrow)
    axes.set(xlim=(1.5, 19.5), ylim=(14.5, -0.5), xticks=[], yticks=[], aspect="equal")


def missed_lobe():
    rows, columns = np.mgrid[:60, :90]
    body = ((rows - 30) / 22) ** 2 + ((columns - 30) / 24) ** 2 <= 1
    lobe = ((rows - 30) / 6) ** 2 + ((columns - 72) / 7) ** 2 <= 1
    return np.roll(body, 1, axis=0), body | lobe


def distances_picture(path):
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.9))
    draw_arrows(left)

    prediction, reference = missed_lobe()
    forth, _ = nearest(boundary(prediction), boundary(reference))
    back, _ = nearest(boundary(reference), boundary(prediction))
    middle.set_title("b. the prediction misses a lobe", loc="left")
    for mask, colour, name in ((reference, REFERENCE, "reference"), (prediction, PREDICTION, "prediction")):
        points = boundary(mask)
        middle.scatter(points[:, 1], points[:, 0], s=5, marker="s", color=colour, linewidths=0, label=name)
    middle.legend(loc="lower right", frameon=False, markerscale=2)
    middle.set(xlim=(0, 90), ylim=(66, 0), xticks=[], yticks=[], aspect="equal")

    found = surface_distances(prediction, reference, spacing_mm=(1, 1))
    pooled = surface_distances(prediction, reference, spacing_mm=(1, 1), convention="medpy")
    edges = np.arange(0, 31, 1.0)
    right.hist(forth, edges, color=PREDICTION, alpha=0.75, label="prediction to reference")
    right.hist(back, edges, color=REFERENCE, alpha=0.55, label="reference to prediction")
    right.set_yscale("log")
    values = found.asd, found.masd, found.assd, pooled.hd95, found.hd95
    places = (4, 0.93), (4, 0.84), (4, 0.75), (19, 0.93), (19, 0.84)
    for value, (x, height), words in zip(values, places, WORDS):
        right.axvline(value, color=GREY, linewidth=0.9)
        right.annotate(
            words.format(value), (value, height), (x, height), xycoords=("data", "axes fraction"), va="center",
            ha="left" if x > value else "right", arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.9},
        )  # fmt: skip
    right.set_title("c. its distances, and what is made of them", loc="left")
    right.set(xlabel="distance, mm", ylabel="boundary pixels", xlim=(0, 30))
    right.legend(loc="lower left", frameon=False, bbox_to_anchor=(0.24, 0.46))
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def draw_reliability(axes, bins: Reliability, title):
    edges = np.linspace(0, 1, len(bins.count) + 1)
    some = bins.count > 0
    width = edges[1]
    axes.bar(edges[:-1][some], bins.frequency[some], width, align="edge", color=PREDICTION, edgecolor="white")
    gap = (bins.confidence - bins.frequency)[some]
    axes.bar(edges[:-1][some], gap, width, bins.frequency[some], align="edge", color=REFERENCE, alpha=0.45)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.9)
    for x, share in zip(edges[:-1][some], bins.count[some] / bins.count.sum()):
        axes.text(x + width / 2, 0.02, f"{100 * share:.0f}", ha="center", color="white", fontsize=7)
    axes.set_title(f"{title}\nECE {bins.ece:.3f}", loc="left")
    axes.set(xlim=(0.5, 1), ylim=(0, 1), xlabel="confidence")
    axes.spines[["top", "right"]].set_visible(False)


def reliability_picture(path):
    rng = np.random.default_rng(0)
    shape = (160, 160)
    grid = np.mgrid[: shape[0], : shape[1]] - np.array(shape).reshape(2, 1, 1) / 2
    logit = (32 - np.hypot(*grid)) / 5 + 0.8 * ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) * 5
    labels = (rng.random(shape) < 1 / (1 + np.exp(-logit))).astype(int)
    labels[np.hypot(*grid) > 50] = 0

    def bins(sharpness, **options):
        foreground = 1 / (1 + np.exp(-sharpness * logit))
        return calibration(np.stack([1 - foreground, foreground]), labels, bins=20, **options).reliability

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    draw_reliability(panels[0], bins(1, foreground_margin=4), "a. calibrated, around the foreground")
    draw_reliability(panels[1], bins(3, foreground_margin=4), "b. overconfident, around the foreground")
    draw_reliability(panels[2], bins(3), "c. the same prediction, whole image")
    panels[0].set_ylabel("share predicted right")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/assets"))
    out = parser.parse_args().out
    rcParams.update({"font.size": 9, "axes.titlesize": 9, "svg.fonttype": "none", "svg.hashsalt": "ssmis"})
    distances_picture(out / "metrics_distances.svg")
    reliability_picture(out / "metrics_reliability.svg")


if __name__ == "__main__":
    main()
