# SPDX-License-Identifier: Apache-2.0
"""What every registered uncertainty promises: one finite value a voxel, gradient where stated, and symmetry laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_labels, make_logits, sizes

from ssmis.registry import UNCERTAINTY

CASES = [(name, dims) for name in UNCERTAINTY for dims in UNCERTAINTY[name].example.dims]
UNBOUNDED = {"kl_divergence"}  # in nats, without an upper end; all others lie in [0, 1]

each = pytest.mark.parametrize(("name", "dims"), CASES, ids=[f"{name}-{dims}d" for name, dims in CASES])


def create(name):
    return UNCERTAINTY.create(name, **UNCERTAINTY[name].example.create)


def inputs(name, size, *, batch=2, classes=3, seed=0, dtype=torch.float32, scale=3.0) -> dict[str, torch.Tensor]:
    """Build the arguments of the example's call, in its order."""
    made = {}
    for offset, (argument, kind) in enumerate(UNCERTAINTY[name].example.call.items()):
        logits = make_logits(seed + 11 * offset, batch, classes, size, scale)
        made[argument] = {
            "logits": lambda logits=logits: logits.to(dtype),
            "probs": lambda logits=logits: logits.softmax(1).to(dtype),
            "labels": lambda offset=offset: make_labels(seed + offset, batch, classes, size),
            "mask": lambda logits=logits: logits[:, 0] > 0,
        }[kind]()
    return made


def size_of(dims):
    return (5, 4, 3)[:dims]


@each
def test_there_is_one_finite_value_a_voxel(name, dims):
    value = create(name)(*inputs(name, size_of(dims)).values())
    assert value.shape == (2, *size_of(dims))
    assert value.dtype in (torch.bool, torch.float32)
    assert value.isfinite().all()


@pytest.mark.parametrize("name", list(UNCERTAINTY))
@given(
    st.integers(0, 2**31), st.integers(2, 7), sizes(), st.sampled_from([1.0, 1e2, 1e4]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
@settings(max_examples=15)
def test_values_stay_in_their_range_for_any_logits_and_type(name, seed, classes, size, scale, dtype):
    if len(size) not in UNCERTAINTY[name].example.dims:
        return
    value = create(name)(*inputs(name, size, classes=classes, seed=seed, scale=scale, dtype=dtype).values()).float()
    assert value.isfinite().all()
    assert value.min() >= -1e-5
    assert name in UNBOUNDED or value.max() <= 1 + 1e-5


@each
def test_gradient_goes_to_students_and_not_to_teachers(name, dims):
    example = UNCERTAINTY[name].example
    made = inputs(name, size_of(dims), scale=1.0)
    for tensor in made.values():
        if tensor.is_floating_point():
            tensor.requires_grad_()
    value = create(name)(*made.values())
    assert value.requires_grad == bool(example.student)
    if example.student:
        value.square().sum().backward()
    for argument in example.student:
        assert made[argument].grad.isfinite().all(), argument
        assert made[argument].grad.any(), argument
    for argument in example.teacher:
        assert made[argument].grad is None, argument


@each
def test_permuted_volumes_flipped_axes_and_permuted_classes_change_nothing(name, dims):
    measure, made = create(name), inputs(name, size_of(dims), batch=3, seed=5, scale=1.0)
    value = measure(*made.values())
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(measure(*(t[order] for t in made.values())), value[order])
    for axis in range(1, dims + 1):
        # axes are counted from the end: the class axis is not everywhere
        torch.testing.assert_close(measure(*(t.flip(-axis) for t in made.values())), value.flip(-axis))
    kinds = UNCERTAINTY[name].example.call
    if set(kinds.values()) <= {"logits", "probs", "mask"}:
        permuted = [t[:, order] if kinds[argument] != "mask" else t for argument, t in made.items()]
        torch.testing.assert_close(measure(*permuted), value)


@each
def test_a_single_voxel_is_enough(name, dims):
    value = create(name)(*inputs(name, (1,) * dims, batch=1).values())
    assert value.shape == (1, *(1,) * dims)
    assert value.isfinite().all()


@pytest.mark.parametrize("name", list(UNCERTAINTY))
def test_a_measure_has_no_state(name):
    measure = create(name)
    made = inputs(name, (4, 4))
    if 2 not in UNCERTAINTY[name].example.dims:
        made = inputs(name, (4, 4, 4))
    first, second = measure(*made.values()), measure(*made.values())
    assert torch.equal(first, second)
    assert not list(measure.parameters())


@pytest.mark.parametrize("name", list(UNCERTAINTY))
def test_maps_of_one_class_are_refused(name):
    made = inputs(name, (4, 4), classes=1)
    with pytest.raises(ValueError, match="K >= 2"):
        create(name)(*made.values())
