# SPDX-License-Identifier: Apache-2.0
"""The command line: quick help, options as of the functions, exit status, the next command."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from data.folders import nifti, plain, scan
from engine.own_runs import small_plan, write_run

from ssmis import cli, options
from ssmis._arguments import parse
from ssmis.data import write_phantoms
from ssmis.engine.demo import write_demo
from ssmis.metrics import METRICS, CaseScore, write_cases_csv

nib = pytest.importorskip("nibabel")
pytest.importorskip("jsonargparse")
ROOT = Path(__file__).parents[1]
KINDS = {
    "inspect": options.InspectOptions, "verify": options.VerifyOptions, "train": options.TrainOptions,
    "evaluate": options.EvaluateOptions, "predict": options.PredictOptions, "report": options.ReportOptions,
    "export": options.ExportOptions, "demo": options.DemoOptions,
}  # fmt: skip


def test_help_imports_nothing_that_takes_time():
    code = "from ssmis.cli import main; import sys; main(['--help']); print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "jsonargparse", "yaml", "nibabel"} & set(told.splitlines()[-1].split())
    for command in cli.COMMANDS:
        assert f"ssmis {command}" in told


def test_the_module_is_the_command():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "ssmis", "nope"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ssmis: there is no command 'nope'; expected one of demo, inspect")


@pytest.mark.parametrize("command", KINDS)
def test_every_option_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    for field in fields(KINDS[command]):
        assert field.name in told
        assert re.search(rf"^    {field.name}: \S", inspect.getdoc(KINDS[command]), flags=re.MULTILINE), field.name


def test_options_come_from_file_and_command_line(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("data: here\nsteps: 7\nspacing_mm: [1, 2.5, 3]\nmirror: true\n")
    found = parse("train", options.TrainOptions, ["--config", str(tmp_path / "c.yaml"), "--steps", "9"])
    assert (found.data, found.steps, found.spacing_mm, found.mirror) == ("here", 9, [1.0, 2.5, 3.0], True)
    found = parse("predict", options.PredictOptions, ["run", "a.nii", "b.nii", "-o", "out", "--prob"])
    assert (found.run, found.inputs, found.out, found.prob) == ("run", ["a.nii", "b.nii"], "out", True)
    with pytest.raises(SystemExit):
        cli.main(["train", "here", "--print_config"])
    assert "recipe: dual_uncertainty" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["--learning-rate -0.1 here", "here --learning_rate -.1", "here --learning_rate=-0.1"])
def test_a_negative_number_is_a_value(line):
    found = parse("train", options.TrainOptions, line.split())  # refused later on, for what it is
    assert (found.data, found.learning_rate) == ("here", -0.1)


@pytest.mark.parametrize(
    "line",
    ["run a.nii b.nii -o out --prob --patience", "-o out --prob run a.nii b.nii", "run -o out a.nii --prob true b.nii",
     "--prob run --out=out a.nii b.nii", "run a.nii b.nii --prob -o out"],
)  # fmt: skip
def test_options_come_before_and_after_the_words(line):
    if "--patience" in line:
        with pytest.raises(ValueError, match="unrecognized arguments: --patience"):
            parse("predict", options.PredictOptions, line.split())
        return
    found = parse("predict", options.PredictOptions, line.split())
    assert (found.run, found.inputs, found.out, found.prob) == ("run", ["a.nii", "b.nii"], "out", True)


def test_what_was_not_begun_is_not_to_be_continued(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    from ssmis.engine import train as module

    assert module is not None
    monkeypatch.setattr(sys.modules["ssmis.engine.train"], "survey", interrupted)
    assert cli.main(["train", str(plain(tmp_path / "data")), "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "ssmis: interrupted\n"


def test_output_that_nobody_reads_any_more_is_no_error():
    code = "import sys; from ssmis.cli import main; sys.exit(main(['list']))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        told = run.stderr.read().decode()
    assert (run.returncode, told) == (141, "")


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    def greedy(words):
        raise MemoryError

    monkeypatch.setitem(cli.COMMANDS, "predict", greedy)
    assert cli.main(["predict"]) == 1
    assert capsys.readouterr().err.startswith("ssmis: there is not enough memory: smaller patches, widths and")


def test_a_second_demo_goes_on_with_the_first(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("ssmis.engine.demo.write_demo", lambda root: plain(root))
    for name in ("inspect", "train", "evaluate", "predict"):
        monkeypatch.setattr(cli, f"_{name}", lambda words, name=name: seen.append([name, *words]) or 0)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert [words[0] for words in seen] == ["inspect", "train", "evaluate", "predict"]
    assert "--resume" not in seen[1]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").touch()
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert "--resume" in seen[5]


def test_inspect_ends_with_one_where_training_would_break(tmp_path, capsys):
    assert cli.main(["inspect", str(plain(tmp_path / "good")), "--progress", "false"]) == 0
    told = capsys.readouterr().out
    assert "3 labelled, 3 unlabelled" in told
    assert f"next: ssmis train {tmp_path / 'good'}" in told
    bad = plain(tmp_path / "bad")
    nifti(bad / "labels" / "case0.nii.gz", scan(0)[1][:-1])
    assert cli.main(["inspect", str(bad), "--progress", "false"]) == 1
    assert "geometry: labels/case0.nii.gz: the label has shape (11, 12, 8)" in capsys.readouterr().out


def test_verify_holds_a_public_data_set_against_its_lists(tmp_path, capsys):
    root = write_phantoms(tmp_path / "data", labelled=2, unlabelled=3, test=1, size=(16, 16, 16))
    last = (root / "train.list").read_text(encoding="utf-8").split()[-1]
    (root / "val.list").write_text(f"{last}\n", encoding="utf-8")
    command = ["verify", str(root), "phantom", "--progress", "false"]
    assert cli.main(command) == 0
    assert f"phantom in {root}: 5 train, 1 test; problems: 0, notes: 0" in capsys.readouterr().out
    lists = ["--lists", "train=train.list", "val=val.list"]
    assert cli.main([*command, *lists, "--near", "1"]) == 0
    assert "4 train, 1 val" in capsys.readouterr().out
    next(root.rglob(f"{last}/*.h5")).unlink()
    assert cli.main([*command, *lists]) == 1
    assert f"problem, missing: {last}: there is no file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["DATA"], "verify needs PROTOCOL; see ssmis verify --help"),
        (
            ["DATA", "la", "--lists", "train=a.list", "val="],
            "lists has 'val='; expected ROLE=FILE, such as val=",
        ),
        (["DATA", "la", "--lists", "val=a.list", "val=b.list"], "lists names 'val' twice"),
    ],
)
def test_verify_says_what_it_needs(words, told, capsys):
    assert cli.main(["verify", *words]) == 1
    assert capsys.readouterr().err.startswith(f"ssmis: {told}")


def test_ctrl_c_ends_with_130_and_the_command_that_continues(tmp_path, capsys, monkeypatch):
    from ssmis.engine import train as module

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["ssmis.engine.train"], "fit", interrupted)
    assert module is not None
    words = ["train", str(plain(tmp_path / "data")), "--out", str(tmp_path / "run"), "--progress", "false"]
    small = ["--recipe", "supervised", "--nets", "unet", "--width", "2", "--patch", "8", "8", "8", "--steps", "2"]
    assert cli.main([*words, *small]) == 130
    told = capsys.readouterr().err
    again = shlex.split(told.split("continue with: ")[1])
    monkeypatch.undo()
    assert again[:2] == ["ssmis", "train"]
    assert cli.main([*again[1:], "--progress", "false"]) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()


def test_the_walkthrough_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_demo("scans", size=(16, 16, 16))
    page = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    commands = re.search(r"^```bash\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)[1].strip().splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(commands) == 4
    small = ["--steps", "2", "--width", "2", "--recipe", "supervised", "--nets", "unet"]
    for command in commands:
        assert " ".join(command.split()[:3]) in readme
        words = shlex.split(command)[1:]
        assert cli.main([*words, *(small if words[0] == "train" else []), "--progress", "false"]) == 0, command
        assert "next: ssmis " in capsys.readouterr().out
    source, result = nib.load("scans/images/scan_025.nii.gz"), nib.load("predictions/scan_025.nii.gz")
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)


def test_export_list_and_doctor(tmp_path, capsys):
    run = write_run(tmp_path / "run", small_plan())
    assert cli.main(["export", str(run)]) == 0
    assert (run / "export" / "model.safetensors").is_file()
    assert cli.main(["list", "recipes"]) == 0
    assert "dual_uncertainty" in capsys.readouterr().out
    assert cli.main(["doctor"]) in (0, 1)
    assert "extra medical" in capsys.readouterr().out
    assert cli.main(["list", "nothing"]) == 1
    assert cli.main(["report", str(run)]) == 1


def test_the_help_of_every_command_is_there_and_has_single_per_cent_signs(capsys):
    for command in cli.COMMANDS:
        try:
            status = cli.main([command, "--help"])
        except SystemExit as ended:
            status = ended.code
        assert not status
        told = capsys.readouterr().out
        assert f"usage: ssmis {command}" in told
        assert "%%" not in told


def test_hyphens_are_underscores_and_a_slip_of_the_pen_is_pointed_out(capsys):
    chosen = parse(
        "compare", options.CompareOptions, ["DATA", "--equal-time", "--learning-rate=0.5", "--coefficients", "a-b=-1"]
    )
    assert (chosen.equal_time, chosen.learning_rate, chosen.coefficients) == (True, 0.5, ["a-b=-1"])
    with pytest.raises(ValueError, match=r"unrecognized arguments: --equal-tim; did you mean --equal_time\?"):
        parse("compare", options.CompareOptions, ["DATA", "--equal-tim"])
    with pytest.raises(ValueError, match="unrecognized arguments: --xyz 3; see ssmis train --help"):
        parse("train", options.TrainOptions, ["DATA", "--xyz", "3"])


def test_kept_scores_have_a_report_and_predict_nothing(tmp_path, capsys):
    metrics = dict.fromkeys(METRICS, 0.5)
    for name in ("supervised_seed0", "uc_seg_seed0"):
        (tmp_path / name).mkdir()
        write_cases_csv(tmp_path / name / "cases.csv", [CaseScore("a", 1, "ok", 9, 9, **metrics, unit="mm")])
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    out = capsys.readouterr().out
    assert "uc_seg minus supervised: Dice +0.00 points, one case" in out
    assert "ssmis predict" not in out
