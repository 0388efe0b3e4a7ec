# SPDX-License-Identifier: Apache-2.0
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data import (
    Augment,
    Batch,
    BatchMaker,
    Cache,
    CropPicker,
    Entry,
    Intensity,
    Prefetch,
    TwoStreamSampler,
    crop_volume,
    la_split,
    write_phantoms,
)
from ssmis.data.mixing import random_boxes
from ssmis.data.sampling import batch_key
from ssmis.engine.runtime import seed_everything

SIZE = (10, 9, 8)


def entries(seed=0, labelled=3, unlabelled=4, size=SIZE):
    random = np.random.default_rng(seed)
    made = {}
    for index in range(labelled + unlabelled):
        name = f"l{index}" if index < labelled else f"u{index}"
        label = random.integers(0, 2, size).astype(np.uint8)
        made[name] = Entry(random.normal(size=(1, *size)).astype(np.float32), label)
    return made


def maker(cache=None, *, unlabelled_per_batch=2, **settings):
    cache = entries() if cache is None else cache
    sampler = TwoStreamSampler(
        [name for name in cache if name[0] == "l"],
        [name for name in cache if name[0] == "u"],
        unlabelled_per_batch=unlabelled_per_batch,
        seed=settings.get("seed", 0),
    )
    return BatchMaker(cache, sampler, **{"patch": (6, 6, 4), **settings})


def same(first: Batch, second: Batch):
    tensors = [[b.labelled, b.labels, b.unlabelled, *b.strong, b.valid] for b in (first, second)]
    equal = all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*tensors))
    return equal and (first.cases, first.key) == (second.cases, second.key)


def test_shapes_and_types():
    batch = maker(strong_views=2)(0)
    assert batch.labelled.shape == batch.unlabelled.shape == (2, 1, 6, 6, 4)
    assert (batch.labels.shape, batch.labels.dtype) == ((2, 6, 6, 4), torch.int64)
    assert [view.shape for view in batch.strong] == [(2, 1, 6, 6, 4)] * 2
    assert batch.valid is None
    assert [case[0] for case in batch.cases] == ["l", "l", "u", "u"]


@pytest.mark.parametrize("settings", [{}, {"strong_views": 1, "labelled_augment": Augment.strong()}])
def test_resume_gives_the_same_batches(settings):
    whole = [maker(**settings)(step) for step in range(6)]
    resumed = maker(**settings)
    assert all(same(resumed(step), whole[step]) for step in (4, 5, 3))
    assert not same(whole[0], maker(seed=1, **settings)(0))
    assert len({batch.key for batch in whole}) == 6


@pytest.mark.parametrize("change", ["delete", "shuffle", "poison"])
def test_labels_of_unlabelled_cases_cannot_leak(change):
    class Poison:
        def __getattr__(self, name):
            raise AssertionError("the label of an unlabelled case was looked at")

    cache = entries()
    label = {"delete": lambda e: None, "shuffle": lambda e: e.label[::-1], "poison": lambda e: Poison()}[change]
    changed = {name: e if name[0] == "l" else Entry(e.image, label(e)) for name, e in cache.items()}
    settings = {"strong_views": 1, "foreground_prob": 0.5, "unlabelled_augment": Augment.strong()}
    for step in range(4):
        assert same(maker(cache, **settings)(step), maker(changed, **settings)(step))


def test_the_forward_pass_does_not_draw_what_the_batch_was_made_with():
    """Else the place of a mixed box would follow from the flips, and parts would share a stream with crops."""
    flips, starts = [], []
    for step in range(300):
        batch = Batch(*[torch.zeros(2, 1, 12, 12)] * 3, key=batch_key(0, step))
        keys = {batch.key, *(batch_key(batch.key, number) for number in range(8))}
        assert not keys & {batch.forward_key, *(batch.part(index, 2).forward_key for index in range(2))}
        flips.append(bool(torch.rand(2, 2, generator=torch.Generator().manual_seed(batch.key))[0, 0] < 0.5))
        seed_everything(batch.forward_key)
        starts.append(int(random_boxes(2, (12, 12), side=0.5, device="cpu")[0].any(1).nonzero()[0]))
    assert abs(np.corrcoef(flips, starts)[0, 1]) < 0.2


def test_supervised_only():
    batch = maker(entries(unlabelled=0), unlabelled_per_batch=0, strong_views=1)(0)
    assert batch.unlabelled.shape == (0, 1, 6, 6, 4)
    assert batch.images.shape == (2, 1, 6, 6, 4)
    assert [view.shape[0] for view in batch.strong] == [0]
    assert batch.valid is None


@given(st.integers(0, 2**30))
def test_image_and_label_stay_together(seed):
    cache = {name: Entry(e.label[None].astype(np.float32), e.label) for name, e in entries(seed).items()}
    augment = Augment(intensity=Intensity(probability=0.0))
    batch = maker(cache, labelled_augment=augment, patch=(6, 6, 12), seed=seed)(1)
    known = batch.labels >= 0
    assert torch.equal(batch.labels[known], batch.labelled[:, 0][known].long())
    assert (~known).sum() == 2 * 6 * 6 * 4


@given(st.integers(0, 2**30))
def test_weak_and_strong_views_share_their_geometry(seed):
    quiet = Intensity(probability=0.0)
    augment = Augment(affine_probability=0.5, intensity=quiet)
    batch = maker(
        entries(seed), unlabelled_augment=augment, strong_augment=Augment(intensity=quiet), strong_views=2, seed=seed
    )(0)
    assert all(torch.equal(view, batch.unlabelled) for view in batch.strong)
    loud = maker(entries(seed), unlabelled_augment=augment, strong_views=2, seed=seed)(0)
    assert torch.equal(loud.unlabelled, batch.unlabelled)
    assert not torch.equal(loud.strong[0], loud.strong[1])


def test_strong_view_does_not_inherit_the_weak_intensity():
    shifted = Augment(intensity=Intensity(probability=1.0))
    quiet = Augment(intensity=Intensity(probability=0.0))
    views = [
        maker(unlabelled_augment=weak, strong_augment=quiet, strong_views=1)(0).strong[0] for weak in (shifted, quiet)
    ]
    assert torch.equal(*views)


def test_padding_of_small_volumes():
    plain = Augment.none()
    batch = maker(patch=(12, 6, 8), labelled_augment=plain, unlabelled_augment=plain)(0)
    assert batch.valid[:, 1:11].all()
    assert not batch.valid[:, [0, 11]].any()
    assert (batch.labels[:, [0, 11]] == -1).all()
    assert (batch.labels[:, 1:11] >= 0).all()
    for image in batch.images:
        assert (image[0, [0, 11]] == 0).all()


@pytest.mark.parametrize("start", [(0, 0, 0), (-2, 3, 1), (5, 5, -1), (8, -3, 6)])
def test_crop_against_padding_first(start):
    entry, patch, reach = entries()["l0"], (5, 4, 4), 6
    crop = crop_volume(entry.image, entry.label, start=start, patch=patch)
    index = tuple(slice(first + reach, first + reach + length) for first, length in zip(start, patch))
    image = np.pad(entry.image[0], reach)[index]
    label = np.pad(entry.label.astype(int), reach, constant_values=-1)[index]
    np.testing.assert_array_equal(crop.image[0].numpy(), image)
    np.testing.assert_array_equal(crop.label.numpy(), label)
    np.testing.assert_array_equal(crop.valid.numpy(), label >= 0)
    assert (crop_volume(entry.image, None, start=start, patch=patch).label == -1).all()


def test_random_crops_reach_every_place():
    ramp = np.arange(7, dtype=np.float32)[None, :, None] * np.ones((1, 7, 3), np.float32)
    picker = CropPicker((4, 3))
    assert {float(picker("a", ramp, None, key).image[0, 0, 0]) for key in range(60)} == {0, 1, 2, 3}


def test_foreground_crops_hold_foreground():
    label = np.zeros((20, 20), np.uint8)
    label[1, 18] = 1
    image = np.zeros((1, 20, 20), np.float32)
    around = [CropPicker((4, 4), foreground_prob=1.0)("a", image, label, key) for key in range(20)]
    assert all(crop.label.sum() == 1 and crop.valid.all() for crop in around)
    anywhere = [CropPicker((4, 4))("a", image, label, key).label.sum().item() for key in range(40)]
    assert sum(anywhere) < 20
    empty = CropPicker((4, 4), foreground_prob=1.0)("b", image, np.zeros_like(label), 0)
    assert empty.label.sum() == 0


def test_errors():
    with pytest.raises(ValueError, match=r"patch is \(4, 4\); expected 3 lengths, as case 'l0' has axes"):
        maker(patch=(4, 4))
    with pytest.raises(ValueError, match="case 'l0' is in labelled_ids of the sampler but has no label in the cache"):
        maker({name: Entry(e.image, None) for name, e in entries().items()})
    with pytest.raises(ValueError, match="strong_views is -1"):
        maker(strong_views=-1)
    with pytest.raises(ValueError, match="foreground_prob is 2"):
        maker(foreground_prob=2)
    with pytest.raises(ValueError, match=r"patch is \(0, 4, 4\); expected positive lengths"):
        maker(patch=(0, 4, 4))


def test_plain_callable_as_transform():
    seen = []

    def invert(case):
        seen.append({name: getattr(value, "shape", value) for name, value in case.items()})
        return {**case, "image": -case["image"], "label": case["label"].float()}

    settings = {"labelled_augment": Augment.none(), "unlabelled_augment": Augment.none()}
    plain, inverted = maker(**settings)(0), maker(transform=invert, **settings)(0)
    torch.testing.assert_close(inverted.images, -plain.images)
    assert torch.equal(inverted.labels, plain.labels)
    assert inverted.labels.dtype == torch.int64
    assert [case["label"] for case in seen] == [(1, 6, 6, 4)] * 4
    assert len({case["key"] for case in seen}) == 4


@pytest.mark.parametrize("name", ["image", "label", "valid"])
def test_transform_that_changes_the_shape(name):
    with pytest.raises(ValueError, match=rf"transform returned '{name}' of shape \(1, 5, 6, 4\)"):
        maker(transform=lambda case: {**case, name: case[name][:, 1:]})(0)


def test_monai_dictionary_transform_drops_in():
    transforms = pytest.importorskip("monai.transforms")
    keys = ["image", "label", "valid"]
    flip_and_turn = transforms.Compose(
        [
            transforms.RandFlipd(keys, prob=0.5, spatial_axis=0),
            transforms.RandRotate90d(keys, prob=0.5, spatial_axes=(0, 1)),
            transforms.RandGaussianNoised(["image"], prob=1.0, std=0.1),
        ]
    )
    cache = {name: Entry(e.label[None].astype(np.float32), e.label) for name, e in entries().items()}
    settings = {"labelled_augment": Augment.none(), "unlabelled_augment": Augment.none()}
    make = maker(cache, transform=flip_and_turn, **settings)
    batches = [make(step) for step in range(3)]
    assert same(make(1), batches[1])
    assert not same(maker(cache, **settings)(1), batches[1])
    for batch in batches:
        assert type(batch.labelled) is torch.Tensor
        assert (batch.labelled[:, 0] - batch.labels).abs().mean() < 0.2


def test_prefetch_yields_what_the_maker_makes():
    make = maker(strong_views=1)
    with Prefetch(make, 2, 6) as ahead:
        got = list(ahead)
        assert next(ahead, None) is None
    assert len(got) == 4
    assert all(same(batch, make(step)) for step, batch in enumerate(got, start=2))


def test_prefetch_raises_in_the_consumer_after_the_good_batches():
    def make(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    ahead = Prefetch(make, 0, 9)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "ssmis-prefetch"]


@pytest.mark.parametrize("how", ["break", "interrupt", "drop", "close"])
def test_prefetch_ends_its_thread(how):
    made = []

    def make(step):
        made.append(step)
        return step

    if how == "break":
        with Prefetch(make, 0, 10**9) as ahead:
            assert next(ahead) == 0
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt), Prefetch(make, 0, 10**9):
            raise KeyboardInterrupt
    elif how == "drop":
        ahead = Prefetch(make, 0, 10**9)
        del ahead
    else:
        ahead = Prefetch(make, 0, 10**9)
        ahead.close()
        ahead.close()
        assert list(ahead) == []
    deadline = time.monotonic() + 5
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() == []
    assert len(made) <= 5


def test_from_phantoms_to_batches(tmp_path):
    write_phantoms(tmp_path / "data", labelled=2, unlabelled=2, test=1, size=(20, 20, 16))
    split = la_split(tmp_path / "data", labelled=2, test="test.list")
    cache = Cache.build([*split.labelled, *split.unlabelled], tmp_path / "cache")
    sampler = TwoStreamSampler([c.id for c in split.labelled], [c.id for c in split.unlabelled])
    batch = BatchMaker(cache, sampler, patch=(16, 16, 16), foreground_prob=1.0)(0)
    assert (batch.labels == 1).flatten(1).any(1).all()
    assert sorted(batch.cases) == sorted(case.id for case in (*split.labelled, *split.unlabelled))


@pytest.mark.data
def test_real_batches(data_root, tmp_path):
    split = la_split(data_root, labelled=2, val="dev_val.list")
    cases = [*split.labelled, *split.unlabelled[:2]]
    cache = Cache.build(cases, tmp_path, scale=0.5)
    sampler = TwoStreamSampler([c.id for c in cases[:2]], [c.id for c in cases[2:]])
    make = BatchMaker(cache, sampler, patch=(64, 64, 48), strong_views=1, foreground_prob=1.0)
    batch = make(0)
    assert batch.images.shape == (4, 1, 64, 64, 48)
    assert batch.images.isfinite().all()
    assert 0.01 < (batch.labels == 1).float().mean() < 0.5
    assert same(batch, make(0))
    assert batch.valid is not None  # half of 88 slices is less than 48
    assert (batch.labels == -1).sum() > 0
