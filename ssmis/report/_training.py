# SPDX-License-Identifier: Apache-2.0
"""Curves of training in a report: losses, gradient norm, and what callbacks measured."""

from collections.abc import Mapping, Sequence

import numpy as np

from ssmis.report._cuts import Array
from ssmis.report._markup import Markup, element
from ssmis.report._parts import coloured, figure, section
from ssmis.report.curves import Series
from ssmis.report.runs import ReportRun

Charts = dict[str, list[Series]]


def training_section(runs: Sequence[ReportRun]) -> Markup:
    """Charts over steps, one a measure with all runs in it: the colour tells the run, the dash the net."""
    losses: Charts = {}
    quality: Charts = {}
    nets: dict[str, int] = {}
    for index, run in coloured(runs):
        log = run.metrics
        terms = {name: log[name] * log[f"weight:{name}"] for name in log if f"weight:{name}" in log}
        own = {name: log[name] for name in ("loss", "grad_norm") if name in log}
        _collect(losses, own | {name: values for name, values in terms.items() if values.any()}, log, run, index, nets)
        measured = {name: values for name, values in run.quality.items() if name != "step"}
        _collect(quality, measured, run.quality, run, index, nets)
    keys = [element("span", element("i", class_=f"key c{index}"), run.name) for index, run in coloured(runs)]
    if len(nets) > 1:
        keys += [element("span", _dash(dash), net) for net, dash in nets.items()]
    legend = element("p", *keys, class_="keys")
    titles = {"loss": ("loss", "total"), "grad_norm": ("gradient norm", "logarithmic")}
    first = [
        figure(*titles.get(name, (name, "weight × value")), group, log=name == "grad_norm")
        for name, group in losses.items()
    ]
    second = [figure(name.replace("_", " "), "", group) for name, group in quality.items()]
    over = element("p", "Over training steps.", class_="muted")
    found = section("Losses", legend, over, element("div", *first, class_="grid")) if first else Markup()
    if second:
        about = element("p", "Over training steps, on cases whose labels training does not see.", class_="muted")
        found = Markup(found + section("Pseudo-label quality", legend, about, element("div", *second, class_="grid")))
    return found


def _collect(
    charts: Charts, columns: Mapping[str, Array], log: Mapping[str, Array], run: ReportRun, colour: int,
    nets: dict[str, int],
) -> None:  # fmt: skip
    """Sort columns `measure/net` into charts by measure; nets are numbered as they come."""
    for column, values in columns.items():
        if not np.isfinite(values).any():
            continue
        measure, _, net = column.partition("/")
        dash = nets.setdefault(net, len(nets) % 4) if net else 0
        charts.setdefault(measure, []).append(Series(f"{run.name} {net}".strip(), log["step"], values, colour, dash))


def _dash(dash: int) -> Markup:
    return element("svg", element("path", class_=f"line d{dash}", d="M1 3H25"), class_="dash", viewBox="0 0 26 6")
