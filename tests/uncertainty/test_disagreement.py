# SPDX-License-Identifier: Apache-2.0
"""Disagreement of two and more nets."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_logits, sizes

from ssmis.uncertainty import disagreement


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(2, 4), sizes())
def test_disagreement_counts_pairs(seed, nets, classes, size):
    maps = [make_logits(seed + net, 2, classes, size) for net in range(nets)]
    value = disagreement(*maps)
    twin = torch.zeros(2, *size)
    for a, b in combinations(maps, 2):
        twin += (a.argmax(1) != b.argmax(1)).float()
    torch.testing.assert_close(value, twin / (nets * (nets - 1) / 2))
    torch.testing.assert_close(value, disagreement(*maps[::-1]))
    assert not disagreement(*[maps[0]] * nets).any()


def test_one_net_or_other_shapes_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        disagreement(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"logits\[1\] has shape"):
        disagreement(torch.zeros(1, 2, 4), torch.zeros(1, 2, 5))
