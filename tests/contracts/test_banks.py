# SPDX-License-Identifier: Apache-2.0
"""What every registered bank promises: unit keys without gradient, reading that changes nothing, a whole state."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.memory import Bank
from ssmis.registry import BANKS

NAMES = list(BANKS)
each = pytest.mark.parametrize("name", NAMES)
seeds = st.integers(0, 2**31)


def create(name) -> Bank:
    return BANKS.create(name, **BANKS[name].example.create)


def candidates(bank, count=12, seed=0):
    """Random vectors `(N, E)` with labels `(N,)`, about a third of them unused."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, bank.channels, generator=generator)
    return vectors, torch.randint(-1, bank.classes, (count,), generator=generator)


def used(keys, labels):
    return keys[labels >= 0], labels[labels >= 0]


@each
@given(seeds, st.integers(0, 40))
def test_keys_are_unit_vectors_with_the_class_of_their_label(name, seed, count):
    bank = create(name)
    made = candidates(bank, count, seed)
    bank.write(*made)
    keys, labels = bank(*made)
    assert keys.shape == (len(labels), bank.channels)
    assert keys.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.ge(-1).all()
    assert labels.lt(bank.classes).all()
    assert keys.isfinite().all()
    torch.testing.assert_close(used(keys, labels)[0].norm(dim=1), torch.ones(int((labels >= 0).sum())))
    assert set(labels.tolist()) - {-1} == set(made[1].tolist()) - {-1}


@each
def test_the_number_of_keys_never_changes(name):
    bank = create(name)
    sizes = set()
    for seed, count in enumerate((0, 3, 40, 1)):
        made = candidates(bank, count, seed)
        sizes.add(tuple(bank(*made)[0].shape))
        bank.write(*made)
    assert len(sizes) == 1


@each
def test_a_bank_with_keys_of_two_classes_is_ready(name):
    bank = create(name)
    vectors, _ = candidates(bank, 2)
    bank.write(vectors, torch.tensor([0, -1]))
    before = bank.ready
    bank.write(vectors, torch.tensor([-1, 1]))
    assert bank.ready
    assert before == (len(list(bank.buffers())) == 0)  # one without memory always is


@each
def test_reading_changes_nothing(name):
    bank = create(name)
    bank.write(*candidates(bank))
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    first, second = bank(*candidates(bank, seed=1)), bank(*candidates(bank, seed=1))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert all(torch.equal(before[key], value) for key, value in bank.state_dict().items())


@each
def test_what_was_read_stays_as_it_was_when_the_bank_is_written(name):
    bank = create(name)
    bank.write(*candidates(bank))
    keys, labels = bank(*candidates(bank))
    kept = keys.clone(), labels.clone()
    bank.write(*candidates(bank, 40, seed=2))
    assert torch.equal(keys, kept[0])
    assert torch.equal(labels, kept[1])


@each
def test_keys_carry_no_gradient_and_nothing_is_trained(name):
    bank = create(name)
    vectors, labels = candidates(bank)
    vectors.requires_grad_()
    bank.write(vectors * 2, labels)
    keys, _ = bank(vectors * 2, labels)
    assert not keys.requires_grad
    assert not any(buffer.requires_grad for buffer in bank.buffers())
    assert not list(bank.parameters())


@each
def test_without_reliable_voxels_no_key_takes_part(name):
    bank = create(name)
    vectors, labels = candidates(bank)
    ignored = torch.full_like(labels, -1)
    bank.write(vectors, ignored)
    bank.write(vectors[:0], labels[:0])
    for made in ((vectors, ignored), (vectors[:0], labels[:0])):
        keys, key_labels = bank(*made)
        assert key_labels.eq(-1).all()
        assert keys.isfinite().all()


@each
@given(seeds)
def test_ignored_candidates_leave_no_trace_even_where_they_are_nan(name, seed):
    bank, other = create(name), create(name)
    vectors, labels = candidates(bank, seed=seed)
    poisoned = torch.where((labels < 0)[:, None], torch.nan, vectors)
    bank.write(vectors, labels)
    other.write(poisoned, labels)
    for a, b in zip(bank(vectors, labels), other(poisoned, labels)):
        assert torch.equal(a, b)


@each
@given(seeds, st.floats(0.01, 100))
def test_the_length_of_a_vector_does_not_matter(name, seed, scale):
    bank, other = create(name), create(name)
    vectors, labels = candidates(bank, seed=seed)
    bank.write(vectors, labels)
    other.write(scale * vectors, labels)
    for a, b in zip(bank(vectors, labels), other(scale * vectors, labels)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@each
@given(seeds)
def test_the_order_of_the_candidates_does_not_matter_to_a_class_as_a_whole(name, seed):
    bank, other = create(name), create(name)
    made = candidates(bank, 10, seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    shuffled = tuple(tensor[order] for tensor in made)
    bank.write(*made)
    other.write(*shuffled)
    for label in range(bank.classes):
        sums = [keys[labels == label].sum(0) for keys, labels in (bank(*made), other(*shuffled))]
        torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-5)


@each
def test_a_class_of_one_direction_is_remembered_as_that_direction(name):
    bank = create(name)
    direction = torch.randn(bank.channels, generator=torch.Generator().manual_seed(4))
    vectors = direction * torch.tensor([[0.5], [1.0], [2.0]])
    labels = torch.full((3,), bank.classes - 1)
    bank.write(vectors, labels)
    keys, key_labels = used(*bank(vectors, labels))
    assert key_labels.eq(bank.classes - 1).all()
    assert len(keys) > 0
    torch.testing.assert_close(keys, (direction / direction.norm()).expand_as(keys))


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_bank_in_half_precision_is_written_and_read(name, dtype):
    bank, exact = create(name).to(dtype), create(name)
    for seed in range(3):
        bank.write(*candidates(bank, seed=seed))
        exact.write(*candidates(exact, seed=seed))
    made = candidates(bank, seed=9)
    (keys, labels), (expected, expected_labels) = bank(*made), exact(*made)
    assert torch.equal(labels, expected_labels)
    torch.testing.assert_close(keys.float(), expected, atol=0.02, rtol=0)


@each
def test_the_state_dict_is_the_whole_bank(name):
    bank, other = create(name), create(name)
    for seed in range(3):
        bank.write(*candidates(bank, seed=seed))
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    made = candidates(bank, 7, seed=9)
    for one in (bank, other):
        one.write(*made)
    for a, b in zip(bank(*made), other(*made)):
        assert torch.equal(a, b)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_of_any_floating_type_give_float32_keys(name, dtype):
    bank = create(name)
    vectors, labels = candidates(bank)
    bank.write(vectors.to(dtype), labels)
    keys, key_labels = bank(vectors.to(dtype), labels)
    assert keys.dtype == torch.float32
    norms = used(keys, key_labels)[0].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@each
@pytest.mark.parametrize("method", ["forward", "write"])
def test_candidates_that_do_not_fit_are_refused_by_name(name, method):
    bank = create(name)
    vectors, labels = candidates(bank)
    call = getattr(bank, method)
    with pytest.raises(ValueError, match="vectors is"):
        call(vectors[:, 1:], labels)
    with pytest.raises(ValueError, match="vectors is"):
        call(vectors.long(), labels)
    with pytest.raises(ValueError, match="labels is"):
        call(vectors, labels[1:])
    with pytest.raises(ValueError, match="labels is"):
        call(vectors, labels.float())


@each
@pytest.mark.parametrize("argument", ["classes", "channels"])
def test_sizes_below_one_are_refused_by_name(name, argument):
    with pytest.raises(ValueError, match=f"{argument} is 0"):
        BANKS.create(name, **{**BANKS[name].example.create, argument: 0})
