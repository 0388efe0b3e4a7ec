# SPDX-License-Identifier: Apache-2.0
"""Unlabelled ground truth cannot reach the weights, because nothing reads it."""

import h5py
import torch
from recipes.small import small_nets

from ssmis.data import Augment, BatchMaker, Cache, TwoStreamSampler, la_split, write_phantoms
from ssmis.engine import FitConfig, fit
from ssmis.recipes import DualUncertainty


def train(root, out):
    split = la_split(root, labelled=2)
    cache = Cache.build([*split.labelled, *split.unlabelled], out / "cache")
    sampler = TwoStreamSampler([c.id for c in split.labelled], [c.id for c in split.unlabelled])
    batches = BatchMaker(cache, sampler, patch=(16, 16, 16), labelled_augment=Augment.strong())
    config = FitConfig(steps=4, precision="fp32")
    return fit(DualUncertainty(small_nets(dims=3)), batches, config, out=out, progress=False).recipe.state_dict()


def test_shuffling_the_unlabelled_ground_truth_leaves_the_weights_bit_identical(tmp_path):
    root = write_phantoms(tmp_path / "data", labelled=2, unlabelled=4, size=(20, 20, 18))
    before = train(root, tmp_path / "before")
    for case in la_split(root, labelled=2).unlabelled:
        with h5py.File(case.image, "r+") as file:
            shuffled = torch.from_numpy(file["label"][()]).flatten()
            file["label"][...] = shuffled[torch.randperm(len(shuffled))].view(20, 20, 18).numpy()
    after = train(root, tmp_path / "after")
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_changing_labelled_ground_truth_does_reach_them(tmp_path):
    root = write_phantoms(tmp_path / "data", labelled=2, unlabelled=4, size=(20, 20, 18))
    before = train(root, tmp_path / "before")
    for case in la_split(root, labelled=2).labelled:
        with h5py.File(case.image, "r+") as file:
            file["label"][...] = 1 - file["label"][()]
    after = train(root, tmp_path / "after")
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
