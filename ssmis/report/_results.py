# SPDX-License-Identifier: Apache-2.0
"""Results in a report: the table, differences between them, and the scores of every case."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ssmis.metrics import Summary, compare_runs, summarise
from ssmis.report._markup import Markup, element
from ssmis.report._methods import case_means, differences, methods_of, over_seeds
from ssmis.report._parts import (
    SHARES,
    coloured,
    figure,
    metric_head,
    metric_name,
    number,
    section,
    swatch,
    table,
)
from ssmis.report.curves import Series
from ssmis.report.runs import ReportRun


def results_section(runs: Sequence[ReportRun], metrics: Sequence[str]) -> Markup:
    """The table, a row a run and class; below it what is known case by case."""
    labels = sorted({score.label for run in runs for score in run.scores})
    rows: list[list[str]] = []
    for index, run in coloured(runs):
        for label in [None, *(labels if len(labels) > 1 else [])]:
            own = [score for score in run.scores if label is None or score.label == label]
            found = [summarise(own, metric=metric) for metric in metrics] if own else []
            name = element("b", run.name) if label is None else element("span", f"class {label}", class_="muted")
            cells: list[str] = [element("span", swatch(index) if label is None else "", name, class_="name")]
            cells += [_cell(summary) for summary in found] or ["n/a"] * len(metrics)
            cells += [str(found[0].n), str(found[0].n_miss)] if found else ["0", "n/a"]
            cost = [number(run.training_minutes, 1), number(run.training_peak_mb, 0)]
            rows.append(cells + (cost if label is None else ["", ""]))
    heads = ["run", *(metric_head(runs, metric) for metric in metrics), "n", "missed", "minutes", "peak MB"]
    if not labels:
        heads, rows = ["run", *heads[-2:]], [[row[0], *row[-2:]] for row in rows]
    scored = [(index, run) for index, run in coloured(runs) if run.scores]
    parts: list[str] = [_methods(scored, metrics), table(heads, rows, class_="cards numbers")]
    several = len({score.case for run in runs for score in run.scores}) > 1
    if scored:
        note = "Mean ± standard deviation over cases; below it the bootstrap 95 % interval of the mean. " * several
        note += "A missed case counts with Dice 0 and the image diagonal as distance."
        note += _not_shared([run for _, run in scored])
        parts += [element("p", note, class_="muted"), _differences(scored, metrics[0]), _largest(scored, metrics)]
    if several:  # one case is all there is in the table
        drawn = list(dict.fromkeys([metrics[0], *(metric for metric in metrics if metric not in SHARES)]))[:3]
        about = f"Cases from the worst to the best of {scored[0][1].name}, for each metric anew."
        parts.append(element("p", about, class_="muted"))
        parts.append(element("div", *(_by_case(runs, scored, metric) for metric in drawn), class_="grid"))
    if scored:
        parts.append(_all_scores(scored, metrics[0]))
    return section("Results", *parts)


def _not_shared(scored: Sequence[ReportRun]) -> str:
    """That methods were scored on other cases, where they were."""
    cases = [{score.case for run in runs for score in run.scores} for runs in methods_of(scored).values()]
    every, some = set.intersection(*cases), set.union(*cases)
    if every == some:
        return ""
    return f" Means are over other cases: of {len(some)} cases every method was scored on {len(every)} alone."


def _methods(scored: Sequence[tuple[int, ReportRun]], metrics: Sequence[str]) -> Markup:
    """Means and spread over the seeds of each method, and differences of each two; nothing without seeds."""
    methods = methods_of([run for _, run in scored])
    if len(methods) == len(scored):
        return Markup()
    rows = []
    for name, runs in methods.items():
        cells: list[str] = [element("b", name), str(len(runs))]
        for metric in metrics:
            factor = 100 if metric in SHARES else 1
            mean, sd = over_seeds(runs, metric)
            spread = f" ± {number(factor * sd, 2)}" if len(runs) > 1 else ""
            cells.append(element("span", element("b", number(factor * mean, 2)), spread, class_="value"))
        rows.append([*cells, number(float(np.mean([run.training_minutes for run in runs])), 1)])
    heads = ["method", "seeds", *(metric_head([run for _, run in scored], metric) for metric in metrics), "minutes"]
    told = differences([run for _, run in scored])
    lines = [element("li", element("b", own), f" against {base}: {words}") for own, base, words in told]
    note = element("p", "Mean ± standard deviation over seeds of the means over cases; each run below.", class_="muted")
    return Markup(
        table(heads, rows, class_="cards numbers")
        + note
        + (element("ul", *lines, class_="plain") if lines else Markup())
    )


def _largest(scored: Sequence[tuple[int, ReportRun]], metrics: Sequence[str]) -> Markup:
    """The same means with the largest component of each class alone, of runs that were scored so too."""
    both = [(index, run) for index, run in scored if run.scores_largest]
    if not both:
        return Markup()
    rows = [
        [
            element("span", swatch(index), element("b", run.name), class_="name"),
            *(_cell(summarise(run.scores_largest, metric=metric)) for metric in metrics),
        ]
        for index, run in both
    ]
    heads = ["run", *(metric_head([run for _, run in both], metric) for metric in metrics)]
    told = "With only the largest component of each class; above, predictions are as they are"
    return element("details", element("summary", told), table(heads, rows, class_="cards numbers"), open="")


def _cell(summary: Summary) -> Markup:
    factor, digits = (100, 1) if summary.metric in SHARES else (1, 2)
    mean, sd, low, high = (
        number(factor * value, digits) for value in (summary.mean, summary.sd, summary.low, summary.high)
    )
    if summary.n == 1:  # nothing to tell a spread from
        return element("span", element("b", mean), class_="value")
    return element(
        "span", element("span", element("b", mean), f" ± {sd}"), element("small", f"{low} to {high}"), class_="value"
    )


def _differences(scored: Sequence[tuple[int, ReportRun]], metric: str) -> Markup:
    """Each two runs, paired where the cases are the same; nothing where methods have several."""
    factor, unit = (100, "points") if metric in SHARES else (1, "")
    lines = []
    if len(methods_of([run for _, run in scored])) < len(scored):
        return Markup()  # pairs of methods stand above
    for (_, first), (index, run) in combinations(scored, 2):
        try:
            found = compare_runs(run.scores, first.scores, metric=metric)
        except ValueError:  # other cases, or none that both have
            continue
        words = f" {metric_name(metric)} {factor * found.mean:+.1f} {unit} against {first.name}, "
        interval = f"95 % interval {factor * found.low:.1f} to {factor * found.high:.1f}, p = {found.p_value:.2g}"
        words += f"{interval} (sign flips, {found.n} paired cases)" if found.n > 1 else "one case"
        lines.append(element("li", swatch(index), element("b", run.name), words))
    return element("ul", *lines, class_="plain") if lines else Markup()


def _by_case(runs: Sequence[ReportRun], scored: Sequence[tuple[int, ReportRun]], metric: str) -> Markup:
    """Points over the cases, in the order of the first run from worst to best; nothing if no case applies."""
    values = {run.name: case_means(run.scores, metric) for _, run in scored}
    first = values[scored[0][1].name]
    ranked = sorted(first, key=lambda case: first[case] if metric in SHARES else -first[case])
    order = list(dict.fromkeys([*ranked, *(case for own in values.values() for case in own)]))
    if not order:
        return Markup()
    factor = 100 if metric in SHARES else 1
    series = []
    for index, run in scored:
        numbers = np.array([factor * values[run.name].get(case, np.nan) for case in order])
        points = [f"{case}, {run.name}: {value:.2f}" for case, value in zip(order, numbers)]
        series.append(Series(run.name, np.arange(1.0, len(order) + 1), numbers, index, 0, points))
    name = metric_head(runs, metric)
    return figure(name, "of each case", series, top=100.0 if metric in SHARES else None)


def _all_scores(scored: Sequence[tuple[int, ReportRun]], metric: str) -> Markup:
    factor = 100 if metric in SHARES else 1
    columns = []
    for _, run in scored:
        missed = {score.case for score in run.scores if score.status == "miss"}
        means = case_means(run.scores, metric)
        columns.append({case: f"{factor * v:.2f}{' (miss)' if case in missed else ''}" for case, v in means.items()})
    cases = list(dict.fromkeys(case for column in columns for case in column))
    rows = [[case, *(column.get(case, "n/a") for column in columns)] for case in cases]
    heads = [f"case, {metric_name(metric)}{' %' if metric in SHARES else ''}", *(run.name for _, run in scored)]
    scores = table(heads, rows, class_="cards numbers runs")
    return element("details", element("summary", f"{metric_name(metric)} of every case"), scores)
