# SPDX-License-Identifier: Apache-2.0
"""`ssmis compare`: methods and seeds on one split, to be continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from data.folders import plain

from ssmis import cli, compare_methods
from ssmis.data import DataError, find_dataset, make_split, read_list
from ssmis.engine.lock import locked
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
    assert {line.partition(":")[0] for line in told if "_seed0: " in line} == {
        "supervised_seed0",
        "dual_uncertainty_seed0",
    }
    first = tmp_path / "out" / "supervised_seed0"
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    told.clear()
    kept = tmp_path / "kept"
    compare_methods(data, told.append, seeds=[0, 1], presets=["dual_uncertainty=late"], keep=str(kept), **few)
    assert [line for line in told if line.startswith(("supervised_seed0: ", "dual_uncertainty_seed0: "))] == []
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


def test_other_options_or_data_than_the_first_are_refused(data, tmp_path):
    few = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised"], "seeds": [0]}
    compare_methods(data, **few)
    before = (tmp_path / "out" / "supervised_seed0" / "cases.csv").read_bytes()
    for changed, told in (
        ({"steps": 3}, "made with other options: steps was 2 and is 3"),
        ({"steps": 3, "seeds": [5]}, "made with other options: steps was 2 and is 3"),
        ({"test": "1"}, "made with other options: test was 2 and is 1"),
        ({"split_seed": 1}, "made with other options: split_seed was 0 and is 1"),
        ({"presets": ["supervised=x"]}, "made with other options of supervised: preset was None and is x"),
    ):
        with pytest.raises(ValueError, match=told):
            compare_methods(data, **few | changed)
    other = plain(tmp_path / "data", labelled=5, unlabelled=3)
    with pytest.raises(ValueError, match="made with other data: cases was 7 and is 8"):
        compare_methods(other, **few | {"seeds": [5]})
    assert (tmp_path / "out" / "supervised_seed0" / "cases.csv").read_bytes() == before
    assert not (tmp_path / "out" / "supervised_seed5").exists()


def test_a_moved_folder_and_moved_data_go_on(data, tmp_path, monkeypatch):
    few = SMALL | {"recipes": ["supervised"]}
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "scans")
    compare_methods("scans", out="out", seeds=[0], **few)
    unscored = tmp_path / "out" / "supervised_seed0"
    (unscored / "cases.csv").unlink()  # as if it had been stopped while it was scored
    os.rename("out", "moved")
    os.rename("scans", "elsewhere")
    done = compare_methods(tmp_path / "elsewhere", out=str(tmp_path / "moved"), seeds=[0, 1], **few)
    assert [len(read_cases_csv(folder / "cases.csv")) for folder in done.runs["supervised"]] == [2, 2]


def test_the_split_seed_and_coefficients_reach_the_runs(data, tmp_path):
    few = SMALL | {"recipes": ["supervised", "dual_uncertainty", "uc_seg"], "seeds": [0], "patch": [16, 16, 16]}
    words = ["pseudo_dice_weight=0.5", "uc_seg.pseudo_weight=0.25"]
    with pytest.raises(ValueError, match="pseudo_dice_weight"):  # which uc_seg has not
        compare_methods(data, out=str(tmp_path / "out"), coefficients=words, **few)
    assert not (tmp_path / "out").exists()
    words[0] = f"dual_uncertainty.{words[0]}"
    done = compare_methods(data, out=str(tmp_path / "out"), coefficients=words, split_seed=3, **few)
    records = [json.loads((folder[0] / "protocol.json").read_text()) for folder in done.runs.values()]
    assert [record["coefficients"] for record in records] == [None, ["pseudo_dice_weight=0.5"], ["pseudo_weight=0.25"]]
    split = make_split(find_dataset(data), labelled="2", test="2", seed=3)
    assert records[0]["labelled"]["cases"] == [case.id for case in split.labelled]
    assert read_list(tmp_path / "out" / "split" / "test.list") == [case.id for case in split.test]


def set_seconds(folder, seconds):
    """Let the log of a run end after so many seconds."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    lines[-1][lines[0].index("seconds")] = str(seconds)
    (folder / "metrics.csv").write_text("".join(",".join(line) + "\n" for line in lines))


def test_equal_time_trains_the_baseline_as_long_as_the_slowest_method(data, tmp_path):
    out, told = tmp_path / "out", []
    few = SMALL | {"out": str(out), "recipes": ["supervised", "mean_teacher"], "nets": ["unet"]}
    done = compare_methods(data, seeds=[0, 1, 2], **few)
    times = {"supervised": (60, 120, 9999), "mean_teacher": (100, 420, 480)}  # medians 120 and 420
    for recipe, seconds in times.items():
        for folder, own in zip(done.runs[recipe], seconds, strict=True):
            set_seconds(folder, own)
    done = compare_methods(data, told.append, seeds=[0, 1, 2], equal_time=True, **few)
    assert "equal time: 7 steps of supervised take as long as mean_teacher, by the minutes of their runs" in told
    assert list(done.runs) == ["supervised", "supervised_7", "mean_teacher"]
    for folder in done.runs["supervised_7"]:
        record = json.loads((folder / "protocol.json").read_text())
        assert record["fit"]["steps"] == 7
        assert record["unlabelled"]["count"] == 0
        assert len((folder / "metrics.csv").read_text().splitlines()) == 8
    pairs = [line.partition(":")[0] for line in told if " minus " in line]
    assert pairs == [
        "supervised_7 minus supervised",
        "mean_teacher minus supervised",
        "mean_teacher minus supervised_7",
    ]
    set_seconds(done.runs["mean_teacher"][0], 9999)  # the number of steps stays what it was
    told.clear()
    again = compare_methods(data, told.append, seeds=[0, 1], equal_time=True, **few)
    assert list(again.runs) == list(done.runs)
    assert list(compare_methods(data, seeds=[0], **few).runs) == few["recipes"]


def test_equal_time_adds_nothing_to_a_baseline_that_is_slowest(data, tmp_path):
    few = SMALL | {"out": str(tmp_path / "out"), "recipes": ["dual_uncertainty", "supervised"], "seeds": [0]}
    done = compare_methods(data, **few)
    for recipe, seconds in (("dual_uncertainty", 200), ("supervised", 100)):
        set_seconds(done.runs[recipe][0], seconds)
    told = []
    assert list(compare_methods(data, told.append, equal_time=True, **few).runs) == ["dual_uncertainty", "supervised"]
    assert "equal time: no method takes longer than dual_uncertainty, so its row is that at equal time, too" in told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"recipes": ["supervised", "nothing"]}, "nothing"),
        ({"recipes": ["supervised", "supervised"]}, "expected at least one, each once"),
        ({"seeds": [0, 0]}, "expected at least one, each once"),
        ({"presets": ["uc_seg=ours"]}, "presets has 'uc_seg=ours'; expected RECIPE=PRESET"),
        ({"presets": ["late"]}, "presets has 'late'; expected RECIPE=PRESET"),
        ({"presets": ["dual_uncertainty=nothing"]}, "nothing"),
        ({"coefficients": ["nothing=1"]}, "nothing"),
        ({"coefficients": ["uc_seg.nothing=1"]}, r"expected RECIPE\.NAME=VALUE"),
        ({"nets": ["nothing"]}, "nothing"),
        ({"recipes": []}, "expected at least one, each once"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"keep": "out"}, "keep is .*, the folder of the runs"),
        ({"beside": 0}, "beside is 0; expected at least 1"),
        ({"equal_time": True, "recipes": ["supervised"]}, "equal_time with one method; expected another one"),
        ({"test": "0"}, "test is '0', which holds no case out"),
        ({"labelled": "all", "data": "all"}, "has no case without a label, and labelled is 'all'; expected fewer"),
    ],
)
def test_what_could_not_be_compared_is_told_before_anything_is_written(data, tmp_path, wrong, told):
    wrong = dict(wrong)
    if "keep" in wrong:
        wrong["keep"] = str(tmp_path / "out")
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
    assert "supervised_seed0: " not in capfd.readouterr().out


@pytest.mark.parametrize("beside", [1, 2])
def test_a_run_that_fails_does_not_keep_the_others_from_being_scored(data, tmp_path, beside):
    out = tmp_path / "out"
    few = SMALL | {"out": str(out), "recipes": ["supervised"], "beside": beside}
    (out / "supervised_seed0").mkdir(parents=True)
    (out / "supervised_seed0" / "split").write_text("in the way")
    with pytest.raises(
        RuntimeError, match="1 of 2 runs failed, which the same call tries again:\n  supervised_seed0: "
    ):
        compare_methods(data, seeds=[0, 1], **few)
    assert (out / "supervised_seed1" / "cases.csv").is_file()
    (out / "supervised_seed0" / "split").unlink()
    assert compare_methods(data, seeds=[0, 1], **few).report.is_file()


def test_what_has_labels_alone_is_told_on_a_folder_with_a_split_too(tmp_path):
    data, few = plain(tmp_path / "data", labelled=4, unlabelled=0), SMALL | {"labelled": "all", "seeds": [0]}
    compare_methods(data, out=str(tmp_path / "out"), recipes=["supervised"], **few)
    with pytest.raises(DataError, match="has no case without a label"):
        compare_methods(data, out=str(tmp_path / "out"), **few)


def test_sigterm_ends_the_runs_beside_each_other_with_their_checkpoints(data, tmp_path):
    words = ["compare", str(data), "--out", str(tmp_path / "out"), "--seeds", "0", "1", "--recipes", "supervised"]
    words += ["--nets", "unet", "--width", "2", "--steps", "100000", "--patch", "8", "8", "8", "--batch", "1"]
    words += ["--test", "2", "--labelled", "2", "--device", "cpu", "--beside", "2", "--progress", "false"]
    child = subprocess.Popen([sys.executable, "-m", "ssmis", *words])
    logs = [tmp_path / "out" / f"supervised_seed{seed}" / "metrics.csv" for seed in (0, 1)]
    deadline = time.monotonic() + 240
    while not all(log.is_file() and log.stat().st_size > 1000 for log in logs) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=120) == 143
    for log in logs:
        with locked(log.parent):  # no training holds it any more
            assert (log.parent / "checkpoints" / "last.pt").is_file()


def test_ctrl_c_ends_with_130_and_the_command_that_continues(data, tmp_path, capfd, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssmis.compare.train", interrupted)
    words = ["compare", str(data), "--out", str(tmp_path / "out"), "--test", "2", "--labelled", "2"]
    assert cli.main(words) == 130
    assert f"continue with: ssmis {' '.join(words)}" in capfd.readouterr().err
