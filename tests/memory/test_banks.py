# SPDX-License-Identifier: Apache-2.0
"""Banks: what each remembers, and what all of them promise."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ssmis.memory import BatchBank, EMABank, FIFOBank, SharedPointerFIFOBank
from ssmis.registry import BANKS


def candidates(seed, count, classes, channels=4):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, channels, generator=generator)
    return vectors, torch.randint(-1, classes, (count,), generator=generator)


def read(bank):
    """Return what a bank holds, given no candidates."""
    return bank(torch.zeros(0, bank.channels), torch.zeros(0, dtype=torch.int64))


each = pytest.mark.parametrize("name", list(BANKS))


@each
def test_keys_are_normalised_detached_and_reading_changes_nothing(name):
    bank = BANKS.create(name, classes=3, channels=4)
    vectors, labels = candidates(0, 20, 3)
    bank.write(vectors.requires_grad_(), labels)
    before = copy.deepcopy(bank.state_dict())
    keys, key_labels = bank(vectors, labels)
    assert keys.shape == (len(key_labels), 4)
    assert not keys.requires_grad
    torch.testing.assert_close(keys[key_labels >= 0].norm(dim=1), torch.ones(int((key_labels >= 0).sum())))
    assert set(key_labels.tolist()) - {-1} == {0, 1, 2}
    assert all(torch.equal(value, before[key]) for key, value in bank.state_dict().items())


@each
def test_a_fresh_bank_and_an_empty_class_offer_nothing(name):
    bank = BANKS.create(name, classes=3, channels=4)
    assert read(bank)[1].eq(-1).all()
    vectors, labels = candidates(0, 20, 2)
    bank.write(vectors, labels.masked_fill(labels == 1, -1))
    assert set(bank(vectors, labels.masked_fill(labels == 1, -1))[1].tolist()) <= {-1, 0}


@each
def test_skipped_candidates_leave_no_trace(name):
    bank, twin = (BANKS.create(name, classes=2, channels=4) for _ in range(2))
    vectors, labels = candidates(1, 30, 2)
    spoilt = vectors.masked_fill((labels < 0)[:, None], float("nan"))
    bank.write(spoilt, labels)
    twin.write(vectors[labels >= 0], labels[labels >= 0])
    for ours, theirs in zip(bank(spoilt, labels), twin(vectors, labels)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@each
def test_the_state_dict_is_the_whole_bank(name):
    bank, twin = (BANKS.create(name, classes=2, channels=4) for _ in range(2))
    for seed in range(3):
        bank.write(*candidates(seed, 9, 2))
    twin.load_state_dict(bank.state_dict())
    for one in (bank, twin):
        one.write(*candidates(7, 9, 2))
    for ours, theirs in zip(bank(*candidates(8, 9, 2)), twin(*candidates(8, 9, 2))):
        assert torch.equal(ours, theirs)


@each
def test_wrong_candidates_and_sizes_are_named(name):
    bank = BANKS.create(name, classes=2, channels=4)
    for call in (bank, bank.write):
        with pytest.raises(ValueError, match=r"vectors is .* bank of 4 channels"):
            call(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="labels is"):
            call(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(ValueError, match="labels is"):
            call(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="classes is 0"):
        BANKS.create(name, classes=0, channels=4)
    with pytest.raises(ValueError, match="channels is 0"):
        BANKS.create(name, classes=2, channels=0)


@each
def test_autocast_does_not_round_the_keys(name):
    bank, twin = (BANKS.create(name, classes=2, channels=4) for _ in range(2))
    twin.write(*candidates(0, 9, 2))
    expected = twin(*candidates(0, 9, 2))[0]
    with torch.autocast("cpu", torch.bfloat16):
        bank.write(*candidates(0, 9, 2))
        assert torch.equal(bank(*candidates(0, 9, 2))[0], expected)


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_batch_keys_are_class_means_of_the_candidates(seed, classes):
    vectors, labels = candidates(seed, 12, classes)
    keys, key_labels = BatchBank(classes, 4)(vectors, labels)
    for k in range(classes):
        own = F.normalize(vectors[labels == k], dim=1)
        assert key_labels[k] == (k if len(own) else -1)
        if len(own):
            torch.testing.assert_close(keys[k], F.normalize(own.mean(0), dim=0), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_ema_moves_by_the_stated_share(seed, decay):
    bank, expected = EMABank(3, 4, decay=decay), {}
    for step in range(4):
        vectors, labels = candidates(seed + step, 5, 3)
        bank.write(vectors, labels)
        for k in set(labels.tolist()) - {-1}:
            mean = F.normalize(vectors[labels == k], dim=1).mean(0)
            expected[k] = decay * expected[k] + (1 - decay) * mean if k in expected else mean
    keys, key_labels = read(bank)
    for k in range(3):
        assert key_labels[k] == (k if k in expected else -1)
        if k in expected:
            torch.testing.assert_close(keys[k], F.normalize(expected[k], dim=0), atol=1e-4, rtol=1e-4)


@given(
    st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 6), st.lists(st.integers(0, 20), min_size=1, max_size=5)
)
def test_fifo_holds_the_last_vectors_of_each_class(seed, classes, slots, counts):
    bank, history = FIFOBank(classes, 4, slots=slots), {k: [] for k in range(classes)}
    for step, count in enumerate(counts):
        vectors, labels = candidates(seed + step, count, classes)
        bank.write(vectors, labels)
        for vector, label in zip(F.normalize(vectors, dim=1), labels.tolist()):
            if label >= 0:
                history[label].append(vector)
    keys, key_labels = (part.view(classes, slots, *part.shape[1:]) for part in read(bank))
    for k in range(classes):
        ring = [None] * slots
        for index, vector in enumerate(history[k]):
            ring[index % slots] = vector
        assert key_labels[k].tolist() == [-1 if vector is None else k for vector in ring]
        for slot, vector in enumerate(ring):
            if vector is not None:
                assert torch.equal(keys[k, slot], vector)


def test_after_as_many_writes_as_slots_every_slot_holds_its_own_vector():
    bank = FIFOBank(3, 4, slots=8)
    for step in range(8):
        vectors, _ = candidates(step, 3, 1)
        bank.write(vectors, torch.arange(3))
    keys, key_labels = read(bank)
    assert key_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(keys.unique(dim=0)) == 24


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4))
def test_after_k_writes_of_distinct_vectors_a_class_every_slot_of_every_class_holds_one(seed, classes, times):
    """One pointer a class fills all of its ring; one for all classes fills what it happens to meet."""
    slots = classes * times
    banks = FIFOBank(classes, 4, slots=slots), SharedPointerFIFOBank(classes, 4, slots=slots)
    for step in range(slots):
        vectors, _ = candidates(seed + step, classes, 1)
        for bank in banks:
            bank.write(vectors, torch.arange(classes))
    for bank, held in zip(banks, (slots, slots // classes)):
        keys, key_labels = read(bank)
        counts = [int((key_labels == k).sum()) for k in range(classes)]
        assert counts == [held] * classes
        assert len(keys[key_labels >= 0].unique(dim=0)) == held * classes


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 6), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_a_shared_pointer_moves_with_every_vector(seed, classes, slots, counts):
    bank, rings, at = SharedPointerFIFOBank(classes, 4, slots=slots), {}, 0
    for step, count in enumerate(counts):
        vectors, labels = candidates(seed + step, count, classes)
        bank.write(vectors, labels)
        for vector, label in zip(F.normalize(vectors, dim=1), labels.tolist()):
            if label >= 0:
                rings[label, at % slots] = vector
                at += 1
    keys, key_labels = (part.view(classes, slots, *part.shape[1:]) for part in read(bank))
    for k in range(classes):
        for slot in range(slots):
            held = rings.get((k, slot))
            assert key_labels[k, slot] == (-1 if held is None else k)
            assert held is None or torch.equal(keys[k, slot], held)


@pytest.mark.parametrize("kind", [FIFOBank, SharedPointerFIFOBank])
def test_a_ring_may_keep_vectors_as_they_are(kind):
    bank = kind(2, 4, slots=4, normalize=False)
    vectors, labels = 5 * torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, -1])
    assert not bank.ready
    bank.write(vectors[:1], labels[:1])
    assert not bank.ready  # one class has no negative
    bank.write(vectors[1:], labels[1:])
    assert bank.ready
    keys, key_labels = read(bank)
    assert torch.equal(keys[key_labels >= 0], vectors[:2])


def test_keys_read_earlier_survive_a_write():
    bank = FIFOBank(2, 4, slots=4)
    bank.write(*candidates(0, 9, 2))
    keys = read(bank)[0]
    before = keys.clone()
    bank.write(*candidates(1, 9, 2))
    assert torch.equal(keys, before)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="slots is 0"):
        FIFOBank(2, 4, slots=0)
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        EMABank(2, 4, decay=1.5)


@each
def test_settings_are_shown(name):
    assert "classes=2, channels=4" in repr(BANKS.create(name, classes=2, channels=4))
