# SPDX-License-Identifier: Apache-2.0
"""The example as a user runs it, with few steps: outputs, resume, interruption, messages."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "la_10pct.py"
ENV = {**os.environ, "OMP_NUM_THREADS": "2"}


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)], capture_output=True, text=True, env=ENV, timeout=280
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("example")
    done = run("--steps", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_three_rows_with_scores_of_every_held_out_case(finished):
    out, printed = finished
    table = (out / "table.md").read_text()
    assert table.strip() in printed
    for row in ("supervised", "dual_uncertainty", "all_labels"):
        assert f"| {row} " in table
        with (out / row / "cases.csv").open() as file:
            assert len({line["case"] for line in csv.DictReader(file)}) == 48
    assert (out / "cases.png").read_bytes().startswith(b"\x89PNG")


def test_resume_of_a_finished_run_gives_the_same_table(finished):
    out, _ = finished
    before = (out / "table.md").read_text()
    again = run("--steps", 2, "--out", out, "--resume", "--rows", "supervised")
    assert again.returncode == 0, again.stderr
    row = next(line for line in before.splitlines() if line.startswith("| supervised"))
    # everything but the peak memory, which is the process's
    assert (
        row.split("|")[2:8]
        == next(line for line in again.stdout.splitlines() if line.startswith("| supervised")).split("|")[2:8]
    )


def test_a_used_folder_needs_resume(finished):
    done = run("--steps", 2, "--out", finished[0], "--rows", "supervised")
    assert done.returncode != 0
    assert "holds a run already" in done.stderr


def test_a_row_that_fails_beside_others_ends_all_with_its_message(finished):
    done = run("--steps", 2, "--out", finished[0])
    assert done.returncode == 1
    assert "holds a run already" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_status_130_and_a_hint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--out", str(tmp_path), "--rows", "supervised"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ENV,
    )
    log = tmp_path / "supervised" / "metrics.csv"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume continues" in errors
    assert (tmp_path / "supervised" / "checkpoints" / "last.pt").exists()


def test_wrong_data_is_told_without_a_traceback(tmp_path):
    done = run("--data", tmp_path, "--val", "val.list", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("la_10pct: ")
    assert "2018LA_Seg_Training Set" in done.stderr


def test_real_data_needs_a_list_to_score(data_root, tmp_path):
    done = run("--data", data_root / "la", "--out", tmp_path)
    assert done.returncode != 0
    assert "--val or --test" in done.stderr


def test_real_data_runs_at_the_cpu_protocol(data_root, tmp_path):
    done = run(
        "--data", data_root / "la", "--val", "dev_val.list", "--steps", 2, "--out", tmp_path, "--rows", "supervised"
    )
    assert done.returncode == 0, done.stderr
    assert "8 labelled" in done.stdout
    assert "12 held-out cases, original grid, protocol cpu" in done.stdout
