# SPDX-License-Identifier: Apache-2.0
"""`ssmis compare`: methods and seeds on one split, to be continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data.folders import plain, scan

from ssmis import cli, compare, compare_methods
from ssmis.data import DataError, find_dataset, make_split, read_list
from ssmis.engine.lock import locked
from ssmis.metrics import read_cases_csv

nib = pytest.importorskip("nibabel")
SMALL = {
    "nets": ["unet", "vnet"], "width": 2, "progress": False, "device": "cpu", "precision": "fp32", "steps": 2,
    "patch": [8, 8, 8], "batch": 1, "test": "2", "labelled": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("compare") / "data", labelled=5, unlabelled=2)


def test_runs_share_a_split_and_the_same_call_adds_what_is_missing(data, tmp_path):
    few, told = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised", "dual_uncertainty"], "batch": 2}, []
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


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_file_that_changed_is_other_data_though_it_is_as_long(data, tmp_path, folder):
    scans = shutil.copytree(data, tmp_path / "scans")
    few = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised"]}
    compare_methods(scans, seeds=[0], **few)
    changed = sorted((scans / folder).iterdir())[-1]
    content = bytearray(changed.read_bytes())
    content[-9] ^= 1
    changed.write_bytes(content)
    with pytest.raises(ValueError, match="made with other data: sha256 of labels and parts of images was"):
        compare_methods(scans, seeds=[0, 1], **few)


def test_a_label_beside_its_header_is_looked_at(tmp_path):
    for index in range(4):
        for kind, array in zip(("images", "labels"), scan(index)):
            (tmp_path / "scans" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Pair(array, np.eye(4)), tmp_path / "scans" / kind / f"case{index}.img")
    few = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised"], "labelled": "all"}
    compare_methods(tmp_path / "scans", seeds=[0], **few)
    changed = tmp_path / "scans" / "labels" / "case0.img"
    changed.write_bytes(bytes(changed.stat().st_size))
    with pytest.raises(ValueError, match="made with other data"):
        compare_methods(tmp_path / "scans", seeds=[0, 1], **few)


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


def test_one_recipe_under_several_names(data, tmp_path):
    few = SMALL | {"out": str(tmp_path / "out"), "seeds": [0], "batch": 2}
    few |= {"recipes": ["supervised", "dual_uncertainty", "no_contrast=dual_uncertainty", "late=dual_uncertainty"]}
    few |= {"presets": ["late=late"], "coefficients": ["keep_fraction=0.4", "no_contrast.contrast_weight=0"]}
    told = []
    done = compare_methods(data, told.append, **few)
    assert list(done.runs) == ["supervised", "dual_uncertainty", "no_contrast", "late"]
    records = [json.loads((folder[0] / "protocol.json").read_text()) for folder in done.runs.values()]
    assert [record["recipe"] for record in records] == ["supervised", *["dual_uncertainty"] * 3]
    assert [record["preset"] == "late" for record in records] == [False, False, False, True]
    both = ["contrast_weight=0", "keep_fraction=0.4"]
    assert [record["coefficients"] for record in records] == [None, both[1:], both, both[1:]]
    assert any(line.startswith("late minus no_contrast: Dice") for line in told)
    page = done.report.read_text(encoding="utf-8")
    assert all(f"{name}_seed0" in page for name in done.runs)
    with pytest.raises(ValueError, match="made with other options of no_contrast: recipe was dual_uncertainty and is"):
        compare_methods(data, **few | {"recipes": ["supervised", "no_contrast=uc_seg"], "presets": []})
    with pytest.raises(ValueError, match="options of late: preset was late and is"):
        compare_methods(data, **few | {"presets": ["late=copy_paste"]})


def test_a_coefficient_of_one_method_is_in_the_place_of_that_of_all(data, tmp_path):
    few = SMALL | {"out": str(tmp_path / "out"), "seeds": [0], "recipes": ["dual_uncertainty", "a=dual_uncertainty"]}
    words = ["contrast_weight=0.5", "keep_fraction=0.40", "a.contrast_weight=0"]
    done = compare_methods(data, coefficients=words, **few)
    records = [json.loads((folder[0] / "protocol.json").read_text()) for folder in done.runs.values()]
    assert [record["coefficients"][0] for record in records] == ["contrast_weight=0.5", "contrast_weight=0"]
    again = ["a.contrast_weight=0", "keep_fraction=0.4", "contrast_weight=0.5"]  # the same in other words
    assert compare_methods(data, coefficients=again, **few).runs == done.runs
    for twice in ("contrast_weight=1", "a.contrast_weight=1"):
        told = rf"coefficients has {twice[:-2]} twice; expected it once"
        with pytest.raises(ValueError, match=told):
            compare_methods(data, coefficients=[*words, twice], **few)


def set_seconds(folder, seconds):
    """Let the log of a run end after so many seconds."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    lines[-1][lines[0].index("seconds")] = str(seconds)
    (folder / "metrics.csv").write_text("".join(",".join(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def timed(data, tmp_path_factory):
    """Runs of two methods with three seeds, whose median times are 2 and 7 minutes, and the options they have."""
    few = SMALL | {"recipes": ["supervised", "mean_teacher"], "nets": ["unet"]}
    few |= {"out": str(tmp_path_factory.mktemp("timed") / "out")}
    done = compare_methods(data, seeds=[0, 1, 2], **few)
    for recipe, seconds in {"supervised": (60, 120, 9999), "mean_teacher": (100, 420, 480)}.items():
        for folder, own in zip(done.runs[recipe], seconds, strict=True):
            set_seconds(folder, own)
    return few


@pytest.fixture
def few(timed, tmp_path):
    """The same runs in a folder of their own."""
    shutil.copytree(timed["out"], tmp_path / "out")
    return timed | {"out": str(tmp_path / "out")}


def test_equal_time_trains_the_baseline_as_long_as_the_slowest_method(data, few, tmp_path):
    told, record = [], tmp_path / "out" / "compare.json"
    done = compare_methods(data, told.append, seeds=[0, 1], equal_time=True, keep=str(tmp_path / "kept"), **few)
    assert list(done.runs) == ["supervised", "supervised_6", "mean_teacher"]  # 2 steps in 1.5 minutes, 4.33 minutes
    lines = [line for line in told if line.startswith("equal time: ")]
    assert lines == [
        "equal time: 6 steps of supervised take as long as mean_teacher, whose runs took 4.33 minutes, where 2 steps "
        "took 1.50",
        "equal time: supervised_6 is supervised for as long as mean_teacher",
    ]
    assert f"report without these: {tmp_path / 'out' / 'report.html'}" in told
    for folder in done.runs["supervised_6"]:
        protocol = json.loads((folder / "protocol.json").read_text())
        assert protocol["fit"]["steps"] == 6
        assert protocol["unlabelled"]["count"] == 0
        assert len((folder / "metrics.csv").read_text().splitlines()) == 7
        found = {path.name: path.read_text() for path in (tmp_path / "kept" / folder.name).iterdir()}
        assert set(found) >= {"cases.csv", "protocol.json", "env.json", "reliability.csv"}
        assert not set(found) & {"options.json", "config.yaml", "metrics.csv"}
        assert not [name for name, text in found.items() if str(tmp_path) in text or str(data) in text]
    pairs = [line.partition(":")[0] for line in told if " minus " in line]
    assert pairs == [
        "supervised_6 minus supervised",
        "mean_teacher minus supervised",
        "mean_teacher minus supervised_6",
    ]
    assert json.loads(record.read_text())["steps at equal time"] == {"supervised": {"mean_teacher": 6}}
    told.clear()  # a seed more, whose time would change the number
    again = compare_methods(data, told.append, seeds=[0, 1, 2], equal_time=True, **few)
    assert [folder.name for folder in again.runs["supervised_6"]] == [f"supervised_6_seed{seed}" for seed in range(3)]
    assert not any("take as long as" in line for line in told)
    assert list(compare_methods(data, seeds=[0], **few).runs) == few["recipes"]


def test_a_single_run_beside_none_has_one_thread_too(data, few, monkeypatch):
    started = []
    run = compare.run_beside
    monkeypatch.setattr(
        "ssmis.compare.run_beside", lambda commands, **how: started.append(len(commands)) or run(commands, **how)
    )
    done = compare_methods(data, seeds=[0], equal_time=True, beside=2, **few)
    assert list(done.runs) == ["supervised", "supervised_3", "mean_teacher"]
    assert started == [1]


def test_another_process_that_began_with_other_options_meanwhile_is_not_overwritten(data, tmp_path, monkeypatch):
    few, begins = SMALL | {"out": str(tmp_path / "out"), "recipes": ["supervised"], "seeds": [0]}, []
    try_out = compare._try_out

    def slowly(*given):
        try_out(*given)
        if not begins:
            begins.append("once")
            compare_methods(data, split_seed=7, **few)

    monkeypatch.setattr("ssmis.compare._try_out", slowly)
    with pytest.raises(ValueError, match="split_seed was 7 and is 3"):
        compare_methods(data, split_seed=3, **few)
    split = make_split(find_dataset(data), labelled="2", test="2", seed=7)
    assert read_list(tmp_path / "out" / "split" / "test.list") == [case.id for case in split.test]
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["options"]["split_seed"] == 7


def test_the_page_compares_each_two_rows_with_one_seed_too(data, few):
    done = compare_methods(data, seeds=[0], equal_time=True, **few)
    page = done.report.read_text()
    assert list(done.runs) == ["supervised", "supervised_3", "mean_teacher"]
    assert "against supervised_seed0, " in page
    assert "against supervised_3_seed0, " in page


def test_a_row_of_other_steps_is_not_taken_for_a_method_of_that_name(data, few):
    words = {"recipes": ["mean_teacher", "supervised_7=supervised"], "seeds": [1]}  # there is a row at equal time
    assert list(compare_methods(data, equal_time=True, **few | {"seeds": [1]}).runs)[1] == "supervised_7"
    with pytest.raises(ValueError, match=r"supervised_7_seed1 was begun with other options: steps was 7 and is 2"):
        compare_methods(data, **few | words)


def test_another_baseline_has_numbers_of_its_own_and_they_stay(data, few, tmp_path):
    record = tmp_path / "out" / "compare.json"
    turned, told = few | {"recipes": few["recipes"][::-1]}, []
    assert list(compare_methods(data, told.append, seeds=[1], equal_time=True, **turned).runs) == turned["recipes"]
    slower = "mean_teacher takes as long as supervised or longer, so its row is that at equal time, too"
    assert f"equal time: {slower}" in told
    done = compare_methods(data, seeds=[1], equal_time=True, **few)
    assert list(done.runs) == ["supervised", "supervised_7", "mean_teacher"]
    found = json.loads(record.read_text())
    assert found["steps at equal time"] == {"mean_teacher": {"supervised": 1}, "supervised": {"mean_teacher": 7}}
    found["steps at equal time"]["supervised"]["mean_teacher"] = 9  # a number that stands there is not measured again
    record.write_text(json.dumps(found))
    assert list(compare_methods(data, seeds=[1], equal_time=True, **few).runs)[1] == "supervised_9"
    assert json.loads(record.read_text()) == found


@pytest.mark.parametrize("seconds", ["", "0", "-3", "inf", "x"])
def test_a_log_without_a_time_is_told_by_its_name(data, few, seconds, tmp_path):
    set_seconds(tmp_path / "out" / "mean_teacher_seed0", seconds)
    with pytest.raises(ValueError, match=r"mean_teacher_seed0/metrics\.csv: "):
        compare_methods(data, seeds=[0], equal_time=True, **few)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"steps at equal time": [3]}, "'steps at equal time' is '\\[3\\]'; expected an object"),
        ({"steps at equal time": {"supervised": 3}}, "of supervised is '3'; expected an object"),
        (
            {"steps at equal time": {"supervised": {"mean_teacher": 4.0}}},
            "mean_teacher is '4.0'; expected a whole number",
        ),
        ({"steps at equal time": {"supervised": {"mean_teacher": True}}}, "is 'True'; expected a whole number"),
        ({"steps at equal time": {"supervised": {"mean_teacher": 0}}}, "is '0'; expected a whole number"),
        ({"options": None}, "'options' is 'None'; expected an object"),
        ({"data": "x"}, "'data' is 'x'; expected an object"),
        ("without options", "there are no options; expected a file that ssmis compare wrote"),
        ("missing", r"there is no such file beside \w+_seed\d; expected what that run was made with"),
    ],
)
def test_a_damaged_record_is_told_before_anything_is_trained(data, few, tmp_path, changed, told):
    record = tmp_path / "out" / "compare.json"
    old = json.loads(record.read_text())
    if changed == "missing":
        record.unlink()
    else:
        own = {"data": old["data"]} if changed == "without options" else old | changed
        record.write_text(json.dumps(own))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=rf"compare\.json: .*{told}"):
        compare_methods(data, seeds=[3], equal_time=True, **few)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_what_cannot_be_kept_is_told_before_anything_is_trained(data, few, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"keep is .*file; expected a folder"):
        compare_methods(data, seeds=[3], keep=str(tmp_path / "file"), **few)
    assert not (tmp_path / "out" / "supervised_seed3").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"recipes": ["supervised", "nothing"]}, "nothing"),
        ({"recipes": ["supervised", "supervised"]}, "expected at least one, each once"),
        ({"recipes": ["a=supervised", "A=uc_seg"]}, "expected at least one, each once"),
        ({"recipes": ["supervised", f"{'a' * 81}=uc_seg"]}, "expected at most 80 letters, digits"),
        ({"seeds": [0, 0]}, "expected whole numbers, at least one, each once"),
        ({"seeds": [0, True]}, "expected whole numbers, at least one, each once"),
        ({"presets": ["uc_seg=ours"]}, "presets has 'uc_seg=ours'; expected METHOD=PRESET"),
        ({"presets": ["late"]}, "presets has 'late'; expected METHOD=PRESET"),
        ({"presets": ["dual_uncertainty=nothing"]}, "nothing"),
        ({"coefficients": ["nothing=1"]}, "nothing"),
        ({"coefficients": ["uc_seg.nothing=1"]}, r"expected METHOD\.NAME=VALUE"),
        (
            {"coefficients": ["uc_seg.bank=ema"], "recipes": ["supervised", "mine=uc_seg"]},
            r"of one of supervised, mine",
        ),
        ({"recipes": ["supervised", "mine=nothing"]}, "nothing"),
        ({"recipes": ["supervised", "uc_seg=dual_uncertainty"]}, "whose name is 'uc_seg'; which is another recipe"),
        ({"recipes": ["supervised", "../mine=uc_seg"]}, "whose name is '../mine'; expected at most 80 letters"),
        ({"recipes": ["supervised", "=uc_seg"]}, "whose name is ''; expected at most 80 letters"),
        ({"recipes": ["supervised", "mine-seed_3=uc_seg"]}, "which a report takes for a seed"),
        ({"recipes": ["supervised", "mine_seed3=uc_seg"]}, "which a report takes for a seed"),
        ({"recipes": ["supervised", "supervised_40=supervised"]}, "which is the row of equal_time"),
        ({"recipes": ["supervised", "mine=uc_seg", "mine=mean_teacher"]}, "each once, or under other names"),
        ({"recipes": [f"{name}=supervised" for name in "abcdefg"]}, "recipes has 7 methods; expected at most 6 rows"),
        ({"recipes": [f"{name}=supervised" for name in "abcdef"], "equal_time": True}, "besides the row of equal_time"),
        ({"nets": ["nothing"]}, "nothing"),
        ({"recipes": []}, "expected at least one, each once"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"keep": "out"}, "keep is .*, in the folder of the runs"),
        ({"keep": "out/mine_seed0"}, "keep is .*, in the folder of the runs"),
        ({"beside": 0}, "beside is 0; expected at least 1"),
        ({"equal_time": True, "recipes": ["supervised"]}, "equal_time with one method; expected another one"),
        ({"test": "0"}, "test is '0', which holds no case out"),
        ({"labelled": "all", "data": "all"}, "has no case without a label, and labelled is 'all'; expected fewer"),
    ],
)
def test_what_could_not_be_compared_is_told_before_anything_is_written(data, tmp_path, wrong, told):
    wrong = dict(wrong)
    if "keep" in wrong:
        wrong["keep"] = str(tmp_path / wrong["keep"])
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
