# SPDX-License-Identifier: Apache-2.0
"""Files of a run that someone made up; and a quick round of what `benchmarks/fuzz.py` and `soak.py` do at length."""

import faulthandler
import os
import pickle
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.small import small_batch, small_nets

from benchmarks import fuzz, soak
from ssmis.data import DataError
from ssmis.engine import CheckpointError, FitConfig, fit, load_checkpoint, save_checkpoint, write_evaluation
from ssmis.recipes import Supervised
from ssmis.report import ReportRun


class Touch:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_resume_from_a_malicious_checkpoint_runs_nothing(tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    torch.save({"format": "ssmis.checkpoint", "version": 1, "state": {"step": Touch(tmp_path / "ran")}}, last)
    recipe = Supervised(small_nets(names=("vnet",)))
    with pytest.raises(CheckpointError, match=r"last\.pt holds objects that are not loaded for safety"):
        fit(recipe, small_batch, FitConfig(steps=2), out=tmp_path / "run", resume=True, progress=False)
    last.write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"last\.pt is truncated or no checkpoint"):
        load_checkpoint(last)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match=r"bomb\.pt is no checkpoint: it unpacks to more than there is"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": "ssmis.checkpoint"}, "no format version or no state"),
        ({"format": "ssmis.checkpoint", "version": "x", "state": {}}, "no format version or no state"),
        ({"format": "ssmis.checkpoint", "version": 1, "state": [1]}, "no format version or no state"),
        ([1, 2], "is not a checkpoint of ssmis"),
    ],
)
def test_made_up_checkpoints_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"odd\.pt.*{message}"):
        load_checkpoint(path)


def test_a_resume_names_what_a_checkpoint_lacks(tmp_path):
    last = tmp_path / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    save_checkpoint(last, {"step": 1})
    with pytest.raises(CheckpointError, match=r"last\.pt is not a checkpoint of fit: it lacks ema, guard"):
        fit(Supervised(small_nets(names=("vnet",))), small_batch, FitConfig(), out=tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_protocol_is_named(tmp_path, content):
    (tmp_path / "protocol.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"protocol\.json: cannot be read as JSON"):
        ReportRun("run", tmp_path).settings("protocol.json")
    with pytest.raises(DataError):
        write_evaluation(tmp_path, [], {})


def test_a_quick_round_of_fuzzing_finds_nothing():
    counts, findings = fuzz.run(300, seed=1, data=None, seconds=60)
    assert findings == []
    assert sum(sum(outcomes.values()) for outcomes in counts.values()) > 20
    assert counts["h5"]["refused"] > 0


def crash(path):
    faulthandler.disable()  # pytest would print a traceback
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path):
    while True:
        pass


def swell(path):
    return np.ones(int(1.2 * fuzz.MEMORY_MB * 2**20), dtype=np.uint8).sum()


def nameless(path):
    raise ValueError("something is wrong")


def wrong_error(path):
    raise IndexError(str(path))


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (crash, "crash: ended by -11"),
        (hang, "too slow"),
        (swell, "memory"),
        (nameless, "no name"),
        (wrong_error, "other"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(tmp_path, monkeypatch, read, found):
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.3 if read is hang else 30)
    form = fuzz.Format("odd", "odd.bin", bytes(100), read, ValueError)
    outcomes = dict(fuzz.fuzz(form, tmp_path, [0, 1], until=float("inf")))
    assert sorted(outcomes) == [0, 1]
    assert outcomes[0].startswith(found)


def test_a_few_kills_lose_nothing(tmp_path):
    torch.set_num_threads(1)
    trial = soak.Soak(tmp_path, seed=0)
    trial.kill(3, until=float("inf"))
    assert trial.problems == []
    assert sum(trial.counts.get(f"SIG{name}", 0) for name in ("KILL", "TERM", "INT")) == 3
    assert isinstance(trial.reference, Path)
    assert trial.lost <= soak.EVERY


def test_a_soak_sees_a_run_that_differs(tmp_path):
    """The comparison is no formality: another seed, another weight."""
    for name, seed in (("a", 0), ("b", 1)):
        recipe = Supervised(small_nets(names=("vnet",), seed=seed))
        fit(recipe, small_batch, FitConfig(steps=2, precision="fp32"), out=tmp_path / name, progress=False)
    found = soak.differences(tmp_path / "a", tmp_path / "b")
    assert any("checkpoint.recipe" in line for line in found)
    assert any("metrics.csv" in line for line in found)
    assert soak.differences(tmp_path / "a", tmp_path / "a") == []
