# SPDX-License-Identifier: Apache-2.0
import os
import pickle
import random
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssmis.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def training_state():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.rand(2, 1, 6, 6)).sum().backward()
    optimizer.step()
    return {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "python": random.getstate(),
        "step": 7,
        "notes": {"nested": [1.5, None, "text", (True, b"raw")], "order": OrderedDict(a=1)},
    }


def assert_same(a, b):
    assert type(a) is type(b) or isinstance(a, dict)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


def test_a_training_state_comes_back_equal(tmp_path):
    state = training_state()
    save_checkpoint(tmp_path / "last.pt", state)
    assert_same(load_checkpoint(tmp_path / "last.pt"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def dies_half_way(content, file):
        file.write(b"PK half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", dies_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), fsync(number))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append((Path(a).parent, Path(b).name)), replace(a, b))[1])
    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    assert events[:2] == ["fsync", (tmp_path, "last.pt")]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"lr": np.float64(0.1)}, r"state\['x'\]\['lr'\] is a numpy.float64"),
        ([1, Path("a")], r"state\['x'\]\[1\] is a pathlib"),
        ({np.int64(3): 1}, r"the key .* of state\['x'\] is a numpy.int64"),
        (Fraction(1, 2), r"state\['x'\] is a fractions.Fraction"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, value, place):
    with pytest.raises(ValueError, match=place):
        save_checkpoint(tmp_path / "last.pt", {"x": value})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*best\.pt"):
        load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "last.pt"
    save_checkpoint(path, training_state())
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match=r"last\.pt is truncated or no checkpoint at all"):
        load_checkpoint(path)


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    path = tmp_path / "last.pt"
    weight = torch.arange(1000.0)
    save_checkpoint(path, {"weight": weight})
    content = bytearray(path.read_bytes())
    at = content.find(weight.numpy().tobytes())
    assert at > 0
    content[at + 2001] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged: the checksum of .* does not match"):
        load_checkpoint(path)


class Harmful:
    def __reduce__(self):
        return (eval, ("1 / 0",))


def test_code_in_a_file_is_refused_not_run(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"format": "ssmis.checkpoint", "version": 1, "state": Harmful()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt holds objects that are not loaded for safety"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError, match=r"evil\.pt is truncated or no checkpoint"):
        load_checkpoint(path)


def test_foreign_and_newer_files_are_told_apart(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"model": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"other\.pt is not a checkpoint of ssmis"):
        load_checkpoint(path)
    torch.save({"format": "ssmis.checkpoint", "version": 99, "state": {}}, path)
    with pytest.raises(CheckpointError, match=r"format version 99; this ssmis reads up to 1"):
        load_checkpoint(path)
