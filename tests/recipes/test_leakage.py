# SPDX-License-Identifier: Apache-2.0
"""Unlabelled ground truth cannot reach the weights, because nothing reads it; held-out cases cannot be opened."""

import multiprocessing
import os
import shutil
import threading
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from recipes.small import small_batch, small_nets

from ssmis.data import (
    Augment,
    BatchMaker,
    Cache,
    Dataset,
    HeldOut,
    HeldOutError,
    TwoStreamSampler,
    la_cases,
    la_split,
    load_la,
    survey,
    verify,
    write_phantoms,
)
from ssmis.data.scans import read_labels, read_scan
from ssmis.engine import FitConfig, evaluate, fit, seconds_per_step
from ssmis.recipes import Supervised
from ssmis.registry import RECIPES


def train(root, out, method="dual_uncertainty"):
    split = la_split(root, labelled=2)
    cache = Cache.build([*split.labelled, *split.unlabelled], out / "cache")
    sampler = TwoStreamSampler([c.id for c in split.labelled], [c.id for c in split.unlabelled])
    batches = BatchMaker(cache, sampler, patch=(16, 16, 16), labelled_augment=Augment.strong())
    config = FitConfig(steps=4, precision="fp32")
    recipe = RECIPES.create(method, small_nets(dims=3), **RECIPES[method].example.create)
    return fit(recipe, batches, config, out=out, progress=False).recipe.state_dict()


@pytest.mark.parametrize("method", ["dual_uncertainty", "uc_seg"])
def test_shuffling_the_unlabelled_ground_truth_leaves_the_weights_bit_identical(tmp_path, method):
    root = write_phantoms(tmp_path / "data", labelled=2, unlabelled=4, size=(20, 20, 18))
    before = train(root, tmp_path / "before", method)
    for case in la_split(root, labelled=2).unlabelled:
        with h5py.File(case.image, "r+") as file:
            shuffled = torch.from_numpy(file["label"][()]).flatten()
            file["label"][...] = shuffled[torch.randperm(len(shuffled))].view(20, 20, 18).numpy()
    after = train(root, tmp_path / "after", method)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_changing_labelled_ground_truth_does_reach_them(tmp_path):
    root = write_phantoms(tmp_path / "data", labelled=2, unlabelled=4, size=(20, 20, 18))
    before = train(root, tmp_path / "before")
    for case in la_split(root, labelled=2).labelled:
        with h5py.File(case.image, "r+") as file:
            file["label"][...] = 1 - file["label"][()]
    after = train(root, tmp_path / "after")
    assert any(not torch.equal(value, after[key]) for key, value in before.items())


@pytest.fixture(scope="module")
def with_test(tmp_path_factory):
    root = write_phantoms(tmp_path_factory.mktemp("data"), labelled=2, unlabelled=1, test=2, size=(20, 20, 18))
    return root, la_split(root, labelled=2, test="test.list").test


def fit_small(out, batches=small_batch, *, held_out=(), callbacks=(), recipe=None):
    config = FitConfig(steps=2, precision="fp32", callback_every=1)
    recipe = recipe or Supervised(small_nets(names=("vnet",)))
    return fit(recipe, batches, config, out=out, held_out=held_out, callbacks=callbacks, progress=False)


def assert_open(case):
    assert load_la(case).label is not None


def test_a_recipe_cannot_open_a_test_case(with_test, tmp_path):
    class Cheat(Supervised):
        def forward(self, batch, progress):
            load_la(with_test[1][0])
            return super().forward(batch, progress)

    with pytest.raises(HeldOutError, match=r"mri_norm2\.h5: case 'phantom_0003' is held out of this training"):
        fit_small(tmp_path, held_out=with_test[1], recipe=Cheat(small_nets(names=("vnet",))))
    assert_open(with_test[1][0])  # afterwards it is open again
    fit_small(tmp_path / "without", recipe=Cheat(small_nets(names=("vnet",))))  # so the guard is what stops it


def test_every_reader_and_every_link_is_closed(with_test, tmp_path):
    case = with_test[1][0]
    scan = tmp_path / "scan.nii.gz"
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), scan)
    other = replace(case, id="other", image=scan, label=scan, channels=(tmp_path / "second.nii.gz",))
    shutil.copyfile(scan, other.channels[0])
    hard, soft = tmp_path / "hard.h5", tmp_path / "soft.h5"
    os.link(case.image, hard)
    soft.symlink_to(case.image)
    grid = read_scan(scan).grid
    opens = [
        lambda: load_la(replace(case, id="renamed", image=hard, label=hard)),
        lambda: load_la(replace(case, id="renamed", image=soft, label=soft)),
        lambda: load_la(replace(case, id="renamed", channels=(scan,))),
        lambda: read_scan(scan),
        lambda: read_scan(other.channels[0]),
        lambda: read_labels(scan, grid),
    ]
    with HeldOut([case, other]):
        for call in opens:
            with pytest.raises(HeldOutError, match="is held out of this training"):
                call()
    read_labels(scan, grid)


def test_what_goes_on_after_damaged_files_stops_at_a_held_out_one(with_test):
    root, held = with_test
    looks = [
        lambda: verify(root, "phantom", progress=False),
        lambda: survey(Dataset("HDF5", root, tuple(held))),
    ]
    for look in looks:
        with HeldOut(held), pytest.raises(HeldOutError, match="case 'phantom_0003' is held out of this training"):
            look()
        look()


def test_measuring_speeds_is_training_too(with_test):
    class Cheat(Supervised):
        def forward(self, batch, progress):
            load_la(with_test[1][0])
            return super().forward(batch, progress)

    config = FitConfig(steps=1, precision="fp32")
    rows = {"cheat": lambda: (Cheat(small_nets(names=("vnet",))), small_batch)}
    with pytest.raises(HeldOutError):
        seconds_per_step(rows, config, steps=2, rounds=1, held_out=with_test[1])


def test_the_thread_that_makes_batches_cannot_either(with_test, tmp_path):
    cache = Cache.build(with_test[1], tmp_path / "cache")
    threads = set()

    def batches(step):
        threads.add(threading.current_thread())
        _ = cache[with_test[1][1].id].image
        return small_batch(step)

    with pytest.raises(HeldOutError, match="phantom_0004"):
        fit_small(tmp_path / "run", batches, held_out=with_test[1])
    assert threading.main_thread() not in threads
    with HeldOut(with_test[1]), pytest.raises(HeldOutError):
        Cache.build(with_test[1], tmp_path / "cache")  # what is decoded already is no way around it


def test_a_callback_cannot_score_a_test_case(with_test, tmp_path):
    def score(step, recipe):
        return {"dice": evaluate(recipe, with_test[1])[0].scores[0].dice}

    with pytest.raises(HeldOutError):
        fit_small(tmp_path, held_out=with_test[1], callbacks=[score])


def test_a_batch_cannot_hold_a_test_case(with_test, tmp_path):
    def batches(step):
        return replace(small_batch(step), cases=("case0", "case1", "case2", with_test[1][0].id))

    with pytest.raises(HeldOutError, match="case 'phantom_0003' is held out of this training, and a batch holds it"):
        fit_small(tmp_path, batches, held_out=with_test[1])


def test_the_file_is_closed_whatever_the_case_is_called(with_test, tmp_path):
    root, held = with_test
    (same,) = la_cases(root, [held[0].id])
    renamed = replace(same, id="other", image=same.image.parent / ".." / same.image.parent.name / same.image.name)
    link = tmp_path / "link.h5"
    link.symlink_to(same.image)
    with HeldOut(held):
        for case in (same, renamed, replace(same, label=None), replace(same, id="link", image=link, label=None)):
            with pytest.raises(HeldOutError, match="is held out"):
                load_la(case)
        assert_open(la_split(root, labelled=2).labelled[0])


class Opened(torch.utils.data.Dataset):
    """What happens when a case is opened."""

    def __init__(self, cases):
        self.cases = cases

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        try:
            return f"open {load_la(self.cases[index]).spacing_mm}"
        except HeldOutError:
            return "closed"


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked here")
def test_a_worker_that_is_forked_inside_is_closed_too(with_test):
    workers = torch.utils.data.DataLoader(Opened(with_test[1]), num_workers=1, multiprocessing_context="fork")
    with HeldOut(with_test[1]):
        assert [told for (told,) in workers] == ["closed"] * 2
    assert all(told.startswith("open") for (told,) in workers)


def test_guards_nest(with_test):
    first, second = with_test[1]
    with HeldOut([first]):
        with HeldOut([second]), pytest.raises(HeldOutError):
            load_la(second)
        assert_open(second)
        with pytest.raises(HeldOutError):
            load_la(first)
    assert_open(first)
