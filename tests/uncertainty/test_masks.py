# SPDX-License-Identifier: Apache-2.0
"""Rank-based masks keep exactly the stated number, whatever ties there are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_labels, make_logits, make_mask, sizes

from ssmis.uncertainty import LowestEntropy, entropy, lowest, lowest_entropy

FRACTIONS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
SCOPES = st.sampled_from(["volume", "batch", "class"])


def make_values(seed, size, levels):
    """Values with few levels, so with many ties, some of them infinite or not a number."""
    values = make_logits(seed, 2, 1, size)[:, 0].mul(levels).round().div(max(levels, 1))
    return values.masked_fill(values > 2.5, math.inf).masked_fill(values < -3, math.nan)


def brute_force(values, fraction, groups):
    """Sort the (value, index) pairs of each group in plain Python; NaN last, a negative group never."""
    kept = [False] * len(values)
    for group in set(groups) - {-1}:
        members = [index for index, own in enumerate(groups) if own == group]
        members.sort(
            key=lambda index: (math.isnan(values[index]), values[index] if values[index] == values[index] else 0)
        )
        for index in members[: max(1, math.floor(fraction * len(members) + 0.5))]:
            kept[index] = True
    return kept


@given(st.integers(0, 2**31), sizes(), st.integers(0, 3), FRACTIONS, SCOPES, st.booleans())
def test_lowest_equals_sorting(seed, size, levels, fraction, scope, with_valid):
    values = make_values(seed, size, levels)
    labels = make_labels(seed, 2, 3, size) if scope == "class" else None
    valid = make_mask(seed, 2, size) if with_valid else None
    mask = lowest(values, fraction, scope=scope, labels=labels, valid=valid)
    groups = torch.zeros(2, *size, dtype=torch.int64) if labels is None else labels
    if scope != "batch":
        groups = groups + 10 * torch.arange(2).view(-1, *[1] * len(size))
    if valid is not None:
        groups = groups.where(valid, -1)
    expected = brute_force(values.flatten().tolist(), fraction, groups.flatten().tolist())
    assert mask.dtype == torch.bool
    assert mask.flatten().tolist() == expected


@pytest.mark.parametrize("scope", ["volume", "batch", "class"])
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_nothing_to_rank_gives_an_empty_mask(scope, shape):
    labels = torch.zeros(shape, dtype=torch.int64) if scope == "class" else None
    for valid in (None, torch.ones(shape, dtype=torch.bool)):
        mask = lowest(torch.zeros(shape), 0.5, scope=scope, labels=labels, valid=valid)
        assert (tuple(mask.shape), mask.dtype) == (shape, torch.bool)
    logits = torch.zeros(shape[0], 2, *shape[1:])
    assert lowest_entropy(logits, 0.5, scope=scope).shape == shape


@given(st.integers(0, 2**31), st.integers(1, 300), FRACTIONS, st.sampled_from(["equal", "two", "all different"]))
def test_exactly_the_stated_number_is_kept(seed, voxels, fraction, ties):
    values = make_logits(seed, 3, 1, (voxels,))[:, 0]
    values = {"equal": values * 0, "two": values.sign(), "all different": values}[ties]
    count = max(1, math.floor(fraction * voxels + 0.5))
    assert lowest(values, fraction).sum(1).tolist() == [count] * 3
    assert lowest(values, fraction, scope="batch").sum().item() == max(1, math.floor(fraction * 3 * voxels + 0.5))


def test_saturated_entropies_select_neither_everything_nor_nothing():
    logits = torch.zeros(1, 2, 10, 10)
    logits[:, 0] = 1e4
    mask = lowest_entropy(logits, 0.2)
    assert mask.sum().item() == 20
    assert mask.flatten()[:20].all()


@given(st.integers(0, 2**31), sizes(low=2), FRACTIONS)
def test_a_larger_fraction_keeps_more_and_kept_values_are_lower(seed, size, fraction):
    values = make_logits(seed, 2, 1, size)[:, 0]
    mask = lowest(values, fraction)
    assert not (lowest(values, fraction / 2) & ~mask).any()
    for own, kept in zip(values, mask):
        if not kept.all():
            assert own[kept].max() <= own[~kept].min()


def test_valid_voxels_only_are_counted_and_an_empty_volume_keeps_none():
    values = torch.arange(12.0).view(2, 6)
    valid = torch.zeros(2, 6, dtype=torch.bool)
    valid[0, 2:] = True
    assert lowest(values, 0.5, valid=valid).tolist() == [[False, False, True, True, False, False], [False] * 6]


def test_classes_are_ranked_for_themselves():
    logits = make_logits(3, 2, 3, (8, 8))
    mask, labels = lowest_entropy(logits, 0.25, scope="class"), logits.argmax(1)
    for own, kept in zip(labels, mask):
        for label in own.unique():
            count = int((own == label).sum())
            assert int((kept & (own == label)).sum()) == max(1, math.floor(0.25 * count + 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    values = torch.linspace(0, 1, 50).to(dtype).view(1, 50)
    assert lowest(values, 0.3).sum().item() == 15
    assert lowest(values, 0.3, valid=torch.ones_like(values, dtype=torch.bool)).sum().item() == 15


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.bool])
def test_labels_of_any_integer_type_give_the_same_mask(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 40, generator=generator)
    labels, valid = (torch.rand(2, 2, 40, generator=generator) < 0.5).unbind()
    kept = lowest(values, 0.5, scope="class", labels=labels.to(dtype), valid=valid)
    assert torch.equal(kept, lowest(values, 0.5, scope="class", labels=labels.long(), valid=valid))
    assert not bool((kept & ~valid).any())


def test_lowest_entropy_is_detached_and_the_module_agrees():
    logits = make_logits(0, 2, 3, (4, 4)).requires_grad_()
    mask = lowest_entropy(logits, 0.5)
    assert torch.equal(mask, lowest(entropy(logits.detach()), 0.5))
    assert torch.equal(mask, LowestEntropy(keep_fraction=0.5)(logits))
    assert not mask.requires_grad


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"keep_fraction": 1.5}, "keep_fraction"),
        ({"keep_fraction": float("nan")}, "keep_fraction"),
        ({"scope": "slice"}, "scope"),
        ({"scope": "class"}, "labels are missing"),
        ({"labels": torch.zeros(1, 4, dtype=torch.int64)}, "labels are given"),
        ({"labels": torch.zeros(1, 4), "scope": "class"}, "labels has dtype torch.float32"),
        ({"valid": torch.ones(1, 4)}, "valid has dtype"),
        ({"valid": torch.ones(1, 5, dtype=torch.bool)}, "valid has shape"),
        ({"values": torch.zeros(1, 4, dtype=torch.int64)}, "values has dtype"),
    ],
)
def test_wrong_arguments_are_named(arguments, match):
    arguments = {"values": torch.zeros(1, 4), "keep_fraction": 0.5, **arguments}
    with pytest.raises(ValueError, match=match):
        lowest(**arguments)
