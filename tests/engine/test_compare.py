# SPDX-License-Identifier: Apache-2.0
"""`ssmis compare`: methods and seeds on one split, to be continued."""

import json
import subprocess
import sys

import pytest
from data.folders import plain

from ssmis import cli, compare_methods
from ssmis.data import DataError
from ssmis.metrics import read_cases_csv

pytest.importorskip("nibabel")
SMALL = {
    "nets": ["unet", "vnet"], "width": 2, "progress": False, "device": "cpu", "precision": "fp32", "steps": 2,
    "patch": [8, 8, 8], "batch": 1, "test": "2", "labelled": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("compare") / "data", labelled=5, unlabelled=2)


def test_runs_share_a_split_and_the_same_call_adds_what_is_missing(data, tmp_path):
    few, told = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised", "dual_uncertainty"]}, []
    done = compare_methods(data, told.append, seeds=[0], presets=["dual_uncertainty=late"], **few)
    assert done.report == tmp_path / "out" / "report.html"
    assert done.report.is_file()
    assert [path.name for runs in done.runs.values() for path in runs] == ["supervised_seed0", "dual_uncertainty_seed0"]
    assert [line for line in told if line.endswith("seed 0")] == ["supervised, seed 0", "dual_uncertainty, seed 0"]
    first = tmp_path / "out" / "supervised_seed0"
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    told.clear()
    kept = tmp_path / "kept"
    compare_methods(data, told.append, seeds=[0, 1], presets=["dual_uncertainty=late"], keep=str(kept), **few)
    assert [line for line in told if "seed 0" in line] == []
    assert times == {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert any(line.startswith("dual_uncertainty minus supervised: Dice") for line in told)
    names = [f"{recipe}_seed{seed}" for recipe in few["recipes"] for seed in (0, 1)]
    assert sorted(path.name for path in kept.iterdir()) == sorted(names)
    scored = [[score.case for score in read_cases_csv(kept / name / "cases.csv")] for name in names]
    assert len(scored[0]) == 2
    assert scored == [scored[0]] * 4
    records = [json.loads((tmp_path / "out" / name / "protocol.json").read_text()) for name in names]
    assert [record["preset"] for record in records] == [None, None, "late", "late"]
    assert len({record["labelled"]["sha256"] for record in records}) == 1


def test_other_options_than_the_first_are_refused(data, tmp_path):
    few = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised"], "seeds": [0]}
    compare_methods(data, **few)
    before = (tmp_path / "out" / "supervised_seed0" / "cases.csv").read_bytes()
    with pytest.raises(ValueError, match="steps was 2 and is 3"):
        compare_methods(data, **few | {"steps": 3})
    with pytest.raises(ValueError, match=r"was made by .*'test': '2'.* choose another folder"):
        compare_methods(data, **few | {"test": "1"})
    assert (tmp_path / "out" / "supervised_seed0" / "cases.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"recipes": ["supervised", "nothing"]}, "nothing"),
        ({"recipes": ["supervised", "supervised"]}, "expected each once"),
        ({"seeds": [0, 0]}, "expected each once"),
        ({"presets": ["uc_seg=ours"]}, "presets has 'uc_seg=ours'; expected RECIPE=PRESET"),
        ({"presets": ["late"]}, "presets has 'late'; expected RECIPE=PRESET"),
        ({"beside": 0}, "beside is 0; expected at least 1"),
        ({"test": "0"}, "test is '0', which holds no case out"),
        ({"labelled": "all", "data": "all"}, "has no case without a label, and labelled is 'all'; expected fewer"),
    ],
)
def test_what_could_not_be_compared_is_told_before_anything_is_written(data, tmp_path, wrong, told):
    wrong = dict(wrong)
    if wrong.pop("data", None):
        data = plain(tmp_path / "data", labelled=4, unlabelled=0)
    with pytest.raises((ValueError, DataError), match=told):
        compare_methods(data, **SMALL | {"out": str(tmp_path / "out")} | wrong)
    assert not (tmp_path / "out").exists()


def test_the_command_trains_beside_and_continues(data, tmp_path, capfd):
    words = [
        "compare",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "0",
        "--beside",
        "2",
        "--progress",
        "false",
    ]
    words += ["--nets", "unet", "vnet", "--width", "2", "--steps", "2", "--patch", "8", "8", "8", "--batch", "1"]
    words += ["--test", "2", "--labelled", "2", "--device", "cpu", "--presets", "dual_uncertainty=copy_paste"]
    first = subprocess.run([sys.executable, "-m", "ssmis", *words], capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    assert f"report: {tmp_path / 'out' / 'report.html'}" in first.stdout
    assert f"next: ssmis predict {tmp_path / 'out' / 'dual_uncertainty_seed0'} IMAGE -o predictions\n" in first.stdout
    for recipe, preset in (("supervised", None), ("dual_uncertainty", "copy_paste")):
        record = json.loads((tmp_path / "out" / f"{recipe}_seed0" / "protocol.json").read_text())
        assert record["preset"] == preset
    assert cli.main(words) == 0
    assert "supervised, seed 0" not in capfd.readouterr().out


def test_a_run_that_fails_beside_others_is_told(data, tmp_path, capfd):
    few = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised"], "seeds": [0, 1], "beside": 2}
    with pytest.raises(RuntimeError, match="a run ended with status 1, see what it told"):
        compare_methods(data, **few | {"nets": ["nothing"]})
    assert "nothing" in capfd.readouterr().err


def test_ctrl_c_ends_with_130_and_the_command_that_continues(data, tmp_path, capfd, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["ssmis.compare"], "train", interrupted)
    words = ["compare", str(data), "--out", str(tmp_path / "out"), "--test", "2", "--labelled", "2"]
    assert cli.main(words) == 130
    assert f"continue with: ssmis {' '.join(words)}" in capfd.readouterr().err
