# SPDX-License-Identifier: Apache-2.0
"""One HTML file about runs: scores, cases, curves, calibration, protocol and environment."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmis.report._cuts import METHOD_COLOURS
from ssmis.report._markup import Markup, element
from ssmis.report._methods import case_means, methods_of, unit_of
from ssmis.report._parts import SHARES, coloured, metric_name, number, section, swatch, table
from ssmis.report._results import results_section
from ssmis.report._together import check_together
from ssmis.report._training import training_section
from ssmis.report.curves import reliability_chart
from ssmis.report.panels import RAMP, case_strips
from ssmis.report.runs import CaseView, ReportRun, warnings_of

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser refuses scripts and requests
MOST_METHODS = len(METHOD_COLOURS)  # that a report tells apart


def write_report(
    path: str | Path,
    runs: Sequence[ReportRun],
    *,
    title: str,
    subtitle: str = "",
    views: Sequence[CaseView] = (),
    metrics: Sequence[str] | None = None,
) -> None:
    """Write a report as one HTML file that loads nothing: style, charts and pictures are inside, and no script.

    It holds, as far as the runs have it: warnings (collapsed pseudo-labels, skipped steps, an early end), the table of
    scores and the differences of each two rows, the cases, curves of losses and of pseudo-label quality, reliability
    diagrams, protocol and environment in full. A long log is drawn as means with a band from least to greatest.

    Args:
        path: of the file.
        runs: rows of the table, the baseline first. More than there are colours (6) share one a method, which is the
            name without `_seedN`.
        title: of the page.
        subtitle: what every row shares: cases, grid, protocol, seed.
        views: cases to show, for example those that `pick_cases` names.
        metrics: columns of the table, of `ssmis.metrics.METRICS`; the first is drawn and compared case by case. None is
            dice, jaccard, hd95 and assd, or asd where distances are in voxels, as published tables have it.

    Raises:
        ValueError: no run, more methods than colours, two runs of one name, scores that do not compare, seeds of one
            method by their names that differ in more than the seed, a folder without logs, a prediction of an unknown
            run, or arrays that do not fit each other.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise ValueError(f"runs are {names}; expected at least one, of different names")
    if len(methods := methods_of(runs)) > MOST_METHODS and len(runs) > MOST_METHODS:
        told = f"at most {MOST_METHODS} methods, whose runs have names that differ in _seedN alone"
        raise ValueError(f"runs are of {len(methods)} methods, {', '.join(methods)}; expected {told}")
    check_together(runs)
    if metrics is None:
        metrics = ("dice", "jaccard", "hd95", "asd" if unit_of(runs) == "voxel" else "assd")
    if not metrics:
        raise ValueError("metrics is empty; expected at least one, which is drawn")
    for view in views:
        if unknown := [name for name in (*view.predictions, *(view.uncertainty or {})) if name not in names]:
            raise ValueError(f"case {view.case!r} has a prediction of {unknown[0]!r}; expected one of {names}")
    body = [
        element("header", element("h1", title), element("p", subtitle, class_="muted")),
        _warnings(runs),
        results_section(runs, metrics),
        _cases(runs, views, metrics[0]),
        training_section(runs),
        _calibration(runs),
        _settings(runs, "protocol.json", "Protocol"),
        _settings(runs, "env.json", "Environment"),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(Path(__file__).with_name("report.css").read_text(encoding="utf-8"))),
    ]
    page = element("html", element("head", *head), element("body", element("main", *body)), lang="en")
    Path(path).write_text(f"<!doctype html>\n{page}\n", encoding="utf-8")


def _warnings(runs: Sequence[ReportRun]) -> Markup:
    lines = [element("li", element("b", run.name), f": {text}.") for run in runs for text in warnings_of(run)]
    return element("section", element("h2", "Warnings"), element("ul", *lines), class_="warning") if lines else Markup()


def _cases(runs: Sequence[ReportRun], views: Sequence[CaseView], metric: str) -> Markup:
    if not views:
        return Markup()
    colours = {run.name: index for index, run in coloured(runs)}
    means = {run.name: case_means(run.scores, metric) for run in runs}
    factor, digits = (100, 1) if metric in SHARES else (1, 2)
    key = [element("span", element("i", class_="key white"), "reference"), element("span", "in colour: prediction")]
    if any(view.uncertainty for view in views):
        stops = ", ".join(f"rgb{colour} {100 * place:g}%" for place, colour in RAMP)
        ramp = element("i", class_="ramp", style=f"background:linear-gradient(90deg, {stops})")
        key.append(element("span", "uncertainty: 0, sure", ramp, "1, undecided"))
    parts = [element("p", *key, class_="keys")]
    for index, view in enumerate(views):
        shared, strips, where = case_strips(view, f"case{index}", colours)
        badge = [element("span", view.note, class_="badge")] if view.note else []
        rows = []
        for name, strip in strips.items():
            score = means[name].get(view.case)
            told = "" if score is None else f" {metric_name(metric)} {number(factor * score, digits)}"
            title = element("h4", swatch(colours[name]), name, element("span", told, class_="muted"))
            rows += [title, element("div", strip, class_="strips")]
        parts.append(
            element(
                "article", element("h3", *badge, view.case, element("span", where, class_="muted where")), shared, *rows
            )
        )
    return section("Cases", *parts)


def _calibration(runs: Sequence[ReportRun]) -> Markup:
    figures = []
    for index, run in coloured(runs):
        if (bins := run.bins) is not None:
            told = f" ECE {number(bins.ece, 4)}, {int(bins.count.sum())} voxels{_region(run)}"
            caption = [swatch(index), element("b", run.name), element("span", told, class_="muted")]
            drawing = reliability_chart(bins, colour=index, label=f"reliability of {run.name}")
            figures.append(element("figure", element("figcaption", *caption), drawing))
    if not figures:
        return Markup()
    about = "Upwards, the share of the voxels that were right; across, the confidence. Bars end at that share; pale: "
    about += "the gap to the mean confidence, above the bar where the prediction is too sure, within it where it is "
    about += "not sure enough. On the diagonal it is calibrated. Numbers: per cent of the voxels."
    return section("Calibration", element("p", about, class_="muted"), element("div", *figures, class_="grid"))


def _region(run: ReportRun) -> str:
    """Where the voxels of a reliability diagram lie; empty where no record tells."""
    margin = run.settings("protocol.json").get("evaluation.foreground_margin", "unknown")
    if margin is None:
        return " of the whole images"
    return f" of the box around the reference, {margin} voxels wider on each side" if type(margin) is int else ""


def _settings(runs: Sequence[ReportRun], file: str, title: str) -> Markup:
    """Every setting of every run that has the file: those that differ side by side, the others once."""
    found = {run.name: own for run in runs if (own := run.settings(file))}
    if not found:
        return Markup()
    keys = list(dict.fromkeys(key for own in found.values() for key in own))
    first = next(iter(found.values()))
    shared = [key for key in keys if all(key in own and own[key] == first[key] for own in found.values())]
    parts = []
    if differ := [key for key in keys if key not in shared]:
        rows = [[key, *(_setting(own[key]) if key in own else "-" for own in found.values())] for key in differ]
        settings = table(["setting", *found], rows, class_="cards settings runs")
        told = f"{len(differ)} {'setting differs' if len(differ) == 1 else 'settings differ'} between the runs"
        parts.append(element("details", element("summary", told), settings, open=""))
    told = f"{len(shared)} settings" + (" are the same in all runs" if len(found) > 1 else "")
    told += f"; {len(runs) - len(found)} of {len(runs)} runs were kept without" if len(found) < len(runs) else ""
    rows = [[key, _setting(first[key])] for key in shared]
    settings = table(["setting", "value"], rows, class_="settings")
    return section(title, *parts, element("details", element("summary", told), settings))


def _setting(value: Any) -> Markup:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    code = element("code", text)
    if len(text) <= 120:
        return code
    told = f"{len(value)} entries" if isinstance(value, list) else f"{len(text)} characters"
    return element("details", element("summary", told), code)
