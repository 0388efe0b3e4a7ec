# SPDX-License-Identifier: Apache-2.0
"""The largest component of a batch against a flood fill, and one law: nothing is left but one component."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_labels, sizes

from ssmis.data import largest_component, largest_components
from ssmis.data.components import largest_sizes, pieces_of


def components(inside):
    """Sets of face-connected voxels, in memory order of their first voxel."""
    left, found = {tuple(at) for at in inside.nonzero().tolist()}, []
    for start in sorted(left):
        if start not in left:
            continue
        island, open_ends = set(), [start]
        while open_ends:
            at = open_ends.pop()
            if at in left:
                left.remove(at)
                island.add(at)
                open_ends += [(*at[:i], at[i] + d, *at[i + 1 :]) for i in range(len(at)) for d in (-1, 1)]
        found.append(island)
    return found


@given(st.integers(0, 2**31), st.integers(2, 4), sizes(high=6), st.booleans())
def test_equals_a_flood_fill(seed, classes, size, all_classes):
    labels = make_labels(seed, 2, classes, size, low=-1)
    cleaned = tuple(range(1, classes)) if all_classes else (1,)
    expected = labels.clone()
    for volume in expected:
        for label in cleaned:
            islands = components(volume == label)
            keep = max(islands, key=len, default=None)  # the first of equals
            for island in islands:
                if island is not keep:
                    for at in island:
                        volume[at] = 0
    before = labels.clone()
    found = largest_components(labels, classes=cleaned)
    assert torch.equal(found, expected)
    assert torch.equal(labels, before)
    assert torch.equal(found[1], largest_component(labels[1], classes=cleaned))
    assert torch.equal(largest_components(found, classes=cleaned), found)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int16])
def test_the_dtype_and_values_above_a_byte_stay(dtype):
    labels = torch.tensor([[300 % 256 if dtype == torch.uint8 else 300, 0, 1, 0, 1, 1]], dtype=dtype)
    found = largest_components(labels, classes=(1,))
    assert found.dtype == dtype
    assert found.tolist() == [[labels[0, 0].item(), 0, 0, 0, 1, 1]]


@given(st.integers(0, 2**31), sizes(high=6))
def test_the_largest_sizes_are_those_of_a_flood_fill(seed, size):
    labels = make_labels(seed, 1, 3, size, low=-1)[0]
    found = largest_sizes(labels.numpy(), values=(1, 2, 9))
    for value in (1, 2, 9):
        joined = components((labels == value) | (labels < 0))  # what is not annotated parts nothing
        sizes = [sum(labels[at].item() == value for at in island) for island in joined]
        assert found[value] == max(sizes, default=0)


def test_which_classes_are_of_one_piece():
    assert [*pieces_of(True, classes=3)] == [1, 2]
    assert not pieces_of(False, classes=3)
    assert pieces_of([2], classes=3) == (2,)
    for wrong in ([0], [3], [True], ["1"], "True", 1, None):
        with pytest.raises(ValueError, match=r"components is .*; expected true, false, or a list of classes from 1"):
            pieces_of(wrong, classes=3)


def test_no_volumes_and_no_classes():
    assert largest_components(torch.zeros(0, 3, 3, dtype=torch.int64), classes=(1,)).shape == (0, 3, 3)
    labels = torch.tensor([[1, 0, 1]])
    assert torch.equal(largest_components(labels, classes=()), labels)
