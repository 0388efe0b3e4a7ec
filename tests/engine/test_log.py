# SPDX-License-Identifier: Apache-2.0
"""The log survives what a process and a disk may do to it."""

import csv
import resource
from contextlib import contextmanager

import numpy as np
import pytest

from ssmis.data import Cache, Case, Grid, write_la
from ssmis.data.scans import write_map
from ssmis.engine import load_checkpoint, save_checkpoint
from ssmis.engine.atomic import remove_leftovers, replace_text
from ssmis.engine.log import CsvLog


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def full_disk(size):
    """No file of this process grows beyond `size` bytes, the log of the tests neither: so only as long as it must."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_log_cut_anywhere_gives_its_whole_rows(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path)
    for step in range(12):
        log.write({"step": step, "loss": step + 0.125, "note": 'a "b", c'})
    log.close()
    content, whole = path.read_bytes(), rows(path)
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        CsvLog(path, keep_below=100).close()
        kept = sum(end <= cut for end in ends) - 1
        assert rows(path) == whole[: max(kept, 0)], cut


def test_rows_out_of_order_end_a_log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\r\n10,1\r\n11,1\r\n1,1\r\n12,1\r\n")
    CsvLog(path, keep_below=100).close()
    assert [row["step"] for row in rows(path)] == ["10", "11"]


def test_a_full_disk_leaves_whole_rows_and_names_the_file(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path)
    log.write({"step": 0, "loss": 0.5})
    before = path.read_bytes()
    with full_disk(len(before) + 3):  # room for a part of the next row
        with pytest.raises(OSError, match=r"log\.csv"):
            log.write({"step": 1, "loss": 0.5})
        assert path.read_bytes() == before
        with pytest.raises(OSError, match=r"log\.csv"):  # a wider row needs a new file
            log.write({"step": 1, "loss": 0.5, "extra": 1.0})
    assert path.read_bytes() == before
    log.close()


def test_a_full_disk_leaves_the_old_checkpoint_and_names_the_file(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    with full_disk(64), pytest.raises(OSError, match=r"it keeps what it held before: .*last\.pt"):
        save_checkpoint(path, {"step": 2, "more": list(range(10000))})
    assert load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("kind", ["volume", "picture", "cache"])
def test_a_full_disk_leaves_no_half_of_a_result_and_names_the_file(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 40), dtype=np.uint8)
    case = Case("a", write_la(tmp_path / "data", "a", noise, None), None, (1.0, 1.0, 1.0))
    out = tmp_path / "out"
    write = {
        "volume": lambda: write_map(out / "map", noise, Grid(noise.shape, (1.0, 1.0, 1.0), np.eye(4))),
        "picture": lambda: write_map(out / "map", noise[0], Grid(noise.shape[1:], (1.0, 1.0))),
        "cache": lambda: Cache.build([case], out),
    }[kind]
    with full_disk(500), pytest.raises(OSError, match=r"out/(map\.nii\.gz|map\.png|a-\w+\.image\.npy)'?$"):
        write()
    assert [path for path in out.iterdir() if path.stat().st_size] == []


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    replace_text(tmp_path / "protocol.json", "{}")
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"half a")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["protocol.json"]


def test_a_step_of_thousands_of_digits_ends_a_log(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n0,1\n" + "1" * 5000 + ",2\n")
    CsvLog(path, keep_below=5).close()
    assert path.read_bytes().split() == [b"step,loss", b"0,1"]
