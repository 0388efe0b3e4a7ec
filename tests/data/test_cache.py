# SPDX-License-Identifier: Apache-2.0
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data import (
    Cache,
    DataError,
    area_downsample,
    la_cases,
    la_split,
    load_la,
    majority_downsample,
    scaled_size,
    upsample_probs,
    write_la,
)


@pytest.fixture
def cases(tmp_path):
    random = np.random.default_rng(0)
    for name in "ab":
        image = random.normal(size=(7, 6, 4))
        write_la(tmp_path / "la", name, image, image > 0.3)
    return [*la_cases(tmp_path / "la", ["a"]), *la_cases(tmp_path / "la", ["b"], labelled=False)]


class Counting:
    def __init__(self):
        self.calls = []

    def __call__(self, case, *, with_label=True):
        self.calls.append((case.id, with_label))
        return load_la(case, with_label=with_label)


def test_cached_values_are_the_decoded_ones(cases, tmp_path):
    cache = Cache.build(cases, tmp_path / "cache")
    assert list(cache) == ["a", "b"]
    assert len(cache) == 2
    want = load_la(cases[0])
    np.testing.assert_array_equal(cache["a"].image, want.image)
    np.testing.assert_array_equal(cache["a"].label, want.label)
    assert isinstance(cache["a"].image, np.memmap)
    assert not cache["a"].image.flags.writeable
    assert cache.spacings_mm["a"] == (0.625, 0.625, 0.625)
    assert cache.cases["b"] == cases[1]


def test_labels_of_unlabelled_cases_are_neither_read_nor_stored(cases, tmp_path):
    load = Counting()
    cache = Cache.build(cases, tmp_path / "cache", load=load)
    assert cache["b"].label is None
    assert load.calls == [("a", True), ("b", False)]
    assert [path.name[0] for path in (tmp_path / "cache").glob("*.label.npy")] == ["a"]


def test_built_once(cases, tmp_path):
    first, second = Counting(), Counting()
    Cache.build(cases, tmp_path / "cache", load=first)
    cache = Cache.build(cases, tmp_path / "cache", load=second)
    assert len(first.calls) == 2
    assert second.calls == []
    np.testing.assert_array_equal(cache["a"].image, load_la(cases[0]).image)
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_changed_file_is_decoded_again(cases, tmp_path):
    Cache.build(cases, tmp_path / "cache")
    image = np.full((7, 6, 4), 2.0)
    path = write_la(tmp_path / "la", "a", image, image > 3)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    load = Counting()
    cache = Cache.build(cases, tmp_path / "cache", load=load)
    assert load.calls == [("a", True)]
    assert (cache["a"].image == 2).all()


def test_scale_role_and_spacing_are_part_of_the_key(cases, tmp_path):
    load = Counting()
    for scale in (1.0, 0.5):
        Cache.build(cases, tmp_path / "cache", scale=scale, load=load)
    Cache.build([replace(cases[0], label=None)], tmp_path / "cache", load=load)
    Cache.build([replace(cases[0], spacing_mm=(1.0, 1.0, 1.0))], tmp_path / "cache", load=load)
    assert load.calls == [("a", True), ("b", False), ("a", True), ("b", False), ("a", False), ("a", True)]


@pytest.mark.parametrize("damage", ["truncate", "remove", "half"])
def test_damaged_cache_is_made_anew(cases, tmp_path, damage):
    Cache.build(cases, tmp_path / "cache")
    pattern = "a-*.json" if damage == "half" else "a-*.image.npy"
    (path,) = (tmp_path / "cache").glob(pattern)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    load = Counting()
    cache = Cache.build(cases, tmp_path / "cache", load=load)
    assert load.calls == [("a", True)]
    np.testing.assert_array_equal(cache["a"].image, load_la(cases[0]).image)


def test_failed_decode_leaves_nothing_behind(cases, tmp_path):
    cases[0].image.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        Cache.build(cases, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_cases_of_one_id(cases, tmp_path):
    with pytest.raises(DataError, match="case 'a' is already cached from"):
        Cache.build([cases[0], cases[0]], tmp_path / "cache")


def test_ids_that_are_no_file_names(cases, tmp_path):
    odd = [replace(case, id=name) for case, name in zip(cases, ("x/y", "x_y"))]
    cache = Cache.build(odd, tmp_path / "cache")
    np.testing.assert_array_equal(cache["x/y"].image, load_la(cases[0]).image)
    np.testing.assert_array_equal(cache["x_y"].image, load_la(cases[1]).image)


def test_unknown_id(cases, tmp_path):
    with pytest.raises(KeyError, match="case 'c' is not in the cache of 2 cases"):
        Cache.build(cases, tmp_path / "cache")["c"]


def test_progress_sees_every_case(cases, tmp_path):
    seen = []
    Cache.build(cases, tmp_path / "cache", progress=lambda some: (seen.append(case.id) or case for case in some))
    assert seen == ["a", "b"]


def test_half_scale(cases, tmp_path):
    cache = Cache.build(cases, tmp_path / "cache", scale=0.5)
    full = load_la(cases[0])
    assert cache["a"].image.shape == (1, 4, 3, 2)
    assert cache["a"].label.shape == (4, 3, 2)
    assert cache["a"].label.dtype == np.uint8
    assert cache.spacings_mm["a"] == pytest.approx((0.625 * 7 / 4, 1.25, 1.25))
    # Along the axis of length 7 the first coarse voxel covers fine voxels 0 and 1, along the others 0 and 1 too.
    assert cache["a"].image[0, 0, 0, 0] == pytest.approx(full.image[0, :2, :2, :2].mean(), abs=1e-6)
    assert cache["a"].label[0, 0, 0] == (full.label[:2, :2, :2].mean() > 0.5)


@given(st.integers(0, 2**30), st.sampled_from([(6, 4), (4, 8, 6)]))
def test_area_average_by_hand(seed, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    half = [length // 2 for length in size]
    got = area_downsample(images, half)
    for index in np.ndindex(*half):
        block = images[(slice(None), slice(None), *(slice(2 * i, 2 * i + 2) for i in index))]
        torch.testing.assert_close(got[(slice(None), slice(None), *index)], block.flatten(2).mean(2))


@given(st.integers(0, 2**30), st.integers(2, 5))
def test_majority_by_hand(seed, classes):
    labels = torch.randint(-1, classes, (2, 6, 4), generator=torch.Generator().manual_seed(seed))
    got = majority_downsample(labels, (2, 2))
    for b, i, j in np.ndindex(2, 2, 2):
        values, counts = labels[b, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2].unique(return_counts=True)
        assert got[b, i, j] == values[counts == counts.max()].min()
    assert got.dtype == labels.dtype


@given(st.integers(0, 2**30), st.sampled_from([(3,), (3, 4), (2, 3, 4)]))
def test_upsampled_probs_still_sum_to_one(seed, size):
    probs = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed)).softmax(1)
    finer = upsample_probs(probs, [2 * length + 1 for length in size])
    assert finer.shape[2:] == tuple(2 * length + 1 for length in size)
    torch.testing.assert_close(finer.sum(1), torch.ones_like(finer[:, 0]))


def test_scaled_size_keeps_a_voxel():
    assert scaled_size((9, 1, 5), 0.1) == (1, 1, 1)


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"scale is 2\.0; expected a number in \(0, 1\]"):
        scaled_size((4, 4), 2.0)
    with pytest.raises(ValueError, match=r"size is \(5, 2\); expected 2 lengths from 1 up to \(4, 4\)"):
        area_downsample(torch.zeros(1, 1, 4, 4), (5, 2))
    with pytest.raises(ValueError, match="size is"):
        majority_downsample(torch.zeros(1, 4, 4, dtype=torch.long), (2,))
    with pytest.raises(ValueError, match="expected at least one voxel"):
        majority_downsample(torch.zeros(0, 4, 4, dtype=torch.long), (2, 2))


@pytest.mark.data
def test_real_cases(data_root, tmp_path):
    split = la_split(data_root, labelled=1, val="dev_val.list")
    chosen = [split.labelled[0], split.unlabelled[0]]
    cache = Cache.build(chosen, tmp_path, scale=0.5)
    full = load_la(chosen[0])
    entry = cache[chosen[0].id]
    assert entry.image.shape[1:] == scaled_size(full.image.shape[1:], 0.5)
    assert entry.image.mean() == pytest.approx(full.image.mean(), rel=0.02)
    assert entry.label.mean() == pytest.approx(full.label.mean(), rel=0.1)
    assert cache[chosen[1].id].label is None
