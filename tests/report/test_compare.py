# SPDX-License-Identifier: Apache-2.0
"""Several runs in one table, or an error that says why not."""

import copy
import json
from dataclasses import replace

import pytest

from ssmis.metrics import CaseScore, write_cases_csv
from ssmis.report.compare import read_run, runs_table

RECORD = {
    "protocol": {"name": "la/paper", "family": "la", "patch": [112, 112, 80], "scale": 1.0},
    "labelled": {"sha256": "a", "count": 8, "patients": 8},
    "fit": {"seed": 0, "steps": 6000},
    "checkpoint": "last",
    "nets": ["vnet"],
    "versions": {"torch": "2"},
    "evaluation": {
        "scored": {"sha256": "b", "count": 2, "patients": 2},
        "windows": {"patch": [112, 112, 80], "stride": [18, 18, 4], "blending": "uniform", "flips": [], "scale": 1.0},
        "nets": ["resnet", "vnet"],
        "classes": [1],
        "convention": "medpy",
        "unit": "voxel",
        "nsd_tolerance": 1.0,
        "missed": "diagonal",
        "post_processing": ["none", "largest_component"],
        "foreground_margin": 8,
        "calibration_bins": 15,
        "versions": {"torch": "2"},
    },
}


def scores(dice):
    return [
        CaseScore(case, 1, "ok", 5, 5, dice, dice / 2, 6.0, 7.0, 5.0, 4.0, 3.0, 0.5, "voxel") for case in ("A", "B")
    ]


def make(folder, **changes):
    """Write a run; `protocol__family="acdc"` changes a fact, None removes it."""
    record = copy.deepcopy(RECORD)
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = record
        for part in outer:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    folder.mkdir()
    (folder / "protocol.json").write_text(json.dumps(record))
    write_cases_csv(folder / "cases.csv", scores(0.8))
    write_cases_csv(folder / "cases_largest.csv", scores(0.9))
    (folder / "calibration.csv").write_text("case,ece,brier,voxels\nA,0.1,0.2,9\nB,0.2,0.4,9\n")
    return folder


def test_post_processing_off_and_on_stand_below_each_other(tmp_path):
    lines = runs_table([make(tmp_path / "one"), make(tmp_path / "two", fit__seed=1) / "protocol.json"]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    steps = str(RECORD["fit"]["steps"])
    assert [row[:7] for row in cells[2:4]] == [
        ["one", "la/paper", "0", steps, "8", "resnet + vnet", "none"],
        ["one", "la/paper", "0", steps, "8", "resnet + vnet", "largest component"],
    ]
    assert [row[2] for row in cells[2:]] == ["0", "0", "1", "1"]
    assert [row[7] for row in cells[2:]] == ["80.00", "90.00"] * 2
    assert cells[0][10:12] == ["HD95 voxel", "ASD voxel"]
    assert cells[2][10:] == ["6.00", "3.00", "0", "15.00", "0.30"]
    assert cells[3][13:] == ["n/a", "n/a"]  # probabilities are calibrated, not masks


def test_other_conventions_have_the_symmetric_distance(tmp_path):
    text = runs_table([make(tmp_path / "one", evaluation__convention="default")])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert (cells[0][11], cells[2][11]) == ("ASSD voxel", "5.00")


def test_other_windows_are_a_column_where_they_differ(tmp_path):
    runs = [make(tmp_path / "one"), make(tmp_path / "two", evaluation__windows__flips=[0, 2])]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in runs_table(runs).splitlines()]
    assert cells[0][6] == "windows"
    assert [row[6].endswith(", flips") for row in cells[2:]] == [False, False, True, True]


def test_scores_that_a_record_tells_of_and_are_not_there(tmp_path):
    (make(tmp_path / "one") / "cases_largest.csv").unlink()
    with pytest.raises(ValueError, match=r"cases_largest\.csv: there is no such file; expected the scores"):
        runs_table([tmp_path / "one"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol__family": "pancreas/coranet"}, r"protocol\.family 'pancreas/coranet'.*one has 'la'"),
        ({"evaluation__scored__sha256": "c"}, r"evaluation\.scored\.sha256"),
        ({"evaluation__convention": "default"}, r"evaluation\.convention 'default'"),
        ({"evaluation__foreground_margin": 4}, "foreground_margin 4"),
        ({"evaluation__nsd_tolerance": 2.0}, r"nsd_tolerance 2\.0"),
        ({"checkpoint": "best"}, "checkpoint 'best'"),
    ],
)
def test_runs_that_do_not_compare_are_refused(tmp_path, change, told):
    one, two = make(tmp_path / "one"), make(tmp_path / "two", **change)
    with pytest.raises(ValueError, match=rf"two has .*{told}.* do not compare"):
        runs_table([one, two])


def test_another_reference_of_a_case_is_refused(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    write_cases_csv(two / "cases.csv", [replace(score, n_reference=6) for score in scores(0.8)])
    with pytest.raises(ValueError, match=r"case A, label 1 has 5 reference voxels in .*one and 6 in .*two; expected"):
        runs_table([one, two])


@pytest.mark.parametrize("name", ["labelled__sha256", "fit__seed", "evaluation__windows__stride", "checkpoint"])
def test_an_incomplete_record_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"is not complete: {name.replace('__', '.')};"):
        read_run(make(tmp_path / "one", **{name: None}))


def test_a_run_that_was_not_scored_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one/protocol\.json is not complete: the run was not scored yet"):
        runs_table([make(tmp_path / "one", evaluation=None)])


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match="folders is empty"):
        runs_table([])
    with pytest.raises(ValueError, match=r"protocol\.json: there is no such file"):
        runs_table([tmp_path])
