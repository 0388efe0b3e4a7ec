# SPDX-License-Identifier: Apache-2.0
"""The report as a page: it loads nothing, runs nothing, escapes everything, and holds the numbers it was given."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from ssmis.data import DataError
from ssmis.engine.log import CsvLog
from ssmis.engine.record import reliability_csv
from ssmis.metrics import calibration, compare_runs, evaluate_case, summarise, write_cases_csv
from ssmis.report import CaseView, ReportRun, pick_cases, report_runs, seeds_table, write_report
from ssmis.report._methods import method_of
from ssmis.report.runs import read_log, read_reliability

EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(1)>&amp;"""
VOID = {"meta", "br"}
SHAPE = (12, 10, 8)


class Page(HTMLParser):
    """Elements as (tag, attributes), all text, the cells of tables, and whether tags are closed in order."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.text, self.tables = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def label_map(rng, radius):
    grid = np.indices(SHAPE).reshape(3, -1).T - np.array(SHAPE) / 2 + rng.normal(0, 0.5, 3)
    return (np.linalg.norm(grid, axis=1) < radius).reshape(SHAPE).astype(np.int64)


def write_run(folder, *, seed=0, cases=("a", "b", "c", "d"), steps=20, planned=20, foreground=(0.1, 0.2), name="net"):
    """A run folder with logs, settings and scores, and the predicted labels."""
    rng, folder = np.random.default_rng(seed), folder / f"run{seed}"
    log, quality = CsvLog(folder / "metrics.csv"), CsvLog(folder / "quality.csv")
    for step in range(steps):
        loss = float(rng.random() + 1)
        log.write({"step": step, "seconds": 3.0 * step, "peak_mb": 900.0 + step, "loss": loss, "grad_norm": loss,
                   f"term/{name}": loss / 2, f"weight:term/{name}": 0.5})  # fmt: skip
    for index, share in enumerate(foreground):
        quality.write({"step": 10 * (index + 1), f"foreground/{name}": share})
    log.close()
    quality.close()
    (folder / "protocol.json").write_text(json.dumps({"fit": {"steps": planned, "seed": seed}, "patch": [8, 8]}))
    (folder / "env.json").write_text(json.dumps({"packages": {"torch": "9.9"}, "gpus": []}))
    scores, predictions = [], {}
    for index, case in enumerate(cases):
        predictions[case] = label_map(rng, rng.uniform(2, 4))
        reference = label_map(np.random.default_rng(100 + index), 3)  # one for all runs
        scores += evaluate_case(predictions[case], reference, classes=(1,), spacing_mm=(1.0, 1.0, 1.0), case=case)
    if scores:
        write_cases_csv(folder / "cases.csv", scores)
    return ReportRun(f"row{seed}", folder, peak_memory_mb=1234.0), predictions


@pytest.fixture
def two(tmp_path):
    """Two runs with everything, and a view of one case."""
    rng = np.random.default_rng(5)
    (first, labels), (second, others) = write_run(tmp_path, seed=0), write_run(tmp_path, seed=1)
    foreground = rng.random(SHAPE)
    bins = calibration(np.stack([1 - foreground, foreground]), labels["a"]).reliability
    view = CaseView("a", rng.random(SHAPE), {"row0": labels["a"], "row1": others["a"]}, label_map(rng, 3),
                    {"row1": rng.random(SHAPE)}, note="worst")  # fmt: skip
    return [replace(first, reliability=bins), replace(second, minutes=7.25, reliability=bins)], view


def written(tmp_path, runs, **options):
    path = tmp_path / "report.html"
    write_report(path, runs, **{"title": "A title"} | options)
    return Page(path)


def test_the_page_loads_and_runs_nothing(tmp_path, two):
    page = written(tmp_path, two[0], views=[two[1]])
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "base", "form", "foreignobject"}
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) == 3  # the planes, shared by the strips of both runs
    assert not page.attributes("src")
    for target in page.attributes("href"):
        assert target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids
    whole = (tmp_path / "report.html").read_text()
    assert "@import" not in whole
    assert "url(" not in whole
    assert not re.search(r"(https?:)?//\w", re.sub(r'"data:[^"]*"', "", whole))
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_from_outside_stay_text(tmp_path):
    run, labels = write_run(tmp_path, cases=(EVIL, "b"), name=EVIL.replace("/", "|"))
    folder = run.folder.rename(tmp_path / EVIL.replace("/", "|"))
    (folder / "protocol.json").write_text(json.dumps({EVIL: EVIL, "list": [EVIL] * 9}))
    run = ReportRun(EVIL, folder)
    view = CaseView(EVIL, np.random.default_rng(0).random(SHAPE), {EVIL: labels[EVIL]}, labels[EVIL], note=EVIL)
    page = written(tmp_path, [run], title=EVIL, subtitle=EVIL, views=[view])
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) >= 8
    assert [EVIL, EVIL] in [row for table in page.tables for row in table]  # the setting


def test_the_table_holds_the_numbers_of_the_runs(tmp_path, two):
    page = written(tmp_path, two[0], metrics=("dice", "hd95"))
    head, *rows = page.tables[0]
    assert head == ["run", "Dice %", "HD95 mm", "n", "missed", "minutes", "peak MB"]
    for run, row, minutes in zip(two[0], rows, ("0.9", "7.2"), strict=True):  # 57 seconds by the log; as given
        dice, hd95 = (summarise(run.scores, metric=metric) for metric in ("dice", "hd95"))
        assert row[0] == run.name
        assert row[1] == f"{100 * dice.mean:.1f} ± {100 * dice.sd:.1f}{100 * dice.low:.1f} to {100 * dice.high:.1f}"
        assert row[2] == f"{hd95.mean:.2f} ± {hd95.sd:.2f}{hd95.low:.2f} to {hd95.high:.2f}"
        assert row[3:] == ["4", "0", minutes, "1234"]
    found = compare_runs(two[0][1].scores, two[0][0].scores, metric="dice")
    assert f"Dice {100 * found.mean:+.1f} points against row0" in page.text
    assert f"{100 * found.low:.1f} to {100 * found.high:.1f}, p = {found.p_value:.2g}" in page.text
    by_case = {row[0]: row[1:] for row in page.tables[1][1:]}
    for score in two[0][0].scores:
        assert by_case[score.case][0] == f"{100 * score.dice:.2f}"


def test_the_largest_component_stands_below_where_it_was_scored(tmp_path, two):
    page = written(tmp_path, two[0], metrics=("dice",))
    assert "only the largest component" not in page.text
    scores = [replace(score, dice=0.25) for score in two[0][1].scores]
    write_cases_csv(two[0][1].folder / "cases_largest.csv", scores)
    page = written(tmp_path, [replace(run) for run in two[0]], metrics=("dice",))
    assert "only the largest component" in page.text
    assert page.tables[1] == [["run", "Dice %"], ["row1", "25.0 ± 0.025.0 to 25.0"]]


def test_a_supervised_run_has_no_pseudo_labels_to_warn_of(tmp_path):
    run, _ = write_run(tmp_path, foreground=(0.1, 0.0))
    record = json.loads((run.folder / "protocol.json").read_text())
    (run.folder / "protocol.json").write_text(json.dumps({**record, "unlabelled": {"count": 0}}))
    assert "predictions of net have collapsed" in written(tmp_path, [run]).text


def test_a_missed_case_is_told(tmp_path):
    run, _ = write_run(tmp_path)
    empty, full = np.zeros((1, 5, 5), int), np.ones((1, 5, 5), int)
    scores = evaluate_case(empty, full, classes=(1,), spacing_mm=(1, 1, 1), case="a")
    scores += evaluate_case(full, full, classes=(1,), spacing_mm=(1, 1, 1), case="b")
    write_cases_csv(run.folder / "cases.csv", scores)
    page = written(tmp_path, [run], metrics=("dice",))
    assert page.tables[0][1][2:4] == ["2", "1"]
    assert ["a", "0.00 (miss)"] in page.tables[1]


def test_classes_have_rows_of_their_own(tmp_path):
    run, _ = write_run(tmp_path)
    labels = np.arange(27).reshape(3, 3, 3) % 3
    scores = [s for c in "ab" for s in evaluate_case(labels, labels.T, classes=(1, 2), spacing_mm=(1, 1, 1), case=c)]
    write_cases_csv(run.folder / "cases.csv", scores)
    page = written(tmp_path, [run], metrics=("dice",))
    assert [row[0] for row in page.tables[0]] == ["run", "row0", "class 1", "class 2"]
    assert page.tables[0][3][1].startswith(f"{100 * summarise(scores, metric='dice', label=2).mean:.1f} ")


def test_every_setting_is_there_and_differences_are_side_by_side(tmp_path, two):
    page = written(tmp_path, two[0])
    rows = [row for table in page.tables for row in table]
    assert ["fit.seed", "0", "1"] in rows
    for row in (["fit.steps", "20"], ["patch", "[8, 8]"], ["packages.torch", "9.9"], ["gpus", "[]"]):
        assert row in rows
    assert "1 setting differs between the runs" in page.text


@pytest.mark.parametrize(
    ("foreground", "told"),
    [
        ((0.1, 0.0, 0.0), "pseudo-labels of net have collapsed: foreground is 0 % of the voxels at the last"),
        ((0.1, 1.0, 0.999), "since step 20"),
        ((1e-5,), "since step 10"),
        ((0.1, 0.0, 0.1), "were collapsed in 1 of 3 measurements"),
    ],
)
def test_collapsed_pseudo_labels_are_warned_of(tmp_path, foreground, told):
    run, _ = write_run(tmp_path, foreground=foreground)
    page = written(tmp_path, [run])
    assert "warning" in page.attributes("class")
    assert told in page.text


def test_a_healthy_run_has_no_warning(tmp_path):
    assert "warning" not in written(tmp_path, [write_run(tmp_path)[0]]).attributes("class")


def test_skipped_steps_and_an_early_end_are_warned_of(tmp_path):
    run, _ = write_run(tmp_path, planned=30)
    log = (run.folder / "metrics.csv").read_text().splitlines()
    step, seconds, peak, *_ = log[3].split(",")
    log[3] = f"{step},{seconds},{peak},nan,nan,nan,0.5"
    (run.folder / "metrics.csv").write_text("\n".join(log) + "\n")
    page = written(tmp_path, [run])
    assert "1 of 20 steps were skipped" in page.text
    assert "training is at step 20 of 30" in page.text


def test_a_run_in_training_has_curves_only(tmp_path):
    page = written(tmp_path, [write_run(tmp_path, cases=(), foreground=())[0]])
    assert page.tables[0] == [["run", "minutes", "peak MB"], ["row0", "0.9", "1234"]]
    assert "Losses" in page.text
    for absent in ("Dice", "Pseudo-label quality", "Calibration", "Cases"):
        assert absent not in page.text


def rescored(run, **changes):
    """A run whose scores differ from what they were in these fields."""
    write_cases_csv(run.folder / "cases.csv", [replace(score, **changes) for score in run.scores])
    return ReportRun(run.name, run.folder)


def recorded(run, **changes):
    """A run whose record tells more."""
    record = json.loads((run.folder / "protocol.json").read_text())
    (run.folder / "protocol.json").write_text(json.dumps(record | changes))
    return run


RECORD = {
    "protocol": {"family": "la"},
    "checkpoint": "last",
    "evaluation": {"convention": "default", "foreground_margin": 8, "nsd_tolerance": 1.0},
}


def evaluated(**changes):
    return {"evaluation": RECORD["evaluation"] | changes}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: rescored(run, unit="voxel"), r"row1 has distances in \['voxel'\], row0 has \['mm'\]"),
        (lambda run: rescored(run, label=2), r"row1 has classes \[2\], row0 has \[1\]"),
        (lambda run: rescored(run, nsd_tolerance=2.0), r"row1 has tolerance of nsd \[2\.0\], row0 has \[1\.0\]"),
        (lambda run: recorded(run, protocol={"family": "acdc"}), r"protocol\.family 'acdc', row0 has 'la'"),
        (lambda run: recorded(run, protocol={}), r"protocol\.family '', row0 has 'la'"),
        (lambda run: recorded(run, **evaluated(convention="medpy")), r"evaluation\.convention 'medpy'"),
        (lambda run: recorded(run, **evaluated(nsd_tolerance=2.0)), r"evaluation\.nsd_tolerance 2\.0, row0 has 1\.0"),
        (lambda run: recorded(run, **evaluated(foreground_margin=None)), "foreground_margin None, row0 has 8"),
        (lambda run: recorded(run, checkpoint="best_on_validation"), "checkpoint 'best_on_validation'"),
    ],
)
def test_scores_that_do_not_compare_are_refused(tmp_path, two, change, told):
    first, second = (recorded(run, **RECORD) for run in two[0])
    with pytest.raises(ValueError, match=f"{told}.*their numbers do not compare"):
        written(tmp_path, [first, change(second)])
    with pytest.raises(ValueError, match="their numbers do not compare"):
        report_runs([first.folder, second.folder], out=str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def kept(run, name):
    """The scores of a run alone, in another folder."""
    folder = run.folder.parent / name
    folder.mkdir()
    shutil.copy(run.folder / "cases.csv", folder)
    return ReportRun(name, folder)


def test_kept_scores_stand_beside_one_family_only(tmp_path, two):
    (first, second), _ = two
    alone = kept(first, "kept")
    recorded(first, **RECORD)
    assert "1 of 2 runs were kept without" in written(tmp_path, [alone, first]).text
    recorded(second, **RECORD | {"protocol": {"family": "pancreas"}})
    with pytest.raises(ValueError, match=r"row1 has protocol\.family 'pancreas', row0 has 'la'"):
        written(tmp_path, [alone, first, second])


def test_kept_scores_have_a_report(tmp_path, two):
    for run in two[0]:
        kept(run, f"{run.name}_kept")
        shutil.rmtree(run.folder)
    told = []
    page = Page(report_runs(tmp_path, told.append, out=str(tmp_path / "report.html")))
    assert [line.split("|")[1].strip() for line in told[2:4]] == ["row0_kept", "row1_kept"]
    assert told[4].startswith("row1_kept minus row0_kept: Dice ")
    assert "Protocol" not in page.text
    assert "checkpoint" not in page.text


def test_another_reference_of_a_case_is_refused(tmp_path, two):
    (first, second), _ = two
    voxels = second.scores[0].n_reference
    other = rescored(second, n_reference=80)
    told = rf"case a, label 1 has {voxels} reference voxels in row0 and 80 in row1; expected scores against one refer"
    with pytest.raises(ValueError, match=told):
        written(tmp_path, [first, other])


def test_methods_without_a_case_in_common_are_refused_and_others_told(tmp_path, two):
    (first, second), _ = two
    write_cases_csv(second.folder / "cases.csv", [replace(score, case=f"{score.case}2") for score in second.scores])
    told = "row1 was scored on 4 cases, such as 'a2', and row0 on 4 others, such as 'a'; expected"
    with pytest.raises(ValueError, match=told):
        written(tmp_path, [first, ReportRun("row1", second.folder)])
    folds = [ReportRun(f"method_seed{index}", run.folder) for index, run in enumerate((first, second))]
    assert "other cases" not in written(tmp_path, folds).text  # each seed may hold out its own
    write_cases_csv(second.folder / "cases.csv", second.scores[:3])
    assert "of 4 cases every method was scored on 3 alone" in written(tmp_path, [first, replace(second)]).text


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("supervised_seed0", "supervised"),
        ("a/supervised_seed_12", "a/supervised"),
        ("supervised-seed-5", "supervised"),
        ("row/seed0", "row"),
        ("row/seed0/best", "row/best"),
        ("seed1/uc_seg", "uc_seg"),
        ("seed0", "seeds"),
        *((name, name) for name in ("linseed5", "nseed10/x", "reseed2_x", "a_seed0_copy", "a_seeds0", "speed3")),
    ],
)
def test_a_seed_is_the_end_of_a_name(name, method):
    assert method_of(ReportRun(name, "")) == method


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fit": {"seed": 1, "steps": 6000}}, "fit.steps is 20 and 6000"),
        ({"labelled": {"count": 16, "sha256": "b"}}, "labelled.count is 8 and 16"),
        ({"labelled": {"count": 9, "sha256": "b"}}, ""),  # another fold
        ({"method": {"class": "Supervised"}}, "method.class is 'UCSeg' and 'Supervised'"),
        ({"protocol": {"name": "la/cpu"}}, "protocol.name is 'la/paper' and 'la/cpu'"),
        ({"labelled": {"count": 8, "sha256": "b"}, "protocol": {"name": "la/cpu"}}, ""),  # as its lists have it
        ({"versions": {"torch": "8"}, "fit": {"seed": 1, "steps": 20, "device": "cuda"}}, ""),
        ({"method": {"class": "UCSeg", "config": {"components": []}}}, r"method.config.components is \[1\] and \[\]"),
        (
            {"method": {"class": "UCSeg", "config": {"components": []}}, "labelled": {"count": 8, "sha256": "b"}},
            "",
        ),
    ],
)
def test_seeds_of_a_method_differ_in_the_seed_alone(tmp_path, two, change, told):
    record = {"method": {"class": "UCSeg", "config": {"components": [1]}}}
    record |= {"labelled": {"count": 8, "sha256": "a"}, "protocol": {"name": "la/paper"}}
    for run in two[0]:
        recorded(run, **record)
    recorded(two[0][1], **change)
    seeds = [ReportRun(f"x_seed{index}", run.folder) for index, run in enumerate(two[0])]
    if not told:
        written(tmp_path, seeds)
        return
    with pytest.raises(ValueError, match=f"x_seed0 and x_seed1 are seeds of 'x' .* {told}; .*: rename one of"):
        written(tmp_path, seeds)
    written(tmp_path, two[0])  # by other names


def test_names_are_as_long_as_tells_them_apart(tmp_path, two):
    for name, run in zip("AB", two[0]):
        shutil.copytree(run.folder, tmp_path / name / "m" / "s_seed0")
    told, out = [], str(tmp_path / "report.html")
    folders = [tmp_path / name / "m" / "s_seed0" for name in "AB"]
    report_runs(folders, told.append, out=out)
    assert told[-1].startswith("B/m/s minus A/m/s: Dice ")
    assert "A/m/s_seed0" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match=r"s_seed0 is named twice; expected each run once"):
        report_runs([folders[0], folders[0] / ".." / "s_seed0"], out=out)


def test_rows_of_a_study_with_other_seeds_are_two_methods(tmp_path, two):
    folders = [tmp_path / row / f"seed{index}" for index, row in enumerate(("a", "b"))]
    for run, folder in zip(two[0], folders):
        shutil.copytree(run.folder, folder)
    told = []
    report_runs(folders, told.append, out=str(tmp_path / "report.html"))
    assert told[-1].startswith("b minus a: Dice ")


def test_runs_of_a_folder_are_in_the_order_of_methods_and_seeds(tmp_path, two):
    names = ["supervised_seed10", "supervised_seed2", "supervised_900_seed0"]
    for name in names:
        shutil.copytree(two[0][0].folder, tmp_path / "runs" / name)
    told = []
    report_runs(tmp_path / "runs", told.append, out=str(tmp_path / "report.html"))
    assert told[-1].startswith("supervised_900 minus supervised: Dice ")
    page = (tmp_path / "report.html").read_text()
    assert page.index("supervised_seed2") < page.index("supervised_seed10") < page.index("supervised_900_seed0")


def test_a_study_is_reported_row_by_row(tmp_path, two):
    facts = {"steps": {"supervised": 20, "method": 20, "all_labels": 20}, "seeds": [0, 1], "against": ["supervised"]}
    facts |= {"protocol": "la/cpu", "scored": "test", "best": False, "minutes": None}
    study = tmp_path / "study"
    for row, run in zip(("supervised", "method"), two[0]):
        for seed in (0, 1):
            shutil.copytree(run.folder, study / row / f"seed{seed}")
            (study / row / f"seed{seed}" / "result.json").write_text('{"minutes": 2, "peak_memory_mb": 9}')
    (study / "study.json").write_text(json.dumps(facts | {"labelled": 2, "unlabelled": 2, "cases": 4}))
    (study / "method" / "seed1" / "result.json").unlink()  # not finished
    (study / "method" / "seed0" / "env.json").unlink()
    told = []
    report_runs(study, told.append, out=str(tmp_path / "report.html"))
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in told[2:4]]
    assert rows == [["supervised", "2"], ["method", "1"]]
    for path in study.glob("*/*/result.json"):
        path.unlink()
    with pytest.raises(DataError, match="study: none of the 6 runs of this study is finished"):
        report_runs(study, out=str(tmp_path / "report.html"))


@pytest.mark.parametrize(
    ("margin", "told"),
    [(None, " voxels of the whole images"), (8, "voxels of the box around the reference, 8 voxels wider on each side")],
)
def test_the_region_of_a_reliability_diagram_is_told(tmp_path, two, margin, told):
    run = recorded(two[0][0], **evaluated(foreground_margin=margin))
    assert told in written(tmp_path, [run]).text


def test_the_rule_of_the_checkpoint_is_that_of_the_record(tmp_path, two):
    recorded(two[0][0], checkpoint="best_on_validation")
    page = Page(report_runs(two[0][0].folder, out=str(tmp_path / "report.html")))
    assert "4 held-out cases, on their own grids, best checkpoint on the validation cases" in page.text


def test_supervised_runs_of_a_folder_come_first(tmp_path, two):
    (first, second), _ = two
    recorded(first, method={"class": "DualUncertainty"})
    recorded(second, method={"class": "Supervised"})
    told = []
    report_runs(tmp_path, told.append, out=str(tmp_path / "report.html"))
    assert told[-1].startswith("run0 minus run1: Dice ")
    report_runs([first.folder, second.folder], told.append, out=str(tmp_path / "report.html"))  # as they were named
    assert told[-1].startswith("run1 minus run0: Dice ")


def test_distances_in_voxels_are_called_so_and_have_the_published_mean(tmp_path, two):
    runs = [rescored(run, unit="voxel") for run in two[0]]
    heads = written(tmp_path, runs).tables[0][0]
    assert "HD95 voxel" in heads
    assert "ASD voxel" in heads
    assert "HD95 voxel" in seeds_table(runs)


def test_what_is_not_given_comes_from_the_log(tmp_path):
    run = replace(write_run(tmp_path, cases=(), foreground=())[0], peak_memory_mb=None)
    assert written(tmp_path, [run]).tables[0][1] == ["row0", "0.9", "919"]
    (run.folder / "metrics.csv").write_text("step,seconds,loss\n0,60,1\n")  # of an earlier version
    assert written(tmp_path, [replace(run)]).tables[0][1] == ["row0", "1.0", "n/a"]


def test_a_long_log_stays_light(tmp_path):
    short, _ = write_run(tmp_path, seed=0, steps=100)
    long, _ = write_run(tmp_path, seed=1, steps=100)
    head, *rows = (long.folder / "metrics.csv").read_text().splitlines()
    lines = [f"{index},{row.split(',', 1)[1]}" for index, row in enumerate(rows * 200)]
    (long.folder / "metrics.csv").write_text("\n".join([head, *lines]) + "\n")
    size = []
    for run in (short, long):
        written(tmp_path, [run])
        size.append((tmp_path / "report.html").stat().st_size)
    assert size[1] < 1.3 * size[0]


def test_cases_are_picked_by_their_score(two):
    scores = two[0][0].scores
    ranked = [score.case for score in sorted(scores, key=lambda score: score.dice)]
    assert pick_cases(scores) == {"worst": ranked[0], "median": ranked[1], "best": ranked[3]}
    assert pick_cases(scores[:1]) == {"worst": scores[0].case}
    with pytest.raises(ValueError, match=r"none of 0 scores has a dice"):
        pick_cases([])


def test_one_case_has_no_spread_and_no_ranks(tmp_path):
    (one, _), (more, _) = write_run(tmp_path, cases=("a",)), write_run(tmp_path, seed=1)
    page = written(tmp_path, [one])
    assert "standard deviation over cases" not in page.text
    assert "from the worst to the best" not in page.text
    assert [row[0] for row in page.tables[1]] == ["case, Dice %", "a"]
    assert "from the worst to the best" in written(tmp_path, [more]).text


def test_more_runs_than_colours_share_one_a_method(tmp_path, two):
    (first, second), _ = two
    names = [f"{method}_seed{seed}" for method in ("base", "new", "other") for seed in range(3)]
    runs = [ReportRun(name, (first if "base" in name else second).folder) for name in names]
    written(tmp_path, runs)
    page = (tmp_path / "report.html").read_text()
    for method, colour in (("base", 0), ("new", 1), ("other", 2)):
        for seed in range(3):
            assert f'<i class="swatch c{colour}"></i><b>{method}_seed{seed}</b>' in page
    means = [100 * np.mean([score.dice for score in run.scores if score.status != "na"]) for run in (first, second)]
    for method, mean in (("base", means[0]), ("new", means[1])):
        assert re.search(
            rf"<b>{method}</b></th><td[^>]*>3</td><td[^>]*><span class=\"value\"><b>{mean:.2f}</b> ± 0.00", page
        )
    assert f"<b>new</b> against base: Dice {means[1] - means[0]:+.2f} points, 95 % interval" in page
    with pytest.raises(ValueError, match=r"runs are of 7 methods, row0, row1, .*; expected at most 6 methods"):
        written(tmp_path, [ReportRun(f"row{index}", first.folder) for index in range(7)])


def test_errors_name_the_run(tmp_path, two):
    runs, view = two
    with pytest.raises(ValueError, match=r"runs are \[\]; expected at least one"):
        written(tmp_path, [])
    with pytest.raises(ValueError, match=r"runs are \['row0', 'row0'\]; .* of different names"):
        written(tmp_path, [runs[0], runs[0]])
    with pytest.raises(ValueError, match=r"case 'a' has a prediction of 'row1'; expected one of \['row0'\]"):
        written(tmp_path, runs[:1], views=[view])
    with pytest.raises(ValueError, match=r"protocol\.json: there is no such file"):
        written(tmp_path, [ReportRun("x", tmp_path)])
    with pytest.raises(ValueError, match=r"uncertainty 'row1' of 'a' has shape \(2, 2\); expected \(12, 10, 8\)"):
        written(tmp_path, runs, views=[replace(view, uncertainty={"row1": np.zeros((2, 2))})])
    with pytest.raises(ValueError, match=r"uncertainty 'row1' of 'a' is in \[2.0, 2.0\]; expected \[0, 1\]"):
        written(tmp_path, runs, views=[replace(view, uncertainty={"row1": np.full(SHAPE, 2.0)})])
    (runs[0].folder / "quality.csv").write_text("step,x\n1,what\n")
    with pytest.raises(ValueError, match=r"quality.csv: could not convert string to float: 'what'"):
        written(tmp_path, [replace(runs[0])])
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["-5,0.5,0.5"], "line 2: count is -5; expected a number of voxels"),
        (["0,nan,nan", "5,2,0.5"], r"line 3: confidence is 2; expected a share in \[0, 1\]"),
        (["5,0.5,7"], r"line 2: frequency is 7; expected a share in \[0, 1\]"),
        (["3,inf,0.5"], r"line 2: confidence is inf; expected a share in \[0, 1\]"),
        (["3,nan,nan"], r"line 2: confidence is nan; expected a share in \[0, 1\]"),
        (["5,0.9,0.8", "5,0.9"], "line 3: it has 2 cells; expected 3"),
        (["5,0.9,much"], "line 2: could not convert string to float: 'much'"),
        ([], "there is no bin; expected a line for each"),
    ],
)
def test_bins_that_can_not_be_are_told_by_their_line(tmp_path, lines, told):
    (tmp_path / "reliability.csv").write_text("\n".join(["count,confidence,frequency", *lines]))
    with pytest.raises(ValueError, match=rf"reliability\.csv: {told}"):
        read_reliability(tmp_path / "reliability.csv")


def test_bins_of_half_precision_are_read(tmp_path):
    (tmp_path / "reliability.csv").write_text("count,confidence,frequency\n0,nan,nan\n7.0,1.0004,1.0\n")
    assert read_reliability(tmp_path / "reliability.csv").count.tolist() == [0, 7]


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs the program chromium")
    return found


def visit(chromium, path, profile, *more):
    """The page after loading, and what the browser said on its console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={profile}", *more]
    done = subprocess.run(
        [chromium, *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=200, check=False
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_opens_it_without_complaint(tmp_path, two, chromium):
    written(tmp_path, two[0], title=EVIL, views=[two[1]])
    page, console = visit(chromium, tmp_path / "report.html", tmp_path / "profile")
    assert "Pseudo-label quality" in page
    assert not console
    bad = tmp_path / "bad.html"  # the same eyes see a page that does complain
    evil = '<img src="https://example.org/a.png">'
    bad.write_text((tmp_path / "report.html").read_text().replace("<main>", f"<main>{evil}"))
    assert any("Content Security Policy" in line for line in visit(chromium, bad, tmp_path / "profile")[1])


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 800, 1280])  # a phone, as cards; a tablet; a desk
def test_no_page_is_wider_than_its_window(tmp_path, two, chromium, width, scheme):
    runs, view = two
    for run in runs:  # names such as data have, and all that can be opened is open
        (run.folder / "cases.csv").write_text((run.folder / "cases.csv").read_text().replace("\na,", f"\n{'a' * 60},"))
    many = [replace(runs[index % 2], name=f"{'method' * (1 + index % 2)}_seed{index}") for index in range(12)]
    view = replace(view, predictions={many[0].name: view.predictions["row0"]}, uncertainty=None)
    written(tmp_path, many, title="title" * 30, views=[view])
    page = (tmp_path / "report.html").read_text().replace("<details>", '<details open="">')
    (tmp_path / "report.html").write_text(page)
    frame = f'<iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe>'
    told = "const page = document.querySelector('iframe').contentDocument;"
    told += "document.title = [page.documentElement.scrollWidth, getComputedStyle(page.body).color]"
    (tmp_path / "frame.html").write_text(f"<body>{frame}<script>onload = () => {{ {told} }}</script>")
    flags = ["--allow-file-access-from-files", "--hide-scrollbars", "--window-size=1400,1000"]
    flags += [f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"]
    seen, console = visit(chromium, tmp_path / "frame.html", tmp_path / "profile", *flags)
    assert not console
    colour = {"dark": "rgb(230, 233, 237)", "light": "rgb(28, 33, 39)"}[scheme]
    assert f"<title>{width},{colour}</title>" in seen


def test_bins_come_from_the_folder_where_none_are_given(tmp_path, two):
    (first, second), _ = two
    (first.folder / "reliability.csv").write_text(reliability_csv([first.reliability]))
    read = replace(first, reliability=None)
    np.testing.assert_allclose(read.bins.frequency, first.reliability.frequency)
    assert read.bins.ece == pytest.approx(first.reliability.ece)
    assert "Calibration" in written(tmp_path, [read]).text
    assert replace(second, reliability=None).bins is None
    for wrong in ("count,confidence\n1,2\n", "count,confidence,frequency\n1,x,2\n", "", "\0"):
        (first.folder / "reliability.csv").write_text(wrong)
        with pytest.raises(ValueError, match=r"reliability\.csv: "):
            _ = replace(first, reliability=None).bins


def test_scores_that_were_kept_without_logs_have_a_page_without_curves(tmp_path, two):
    (run, _), view = two
    for name in ("metrics.csv", "quality.csv"):
        (run.folder / name).unlink()
    page = written(tmp_path, [ReportRun(run.name, run.folder)], views=[replace(view, predictions={}, uncertainty={})])
    assert "Dice %" in page.tables[0][0]
    assert "Losses" not in page.text
    assert "training is at step" not in page.text
    kept = ReportRun(run.name, run.folder)
    assert seeds_table([kept]).splitlines()[-1].split()[-2] == "n/a"
    (run.folder / "result.json").write_text('{"minutes": 7.25, "peak_memory_mb": 64}')
    assert (kept.training_minutes, kept.training_peak_mb) == (7.25, 64)
    (run.folder / "result.json").write_text('{"minutes": "x", "peak_memory_mb": 64}')
    with pytest.raises(ValueError, match=r"result\.json: minutes is 'x'; expected a number"):
        _ = kept.training_minutes
    (run.folder / "cases.csv").unlink()
    with pytest.raises(ValueError, match=r"metrics\.csv: there is no such file"):
        written(tmp_path, [ReportRun(run.name, run.folder)])


@pytest.mark.parametrize("torn", ["1,2.5,1e", "20,9.5", "20,9.5\0\0\0"])
def test_a_line_that_was_cut_off_is_left_out(tmp_path, torn):
    run, _ = write_run(tmp_path)
    before = read_log(run.folder / "metrics.csv")
    with (run.folder / "metrics.csv").open("a") as file:
        file.write(torn)
    after = read_log(run.folder / "metrics.csv")
    assert {name: list(values) for name, values in after.items()} == {name: list(v) for name, v in before.items()}


@pytest.mark.parametrize("log", ["step,loss\n" + "1" * 5000 + ",1\n", "step,loss\nnan,1\n", "loss\n1\n"])
def test_a_log_without_numbers_of_steps_is_refused_by_name(tmp_path, log):
    (tmp_path / "metrics.csv").write_text(log)
    with pytest.raises(ValueError, match=r"metrics\.csv: there is no column 'step', or it holds other than numbers"):
        read_log(tmp_path / "metrics.csv")
