# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data import DataError, TwoStreamSampler, batch_key


def ids(prefix, count):
    return [f"{prefix}{i}" for i in range(count)]


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**40))
def test_every_case_once_before_any_repeats(labelled, unlabelled, per_labelled, per_unlabelled, seed):
    per_labelled, per_unlabelled = min(per_labelled, labelled), min(per_unlabelled, unlabelled)
    sampler = TwoStreamSampler(
        ids("l", labelled),
        ids("u", unlabelled),
        labelled_per_batch=per_labelled,
        unlabelled_per_batch=per_unlabelled,
        seed=seed,
    )
    batches = [sampler(step) for step in range(12)]
    for stream, (count, per_batch) in enumerate(((labelled, per_labelled), (unlabelled, per_unlabelled))):
        assert all(len(batch[stream]) == per_batch for batch in batches)
        flat = [case for batch in batches for case in batch[stream]]
        for start in range(0, len(flat) - count + 1, max(count, 1)):
            assert max(Counter(flat[start : start + count]).values(), default=0) <= 1
    assert [sampler(step) for step in reversed(range(12))] == batches[::-1]


def test_seed_changes_the_order_and_streams_are_independent():
    orders = {TwoStreamSampler(ids("l", 30), ids("u", 30), seed=seed)(0) for seed in range(5)}
    assert len(orders) == 5
    labelled, unlabelled = TwoStreamSampler(ids("l", 30), ids("u", 30), labelled_per_batch=30, unlabelled_per_batch=30)(
        0
    )
    assert [case[1:] for case in labelled] != [case[1:] for case in unlabelled]


def test_epochs_differ():
    sampler = TwoStreamSampler(ids("l", 20), labelled_per_batch=20, unlabelled_per_batch=0)
    assert sampler(0)[0] != sampler(1)[0]
    assert sampler(0)[1] == ()


def test_errors():
    with pytest.raises(DataError, match="there are 1 unlabelled cases; a batch needs 2"):
        TwoStreamSampler(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="there are 0 labelled cases; a batch needs 1"):
        TwoStreamSampler([], ["c"], labelled_per_batch=1, unlabelled_per_batch=1)
    with pytest.raises(DataError, match="case 'a' is in both labelled_ids and unlabelled_ids"):
        TwoStreamSampler(["a", "b"], ["a", "c"])
    with pytest.raises(ValueError, match="labelled_per_batch is 0"):
        TwoStreamSampler(["a"], labelled_per_batch=0)
    with pytest.raises(ValueError, match="step is -1; expected at least 0"):
        TwoStreamSampler(["a"], labelled_per_batch=1, unlabelled_per_batch=0)(-1)


def test_keys_do_not_collide_and_fit_in_63_bits():
    parts = [(s, t, m, r) for s in range(6) for t in range(20) for m in range(4) for r in range(4)]
    keys = [batch_key(*part) for part in parts]
    assert len(set(keys)) == len(parts)
    assert all(0 <= key < 2**63 for key in keys)
    bits = sum(bin(batch_key(0, t) ^ batch_key(0, t + 1)).count("1") for t in range(200)) / 200
    assert 28 < bits < 35  # about half the bits change


def test_keys_are_the_same_everywhere():
    assert batch_key(0, 0) == 1195769770526638388
