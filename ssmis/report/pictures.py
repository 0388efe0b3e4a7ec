# SPDX-License-Identifier: Apache-2.0
"""Pictures of cases: slices with the outlines of the reference and of every method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmis._optional import require
from ssmis.report._cuts import METHOD_COLOURS, Array, ArrayLike, checked_case, checked_spacing, panels

Row = tuple[str, ArrayLike, Mapping[str, ArrayLike]]

BACKGROUND, TEXT = "#111317", "#e8e8e8"
REFERENCE_COLOUR = "#ffffff"


def case_picture(
    path: str | Path,
    rows: Sequence[Row],
    *,
    spacing_mm: Sequence[float] | None = None,
    reference: str = "reference",
    panel_inches: float = 3.0,
) -> None:
    """Write a PNG with one row a case: three planes of a volume, or the one of a 2-D image.

    A volume is cut across each axis where the reference is largest (where all masks together are, without a reference;
    in the middle, without a mask). The reference is the broad white outline, methods are thin and coloured, drawn over
    it in the order of the legend.

    Args:
        path: of the PNG.
        rows: `(title, image (*S), {name: mask (*S)})`; masks are bool, or integer labels of which every class is
            outlined. Cases may differ in size and in which masks they have.
        spacing_mm: voxel size in mm, for the aspect of the panels; None is isotropic.
        reference: the name among the masks that is the reference.
        panel_inches: height of a panel; its width follows the shape of the cut.

    Raises:
        ValueError: no rows, an image that is not 2-D or 3-D, a mask of another shape than its image, a spacing that
            does not fit, or more methods than colours.
    """
    figure_module = require("matplotlib.figure", extra="medical", purpose="pictures of cases")
    agg = require("matplotlib.backends.backend_agg", extra="medical", purpose="pictures of cases")
    cases = [checked_case(title, image, masks) for title, image, masks in rows]
    if not cases:
        raise ValueError("rows is empty; expected at least one case")
    names = list(dict.fromkeys(name for _, _, masks in cases for name in masks))
    methods = [name for name in names if name != reference]
    if len(methods) > len(METHOD_COLOURS):
        raise ValueError(f"{len(methods)} methods in one picture; expected at most {len(METHOD_COLOURS)}")
    colours = dict(zip(methods, METHOD_COLOURS))
    drawn = ([reference] if reference in names else []) + methods
    colours[reference] = REFERENCE_COLOUR

    cuts = [panels(image, masks, reference, checked_spacing(spacing_mm, image.ndim)) for _, image, masks in cases]
    title_inches, legend_inches = 0.32, 0.42
    height = len(cases) * (panel_inches + title_inches) + legend_inches
    width = max(
        *(panel_inches * sum(panel.shape for panel in row) for row in cuts),
        *(0.2 + 0.078 * len(title) for title, _, _ in cases),
        sum(0.6 + 0.09 * len(name) for name in drawn),
    )
    figure = figure_module.Figure(figsize=(width, height), dpi=150, facecolor=BACKGROUND)
    agg.FigureCanvasAgg(figure)  # draws without touching the user's backend
    for index, ((title, image, masks), row) in enumerate(zip(cases, cuts)):
        top = height - index * (panel_inches + title_inches)
        figure.text(0.06 / width, (top - 0.24) / height, title, color=TEXT, fontsize=10, va="baseline")
        bottom, left = top - title_inches - panel_inches + 0.03, 0.03
        low, high = np.percentile(image, [1, 99.5])
        grey = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6), "interpolation": "nearest"}
        for panel in row:
            across = panel_inches * panel.shape
            axes = figure.add_axes(
                (left / width, bottom / height, (across - 0.06) / width, (panel_inches - 0.06) / height)
            )
            left += across
            axes.set_axis_off()
            axes.imshow(panel.cut(image), aspect=panel.aspect, **grey)
            for name in (name for name in drawn if name in masks):
                _outline(axes, panel.cut(masks[name]), colours[name], broad=name == reference)
            if panel.axis is not None:
                box = {"facecolor": BACKGROUND, "alpha": 0.6, "edgecolor": "none", "pad": 1.5}
                label = f"axis {panel.axis}, slice {panel.index}"
                axes.text(0.03, 0.03, label, transform=axes.transAxes, color=TEXT, fontsize=7, bbox=box)
    _legend(figure, drawn, colours, reference)
    figure.savefig(path, facecolor=BACKGROUND, format="png")


def _outline(axes: Any, labels: Array, colour: str, *, broad: bool) -> None:
    effects = require("matplotlib.patheffects", extra="medical", purpose="pictures of cases")
    width = 1.8 if broad else 1.1
    rim = [effects.withStroke(linewidth=width + 1.2, foreground=BACKGROUND, alpha=0.7)]  # seen on bright tissue too
    for label in np.unique(labels[labels > 0]):
        mask = np.pad(labels == label, 1).astype(np.float32)  # padded, so that outlines close at the border
        rows, columns = (np.arange(-1, length - 1) for length in mask.shape)
        lines = axes.contour(columns, rows, mask, [0.5], colors=[colour], linewidths=width)
        lines.set(path_effects=rim if broad else [])


def _legend(figure: Any, drawn: Sequence[str], colours: Mapping[str, str], reference: str) -> None:
    lines = require("matplotlib.lines", extra="medical", purpose="pictures of cases")
    if not drawn:
        return
    handles = [
        lines.Line2D([], [], color=colours[name], linewidth=2.5 if name == reference else 1.5, label=name)
        for name in drawn
    ]
    style = {"loc": "lower center", "ncols": len(handles), "frameon": False, "labelcolor": TEXT, "fontsize": 9}
    figure.legend(handles=handles, bbox_to_anchor=(0.5, 0.0), **style)
