# SPDX-License-Identifier: Apache-2.0
"""A part of a batch that is made alone is the part of the whole batch, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssmis.data import Augment, BatchMaker, TwoStreamSampler
from ssmis.data.cache import Entry


def maker(augment, *, unlabelled=4, strong_views=2, size=(9, 8, 7), seed=3):
    random = np.random.default_rng(0)
    cache = {}
    for index in range(10):
        image = random.normal(size=(1, *size)).astype(np.float32)
        cache[f"case{index}"] = Entry(image, random.integers(0, 2, size).astype(np.uint8))
    sampler = TwoStreamSampler(
        [f"case{index}" for index in range(4)],
        [f"case{index}" for index in range(4, 10)],
        labelled_per_batch=4,
        unlabelled_per_batch=unlabelled,
        seed=seed,
    )
    views = {"labelled_augment": augment, "unlabelled_augment": augment, "strong_augment": Augment.strong()}
    settings = {"patch": (8, 8, 8), "seed": seed, "strong_views": strong_views, "foreground_prob": 0.5}
    return BatchMaker(cache, sampler, **settings, **views)


ALL = replace(Augment.strong(), affine_probability=0.5)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("augment", [Augment.none(), Augment.weak(), ALL], ids=["none", "weak", "all"])
def test_a_part_made_alone_is_the_part_of_the_whole(augment, count):
    make = maker(augment)
    for step in range(4):
        whole = make(step)
        for index in range(count):
            expected, found = whole.part(index, count), make.part(step, index, count)
            for name in ("labelled", "labels", "unlabelled"):
                assert torch.equal(getattr(found, name), getattr(expected, name)), (step, index, name)
            assert all(torch.equal(a, b) for a, b in zip(found.strong, expected.strong, strict=True))
            assert torch.equal(found.valid, expected.valid)  # the volume is smaller than the patch on one axis
            assert (found.cases, found.key) == (expected.cases, expected.key)


def test_supervised_batches_and_batches_that_do_not_divide():
    make = maker(Augment.weak(), unlabelled=0)
    assert torch.equal(make.part(0, 1, 2).labelled, make(0).part(1, 2).labelled)
    assert len(make.part(0, 1, 2).unlabelled) == 0
    with pytest.raises(ValueError, match="4 labelled and 0 unlabelled volumes; expected multiples of 3"):
        make.part(0, 0, 3)


def test_what_decides_the_batches_differs_with_the_seed():
    assert maker(ALL).decides == maker(ALL).decides
    assert maker(ALL).decides != maker(ALL, seed=4).decides
