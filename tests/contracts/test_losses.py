# SPDX-License-Identifier: Apache-2.0
"""What every registered loss must do, driven by its example; a new loss comes under these tests by registering."""

import inspect

import pytest
import torch

import ssmis.losses
from ssmis.registry import LOSSES

SIZES = {2: (5, 4), 3: (4, 3, 2)}
NAMES = list(LOSSES)
DENSE = [name for name in NAMES if "logits" in LOSSES[name].example.call.values()]
MASKED = [name for name in DENSE if "mask" in LOSSES[name].example.call.values()]
CASES = [(name, dims) for name in NAMES for dims in LOSSES[name].example.dims]
DENSE_CASES = [(name, dims) for name, dims in CASES if name in DENSE]

every_loss = pytest.mark.parametrize(("name", "dims"), CASES)
every_dense_loss = pytest.mark.parametrize(("name", "dims"), DENSE_CASES)
every_reduction = pytest.mark.parametrize(
    ("name", "dims", "reduction"),
    [(name, dims, "mean") for name, dims in CASES] + [(name, dims, "pooled") for name, dims in DENSE_CASES],
)
every_masked_loss = pytest.mark.parametrize(("name", "dims"), [case for case in DENSE_CASES if case[0] in MASKED])


def make(name, dims, *, batch=3, classes=3, seed=0, dtype=torch.float32, **create):
    """The loss module and its arguments; all floating-point ones ask for gradient."""
    example, size = LOSSES[name].example, SIZES[dims]
    generator = torch.Generator().manual_seed(seed)

    def tensor(kind):
        if kind in ("logits", "features", "keys"):
            shape = {"logits": (batch, classes, *size), "features": (batch, 8, *size), "keys": (20, 8)}[kind]
            return (2 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
        if kind == "labels":
            return torch.randint(-1, classes, (batch, *size), generator=generator)
        if kind == "key_labels":
            return torch.arange(20) % classes
        if kind == "mask":
            return torch.rand(batch, *size, generator=generator) < 0.7
        raise NotImplementedError(kind)

    arguments = {argument: tensor(kind) for argument, kind in example.call.items()}
    return LOSSES.create(name, **{**example.create, **create}), arguments


def floats(arguments):
    return {name: value for name, value in arguments.items() if value.is_floating_point()}


def with_kind(name, kind):
    return [argument for argument, own in LOSSES[name].example.call.items() if own == kind]


def changed(name, arguments, change):
    """Change the layout of all arguments that have voxels; every copy is detached."""
    still = with_kind(name, "keys") + with_kind(name, "key_labels")
    return {key: value.detach() if key in still else change(value.detach()) for key, value in arguments.items()}


def test_the_table_is_complete():
    assert {"soft_dice", "dice_ce", "kl_rectified_ce", "entropy_filtered_ce", "confidence_disagreement"} <= set(NAMES)
    assert set(NAMES) - set(DENSE) == {"voxel_contrast", "prototype_contrast", "region_contrast"}  # of features


@pytest.mark.parametrize("name", NAMES)
def test_one_stem_three_spellings(name):
    """`soft_dice`, `SoftDice` and "soft_dice", with the same defaults."""
    factory = LOSSES[name].factory
    assert factory.__name__.lower() == name.replace("_", "")
    assert getattr(ssmis.losses, factory.__name__) is factory
    function = inspect.signature(getattr(ssmis.losses, name)).parameters
    assert set(LOSSES[name].example.call) <= set(function)
    for option, parameter in inspect.signature(factory).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == function[option].default, option


@every_loss
def test_finite_and_gradient_where_it_belongs(name, dims):
    loss, arguments = make(name, dims)
    value = loss(**arguments)
    assert value.ndim == 0
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    example = LOSSES[name].example
    for student in example.student:
        gradient = arguments[student].grad
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0, student
    for teacher in example.teacher:
        assert arguments[teacher].grad is None, teacher
    assert set(example.student) | set(example.teacher) == set(floats(arguments))


@every_loss
def test_module_equals_function(name, dims):
    loss, arguments = make(name, dims)
    function = getattr(ssmis.losses, name)
    assert torch.equal(loss(**arguments), function(**arguments, **LOSSES[name].example.create))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_values_stay_finite(name, dims, dtype):
    loss, arguments = make(name, dims)
    extreme = {
        key: (1e4 * value.detach().sign()).to(dtype).requires_grad_() if value.is_floating_point() else value
        for key, value in arguments.items()
    }
    value = loss(**extreme)
    assert value.isfinite()
    value.backward()
    for student in LOSSES[name].example.student:
        assert extreme[student].grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(name, dims, dtype):
    loss, arguments = make(name, dims)
    half = {
        key: value.detach().to(dtype).requires_grad_() if value.is_floating_point() else value
        for key, value in arguments.items()
    }
    exact = {key: value.detach().double() if value.is_floating_point() else value for key, value in half.items()}
    with torch.autocast("cpu", dtype=dtype):
        value = loss(**half)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(**exact).double(), rtol=1e-5, atol=1e-6)
    for student in LOSSES[name].example.student:
        assert half[student].grad.isfinite().all()
        assert half[student].grad.dtype == dtype


@every_loss
def test_float64_stays_float64(name, dims):
    loss, arguments = make(name, dims, dtype=torch.float64)
    assert loss(**arguments).dtype == torch.float64


@every_loss
def test_gradcheck(name, dims):
    loss, arguments = make(name, dims, batch=2, dtype=torch.float64)
    students = LOSSES[name].example.student
    rest = {key: value.detach() for key, value in arguments.items() if key not in students}

    def call(*values):
        return loss(**dict(zip(students, values)), **rest)

    assert torch.autograd.gradcheck(call, tuple(arguments[key] for key in students), fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_graph_break(name):
    loss, arguments = make(name, LOSSES[name].example.dims[-1])
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value = compiled(**arguments)
    torch.testing.assert_close(value, loss(**arguments))
    value.backward()
    for student in LOSSES[name].example.student:
        assert arguments[student].grad.isfinite().all()


@every_masked_loss
def test_empty_mask_is_an_attached_zero(name, dims):
    loss, arguments = make(name, dims)
    (mask,) = with_kind(name, "mask")
    arguments[mask] = torch.zeros_like(arguments[mask])
    value = loss(**arguments)
    assert value == 0
    value.backward()
    for student in LOSSES[name].example.student:
        assert torch.equal(arguments[student].grad, torch.zeros_like(arguments[student]))


@every_reduction
def test_no_volumes_are_an_attached_zero(name, dims, reduction):
    loss, arguments = make(name, dims, batch=0, reduction=reduction)
    value = loss(**arguments)
    assert value == 0
    value.backward()
    for student in LOSSES[name].example.student:
        assert arguments[student].grad.shape == arguments[student].shape


@every_loss
def test_no_volumes_have_no_voxel_values(name, dims):
    loss, arguments = make(name, dims, batch=0, reduction="none")
    values = loss(**arguments)
    assert values.shape[0] == 0
    assert values.requires_grad


@every_masked_loss
@pytest.mark.parametrize("reduction", ["mean", "pooled"])
def test_voxels_outside_the_mask_get_no_gradient_and_have_no_say(name, dims, reduction):
    loss, arguments = make(name, dims, reduction=reduction)
    (mask,) = with_kind(name, "mask")
    outside = ~arguments[mask].unsqueeze(1)
    value = loss(**arguments)
    value.backward()
    for student in LOSSES[name].example.student:
        assert (arguments[student].grad.masked_fill(~outside, 0) == 0).all()
    other = {
        key: value.detach().masked_fill(outside, 7.0) if key in with_kind(name, "logits") else value
        for key, value in arguments.items()
    }
    for labels in with_kind(name, "labels"):
        other[labels] = other[labels].masked_fill(outside.squeeze(1), 1)
    torch.testing.assert_close(loss(**other), value.detach(), rtol=1e-6, atol=1e-7)


@every_masked_loss
def test_a_full_mask_equals_none(name, dims):
    loss, arguments = make(name, dims)
    (mask,) = with_kind(name, "mask")
    without = {key: value for key, value in arguments.items() if key != mask}
    full = {**without, mask: torch.ones_like(arguments[mask])}
    torch.testing.assert_close(loss(**full), loss(**without))


@every_dense_loss
def test_mean_is_per_volume_first(name, dims):
    loss, arguments = make(name, dims)
    alone = [loss(**changed(name, arguments, lambda value, i=i: value[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(loss(**arguments), torch.stack(alone).mean())


@every_dense_loss
def test_pooled_of_one_volume_is_its_mean(name, dims):
    mean, arguments = make(name, dims, batch=1)
    pooled, _ = make(name, dims, batch=1, reduction="pooled")
    torch.testing.assert_close(pooled(**arguments), mean(**arguments))


@every_dense_loss
def test_none_keeps_the_volumes(name, dims):
    loss, arguments = make(name, dims, reduction="none")
    values = loss(**arguments)
    assert values.shape[0] == 3
    assert values.isfinite().all()
    first = loss(**changed(name, arguments, lambda value: value[:1]))
    torch.testing.assert_close(values[:1], first)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_reduction_is_an_error(name):
    with pytest.raises(ValueError, match="reduction is 'median'"):  # noqa: PT012
        loss, arguments = make(name, 2, reduction="median")
        loss(**arguments)


@every_reduction
def test_volumes_may_be_permuted(name, dims, reduction):
    loss, arguments = make(name, dims, reduction=reduction)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(**changed(name, arguments, lambda value: value[order])), loss(**arguments))


@every_reduction
def test_axes_may_be_flipped(name, dims, reduction):
    loss, arguments = make(name, dims, reduction=reduction)
    expected = loss(**arguments)
    for axis in range(1, dims + 1):  # counted from the end: maps and labels have different ranks
        torch.testing.assert_close(
            loss(**changed(name, arguments, lambda value, axis=axis: value.flip(-axis))), expected
        )


@every_dense_loss
@pytest.mark.parametrize("classes", [2, 4, 6])
def test_foreground_classes_may_be_permuted(name, dims, classes):
    loss, arguments = make(name, dims, classes=classes)
    order = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(classes - 1, 0, -1)])  # its own inverse
    permuted = dict(arguments)
    for logits in with_kind(name, "logits"):
        permuted[logits] = arguments[logits][:, order]
    for labels in with_kind(name, "labels"):
        permuted[labels] = torch.where(arguments[labels] < 0, -1, order[arguments[labels].clamp_min(0)])
    torch.testing.assert_close(loss(**permuted), loss(**arguments))


@every_dense_loss
def test_gradients_do_not_depend_on_the_batch_they_are_in(name, dims):
    loss, arguments = make(name, dims)
    loss(**arguments).backward()
    student = LOSSES[name].example.student[0]
    alone = {key: value.detach()[:1].requires_grad_(value.is_floating_point()) for key, value in arguments.items()}
    loss(**alone).backward()
    torch.testing.assert_close(arguments[student].grad[:1], alone[student].grad / 3)


@every_dense_loss
def test_shapes_are_checked(name, dims):
    loss, arguments = make(name, dims)
    maps = with_kind(name, "logits")
    for argument in arguments if len(arguments) > 1 else ():
        with pytest.raises(ValueError, match="expected"):
            loss(**{**arguments, argument: arguments[argument][..., :-1]})
    with pytest.raises(ValueError, match="K >= 2"):
        loss(**{key: value[:, :1] if key in maps else value for key, value in arguments.items()})
