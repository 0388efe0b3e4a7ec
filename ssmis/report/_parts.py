# SPDX-License-Identifier: Apache-2.0
"""What the sections of a report share: tables, figures, and how numbers and metrics are written."""

from collections.abc import Sequence
from math import isnan

from ssmis.report._cuts import METHOD_COLOURS
from ssmis.report._markup import Markup, element
from ssmis.report._methods import method_of, unit_of
from ssmis.report.curves import Series, chart
from ssmis.report.runs import ReportRun

TITLES = {"dice": "Dice", "jaccard": "Jaccard", "nsd": "NSD"}
SHARES = frozenset(TITLES)  # written in per cent


def section(title: str, *parts: str) -> Markup:
    """A section with its heading."""
    return element("section", element("h2", title), *parts)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, class_: str) -> Markup:
    """A table that scrolls within its section; its cells know their column, for screens on which a row is a card."""
    top = element("thead", element("tr", *(element("th", head, scope="col") for head in heads)))
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, data_label=head) for head, cell in zip(heads[1:], row[1:])),
        )
        for row in rows
    ]
    return element("div", element("table", top, element("tbody", *lines), class_=class_), class_="wide")


def figure(title: str, about: str, series: Sequence[Series], *, top: float | None = None, log: bool = False) -> Markup:
    caption = element("figcaption", element("b", title), element("span", f" {about}" if about else "", class_="muted"))
    return element("figure", caption, chart(series, label=f"{title} {about}".strip(), top=top, log=log))


def coloured(runs: Sequence[ReportRun]) -> list[tuple[int, ReportRun]]:
    """Runs with the index of their colour: one each, or one a method where there are more runs than colours."""
    if len(runs) <= len(METHOD_COLOURS):
        return list(enumerate(runs))
    methods = list(dict.fromkeys(method_of(run) for run in runs))
    return [(methods.index(method_of(run)), run) for run in runs]


def swatch(index: int) -> Markup:
    return element("i", class_=f"swatch c{index}")


def number(value: float | None, digits: int) -> str:
    return "n/a" if value is None or isnan(value) else f"{value:.{digits}f}"


def metric_head(runs: Sequence[ReportRun], metric: str) -> str:
    return f"{metric_name(metric)} {'%' if metric in SHARES else unit_of(runs)}".strip()


def metric_name(metric: str) -> str:
    return TITLES.get(metric, metric.upper())
