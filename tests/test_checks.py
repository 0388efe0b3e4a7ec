# SPDX-License-Identifier: Apache-2.0
"""Argument checks: what passes, what fails, and a message that names the argument, what came and what was expected."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis._checks import (
    check_choice,
    check_class_maps,
    check_labels,
    check_mask,
    check_range,
    check_same_shape,
    check_whole,
)

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@given(shapes, shapes)
def test_same_shape_fails_exactly_where_shapes_differ(first, second):
    student, teacher = torch.zeros(first), torch.zeros(second)
    if first == second:
        check_same_shape(student_logits=student, teacher_logits=teacher)
        return
    with pytest.raises(ValueError, match=r"teacher_logits has shape .*; expected .* to match student_logits") as caught:
        check_same_shape(student_logits=student, teacher_logits=teacher)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_same_shape_looks_at_every_tensor():
    a, b = torch.zeros(2, 2), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="third has shape"):
        check_same_shape(first=a, second=a, third=b)


@pytest.mark.parametrize("shape", [(1, 2, 4), (1, 2, 4, 4), (2, 5, 4, 4, 4), (0, 2, 3, 3), (1, 2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_class_maps_of_any_dimension_and_floating_type_pass(shape, dtype):
    assert check_class_maps(logits=torch.zeros(shape, dtype=dtype)) is None


@pytest.mark.parametrize(
    "maps", [torch.zeros(2, 3), torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, dtype=torch.int64), torch.tensor(1.0)]
)
def test_class_maps_need_classes_space_and_a_floating_type(maps):
    with pytest.raises(ValueError, match=r"probs is torch\..*expected floating point \(B, K, \*S\) with K >= 2"):
        check_class_maps(logits=torch.zeros(1, 2, 3), probs=maps)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_of_any_integer_type_pass(dtype):
    assert check_labels(torch.zeros(2, 4, 5, dtype=dtype), torch.zeros(2, 3, 4, 5)) is None


def test_labels_with_a_channel_axis_are_refused():
    with pytest.raises(ValueError) as caught:
        check_labels(torch.zeros(2, 1, 64, 64, dtype=torch.int64), torch.zeros(2, 4, 64, 64))
    assert str(caught.value) == ("labels has shape (2, 1, 64, 64); expected (2, 64, 64) to match logits (2, 4, 64, 64)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_labels_that_are_no_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=r"pseudo has dtype torch.*; expected integer class indices"):
        check_labels(torch.zeros(2, 4, dtype=dtype), torch.zeros(2, 3, 4), name="pseudo")


def test_the_mask_is_optional_and_bool():
    maps = torch.zeros(2, 3, 4, 5)
    assert check_mask(None, maps) is None
    assert check_mask(torch.ones(2, 4, 5, dtype=torch.bool), maps) is None


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 4, 5),
        torch.ones(2, 4, 5, dtype=torch.uint8),
        torch.ones(2, 1, 4, 5, dtype=torch.bool),
        torch.ones(4, 5, dtype=torch.bool),
    ],
)
def test_a_mask_of_another_type_or_shape_is_refused(mask):
    with pytest.raises(ValueError, match=r"keep is torch\..*expected bool \(2, 4, 5\) to match probs \(2, 3, 4, 5\)"):
        check_mask(mask, torch.zeros(2, 3, 4, 5), name="keep", maps_name="probs")


def test_a_choice_is_one_of_the_choices():
    assert check_choice("mean", ("mean", "none"), name="reduction") is None
    with pytest.raises(ValueError, match="reduction is 'sum'; expected one of 'mean', 'none'"):
        check_choice("sum", ("mean", "none"), name="reduction")


@given(st.floats(allow_nan=False, allow_infinity=True))
def test_a_range_is_closed_or_open_below(value):
    for open_low in (False, True):
        if 0 <= value <= 1 and not (open_low and value == 0):
            check_range(value, 0, 1, name="keep_fraction", open_low=open_low)
        else:
            with pytest.raises(ValueError, match=r"keep_fraction is .*; expected a number in [\[(]0, 1\]"):
                check_range(value, 0, 1, name="keep_fraction", open_low=open_low)


@pytest.mark.parametrize("value", [3, np.uint8(3), np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_pass_as_int(value):
    number = check_whole(value, 3, name="bins")
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize("value", [2, -1, True, np.True_, 3.0, 2.5, "3", None, math.nan, [3]])
def test_what_is_no_whole_number_or_too_small_is_refused(value):
    with pytest.raises(ValueError, match=r"bins is .*; expected a whole number of at least 3"):
        check_whole(value, 3, name="bins")


def test_a_range_holds_no_nan_and_may_have_no_upper_end():
    assert check_range(1e30, 0, math.inf, name="temperature") is None
    with pytest.raises(ValueError, match="temperature is nan"):
        check_range(math.nan, 0, math.inf, name="temperature")
