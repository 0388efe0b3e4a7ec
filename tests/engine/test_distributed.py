# SPDX-License-Identifier: Apache-2.0
"""Two processes train as one does, and fail together."""

import csv
from dataclasses import replace

import pytest
import torch
from engine import processes
from engine.processes import CONFIG, in_processes, make, train

from ssmis.data import Batch
from ssmis.engine import PeerError, World, fit, join, load_checkpoint, parse_shard, shard
from ssmis.engine.demo import write_demo
from ssmis.registry import RECIPES

pytestmark = pytest.mark.timeout(900)  # of a machine with much else to do; `processes.TIMEOUT` comes before


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the processes: sums in another order, amplified by norms of tiny maps, would pass for a difference."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_close(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        mine = other[key]
        if key.endswith("ring"):  # the same vectors, in the order of another number of parts
            value, mine = value.sum(1), mine.sum(1)
        assert torch.allclose(value.float(), mine.float(), rtol=1e-4, atol=1e-5), key


def assert_equal(state, other):
    for key, value in state.items():
        assert torch.equal(value, other[key]), key


def test_two_processes_and_micro_steps_train_as_one_does(tmp_path):
    one = {name: train(name, tmp_path / f"one-{name}") for name in RECIPES}
    first, second = in_processes(processes.train_all, tmp_path, list(RECIPES))
    for name in RECIPES:
        assert_equal(first[name], second[name])  # students, teachers and banks, bit for bit
        if name in processes.RANK_LOCAL:
            continue
        assert_close(one[name], first[name])
        assert (tmp_path / f"{name}-0" / "checkpoints" / "last.pt").exists()
        assert not (tmp_path / f"{name}-1").exists()  # only the first process writes
        a, b = (rows(tmp_path / run / "metrics.csv") for run in (f"one-{name}", f"{name}-0"))
        assert [float(row["loss"]) for row in a] == pytest.approx([float(row["loss"]) for row in b], rel=1e-4)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in processes.RANK_LOCAL])
def test_accumulated_gradients_equal_the_large_batch(name, tmp_path):
    whole = train(name, tmp_path / "whole")
    assert_close(whole, train(name, tmp_path / "parts", replace(CONFIG, accumulate=2)))


def test_processes_stay_equal_with_batch_norm_dropout_and_micro_steps(tmp_path):
    config = replace(CONFIG, accumulate=2, steps=3)
    settings = {"norm": "batch", "preset": "averaged", "contrast_weight": 0.1}
    first, second = in_processes(processes.train_all, tmp_path, ["dual_uncertainty"], config, **settings)
    assert_equal(first["dual_uncertainty"], second["dual_uncertainty"])
    means = [value for key, value in first["dual_uncertainty"].items() if key.endswith("running_mean")]
    assert any(bool(mean.any()) for mean in means)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    straight = train("dual_uncertainty", tmp_path / "straight", replace(CONFIG, steps=6))
    config, folder = replace(CONFIG, steps=6, checkpoint_every=2), tmp_path / "run"
    stopped = in_processes(processes.train_one, folder, "dual_uncertainty", config, stop=2)
    assert all(isinstance(error, OSError | PeerError) for error in stopped), stopped
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == 2
    with pytest.raises(OSError, match="stopped"):
        processes.train_one(0, folder, "dual_uncertainty", config, stop=4, resume=True)
    first, second = in_processes(processes.train_one, folder, "dual_uncertainty", config, resume=True)
    assert_equal(first, second)
    assert_close(straight, first)
    assert [row["step"] for row in rows(folder / "metrics.csv")] == list("012345")


@pytest.mark.parametrize(
    ("where", "own", "other", "message"),
    [
        ("data", 1, 0, "rank 1 failed: OSError: disk of rank 1 on fire"),
        ("callback", 0, 1, "rank 0 failed: KeyError: 'no such number'"),
    ],
)
def test_an_error_of_one_process_is_an_error_of_all(where, own, other, message, tmp_path):
    errors = in_processes(processes.fail, tmp_path / "run", where)
    assert type(errors[own]) in (OSError, KeyError)
    assert isinstance(errors[other], PeerError), errors
    assert message in str(errors[other])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("uneven", "3 labelled and 4 unlabelled volumes; expected multiples of 2"),
        ("different", "made different batches for step 0"),
        ("facts", "the settings and facts of rank 1"),
    ],
)
def test_data_that_do_not_fit_the_processes_are_an_error_and_no_hang(where, message, tmp_path):
    for error in in_processes(processes.fail, tmp_path / "run", where):
        assert isinstance(error, ValueError | PeerError)
        assert message in str(error)


def test_processes_whose_weights_differ_leave_no_checkpoint(tmp_path):
    for error in in_processes(processes.fail, tmp_path / "run", "weights"):
        assert "the state of the recipe after step 5 differs between processes" in str(error)
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_data_that_do_not_divide_by_the_processes_are_sampled_as_by_one(tmp_path):
    """Three labelled cases, two a step; each process crops and augments its own alone."""
    one = processes.train_moving(0, tmp_path / "one")
    first, second = in_processes(processes.train_moving, tmp_path / "two")
    assert_equal(first, second)
    assert_close(one, first)
    for error in in_processes(processes.train_moving, tmp_path / "other", (0, 1)):
        assert "what the batches follow from of rank 1" in str(error)


def test_what_is_not_finite_in_one_process_is_skipped_by_all(tmp_path):
    first, second = in_processes(processes.poisoned, tmp_path / "run")
    assert_equal(first, second)
    assert all(value.isfinite().all() for value in first.values())
    (event,) = rows(tmp_path / "run" / "events.csv")
    assert event["step"] == "1"
    assert "supervised/vnet" in event["message"]
    assert "cases case2, case3, case6, case7" in event["message"]  # those of rank 1


def test_sigterm_to_one_process_ends_all_with_a_checkpoint(tmp_path):
    first, second = in_processes(processes.terminated, tmp_path / "run")
    assert isinstance(first, SystemExit)
    assert isinstance(second, SystemExit)
    assert first.code == second.code == 143
    step = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
    assert rows(tmp_path / "run" / "metrics.csv")[-1]["step"] == str(step - 1)


def test_a_folder_of_scans_is_planned_by_the_first_process_and_trained_by_all(tmp_path):
    """`ssmis train` under torchrun: one plan, one split, one log, the same weights; and one error for all."""
    data = write_demo(tmp_path / "data", labelled=3, unlabelled=2, size=(16, 16, 16))
    first, second = in_processes(processes.train_folder, tmp_path / "run", data, tmp_path)
    assert first[:2] == second[:2]
    assert all(torch.equal(value, second[2][key]) for key, value in first[2].items())
    assert "split: 2 labelled" in (tmp_path / "0").read_text()
    assert (tmp_path / "1").read_text() == ""
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["0", "1"]
    again = in_processes(processes.train_folder, tmp_path / "run", data, tmp_path)
    assert [type(error) for error in again] == [FileExistsError, PeerError]
    assert all("holds a run already" in str(error) for error in again)


def test_a_batch_that_does_not_divide_into_micro_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="4 labelled and 4 unlabelled volumes; expected multiples of 3"):
        fit(make("supervised"), processes.whole_batch, replace(CONFIG, accumulate=3), out=tmp_path, progress=False)


def test_parts_of_a_batch_are_the_batch():
    batch = processes.whole_batch(0)
    batch = replace(batch, strong=(batch.unlabelled * 2,), valid=torch.rand(4, 8, 8) > 0.5)
    parts = [batch.part(index, 2) for index in range(2)]
    for name in ("labelled", "labels", "unlabelled", "valid"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([part.strong[0] for part in parts]), batch.strong[0])
    assert [part.cases for part in parts] == [
        ("case0", "case1", "case4", "case5"),
        ("case2", "case3", "case6", "case7"),
    ]
    assert len({batch.key, *(part.key for part in parts)}) == 3
    assert batch.part(0, 1) is batch
    supervised = Batch(batch.labelled, batch.labels, batch.unlabelled[:0])
    assert len(supervised.part(1, 2).unlabelled) == 0
    with pytest.raises(ValueError, match="part 2 of 2 asked for"):
        batch.part(2, 2)


def test_one_process_is_a_world_of_its_own():
    world = join()
    assert world == World(rank=0, size=1)
    assert world.main
    assert world.least([1.0, 2.0]) == [1.0, 2.0]
    assert world.gather("x") == ["x"]
    assert world.wrap(net := torch.nn.Linear(1, 1)) is net


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_case_is_in_exactly_one_shard(count):
    cases = [f"case{index}" for index in range(5)]
    shards = [shard(cases, index, count) for index in range(count)]
    assert sorted(case for part in shards for case in part) == cases
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_wrong_shards_are_named():
    with pytest.raises(ValueError, match="shard 2 of 2 asked for"):
        shard([], 2, 2)
    for text in ("", "1", "a/2", "-1/2", "1/", "2/2"):
        with pytest.raises(ValueError, match="shard"):
            parse_shard(text)
    assert parse_shard("3/4") == (3, 4)
