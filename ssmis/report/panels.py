# SPDX-License-Identifier: Apache-2.0
"""Cases in a report: planes with the outlines of reference and prediction, and uncertainty maps."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ssmis.report._cuts import METHOD_COLOURS, Array, Panel, as_array, checked_case, checked_spacing, panels
from ssmis.report._markup import Markup, element, png_uri
from ssmis.report.runs import CaseView

# dark to light with evenly growing lightness, through hues that no outline has
RAMP = (
    (0.0, (6, 8, 16)),
    (0.35, (40, 44, 120)),
    (0.65, (150, 48, 140)),
    (0.85, (232, 110, 120)),
    (1.0, (255, 226, 200)),
)
REFERENCE = "reference"


def case_strips(view: CaseView, key: str, colours: Mapping[str, int]) -> tuple[Markup, dict[str, Markup], str]:
    """Draw a case: the pictures all its strips share, for each run its strips, and where the planes are.

    Args:
        view: the case.
        key: makes the ids of its pictures unique on the page.
        colours: name of a run -> index of its colour.

    Raises:
        ValueError: an array of another shape than the image, an image that is not 2-D or 3-D, a spacing that does not
            fit, or an uncertainty outside of [0, 1].
    """
    masks = dict(view.predictions) | ({} if view.reference is None else {REFERENCE: view.reference})
    maps = {name: as_array(values) for name, values in (view.uncertainty or {}).items()}
    _, image, labels = checked_case(view.case, view.image, masks)
    for name, values in maps.items():
        if values.shape != image.shape:
            raise ValueError(f"uncertainty {name!r} of {view.case!r} has shape {values.shape}; expected {image.shape}")
        if not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):
            raise ValueError(
                f"uncertainty {name!r} of {view.case!r} is in [{values.min()}, {values.max()}]; expected [0, 1]"
            )
    cuts = panels(image, labels, REFERENCE, checked_spacing(view.spacing_mm, image.ndim))
    low, high = np.percentile(image, [1, 99.5])
    grey = _bytes((image - low) / max(high - low, 1e-6))
    shared = element(
        "svg",
        *(_picture(png_uri(cut.cut(grey)), cut, grey, id=f"{key}-{index}") for index, cut in enumerate(cuts)),
        class_="shared",
        aria_hidden="true",
    )
    uses = [element("use", href=f"#{key}-{index}") for index in range(len(cuts))]
    strips = {}
    for name in view.predictions:
        lines = [_lines(labels, name, METHOD_COLOURS[colours[name]], cut) for cut in cuts]
        parts = [_strip(cuts, grey, uses, lines, f"{view.case}, {name}: outlines")]
        if name in maps:
            levels = _bytes(maps[name])
            seen = [_picture(png_uri(cut.cut(levels), palette()), cut, grey) for cut in cuts]
            parts.append(_strip(cuts, grey, seen, lines, f"{view.case}, {name}: uncertainty"))
        strips[name] = Markup("".join(parts))
    where = ", ".join(f"{cut.index} of axis {cut.axis}" for cut in cuts if cut.axis is not None)
    return shared, strips, f"slices {where}" if where else ""


def outline(labels: Array) -> str:
    """Return an SVG path along the voxel edges between the classes of `(H, W)`, in voxels; background is around it.

    >>> outline(np.array([[0, 1, 1]]))
    'M1 0h2M1 1h2M1 0v1M3 0v1'
    """
    padded = np.pad(np.maximum(labels, 0), 1)
    across = _runs(padded[1:] != padded[:-1])
    down = _runs((padded[:, 1:] != padded[:, :-1]).T)
    path = [f"M{start - 1} {line}h{length}" for line, start, length in across]
    return "".join(path + [f"M{line} {start - 1}v{length}" for line, start, length in down])


def palette() -> npt.NDArray[np.uint8]:
    """The colours of uncertainty from 0 to 1, RGB `(256, 3)`."""
    at, places = np.linspace(0, 1, 256), [place for place, _ in RAMP]
    channels = np.array([colour for _, colour in RAMP], dtype=np.float64).T
    return np.stack([np.interp(at, places, channel) for channel in channels], axis=1).round().astype(np.uint8)


def _bytes(values: Array) -> npt.NDArray[np.uint8]:
    return (255 * np.clip(values, 0, 1)).round().astype(np.uint8)


def _runs(edges: Array) -> list[tuple[int, int, int]]:
    """Line, start and length of the runs of True in each line of `(N, M)`."""
    turns = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lines, starts = np.nonzero(turns == 1)
    return list(zip(lines.tolist(), starts.tolist(), (np.nonzero(turns == -1)[1] - starts).tolist()))


def _picture(uri: str, cut: Panel, volume: Array, **attributes: str) -> Markup:
    height, width = cut.cut(volume).shape
    return element("image", href=uri, width=width, height=height, preserveAspectRatio="none", **attributes)


def _lines(labels: dict[str, Array], name: str, colour: str, cut: Panel) -> Markup:
    """The reference broad and white, the prediction thin and coloured over it, both on a dark rim."""
    drawn = [(labels[REFERENCE], "reference", "#fff")] if REFERENCE in labels else []
    drawn.append((labels[name], "prediction", colour))
    paths = [(outline(cut.cut(mask)), style, stroke) for mask, style, stroke in drawn]
    rims = [element("path", class_=f"rim {style}", d=path) for path, style, _ in paths]
    return Markup(
        "".join([*rims, *(element("path", class_=style, stroke=stroke, d=path) for path, style, stroke in paths)])
    )


def _strip(cuts: list[Panel], volume: Array, pictures: list[Markup], lines: list[Markup], label: str) -> Markup:
    found = []
    for cut, picture, outlines in zip(cuts, pictures, lines):
        height, width = cut.cut(volume).shape
        shape = width / (height * cut.aspect)
        inside = element("g", picture, outlines, transform=f"scale(1 {cut.aspect:g})")
        box = {"viewBox": f"0 0 {width} {height * cut.aspect:g}", "style": f"flex-grow:{shape:.4f}"}
        found.append(element("svg", inside, role="img", aria_label=label, **box))
    return element("div", *found, class_="strip")
