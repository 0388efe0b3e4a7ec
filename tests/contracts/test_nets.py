# SPDX-License-Identifier: Apache-2.0
"""What every registered net promises: its output, any size, gradient everywhere, determinism and a whole state."""

import inspect
import io

import pytest
import torch

from ssmis.nets import NetOutput
from ssmis.registry import NETS

SIZES = {
    2: (33, 40),
    3: (17, 20, 33),
}  # odd on purpose; more than one voxel is left after five halvings of the padded size
CASES = [(name, dims) for name in NETS for dims in NETS[name].example.dims]

each = pytest.mark.parametrize(("name", "dims"), CASES, ids=[f"{name}-{dims}d" for name, dims in CASES])


def create(name, **settings):
    """Create a net; skip where its optional package is missing."""
    try:
        return NETS.create(name, **settings)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


def takes_dims(name) -> bool:
    return "dims" in inspect.signature(NETS[name].factory).parameters


def small(name, dims, **settings):
    """Create the variant of the example in `dims` dimensions, from a fixed seed."""
    torch.manual_seed(0)
    if takes_dims(name):
        settings["dims"] = dims
    return create(name, **{**NETS[name].example.create, **settings})


def images(dims, batch=2, channels=1, seed=1):
    return torch.randn(batch, channels, *SIZES[dims], generator=torch.Generator().manual_seed(seed))


def tensors(output: NetOutput) -> dict[str, torch.Tensor]:
    named = {"logits": output.logits, **{f"heads/{name}": logits for name, logits in output.heads.items()}}
    if output.features is not None:
        named["features"] = output.features
    return {**named, **{f"pyramid/{level}": maps for level, maps in enumerate(output.pyramid)}}


@pytest.mark.parametrize("name", list(NETS))
def test_the_default_net_takes_one_channel_and_gives_two_classes(name):
    dims = 3 if 3 in NETS[name].example.dims else 2
    net = create(name).eval()
    with torch.no_grad():
        output = net(torch.randn(1, 1, *(32,) * dims))
    assert output.logits.shape == (1, 2, *(32,) * dims)


@each
def test_the_output_keeps_batch_size_and_dtype(name, dims):
    with torch.no_grad():
        output = small(name, dims)(images(dims))
    size = SIZES[dims]
    assert isinstance(output, NetOutput)
    assert output.logits.shape == (2, 2, *size)
    assert all(logits.shape == output.logits.shape for logits in output.heads.values())
    if output.features is not None:
        assert output.features.shape[0] == 2
        assert output.features.shape[2:] == size
    if output.pyramid:  # banks of its features are made before the first image is seen
        assert small(name, dims).pyramid_channels == tuple(level.shape[1] for level in output.pyramid)
    for finer, coarser in zip(output.pyramid, output.pyramid[1:]):
        assert all(a >= b for a, b in zip(finer.shape[2:], coarser.shape[2:]))
    for label, tensor in tensors(output).items():
        assert tensor.shape[0] == 2, label
        assert tensor.ndim == dims + 2, label
        assert tensor.dtype == torch.float32, label
        assert tensor.isfinite().all(), label


@each
def test_channels_and_classes_are_arguments(name, dims):
    with torch.no_grad():
        output = small(name, dims, in_channels=3, classes=4).eval()(images(dims, batch=1, channels=3))
    assert output.logits.shape == (1, 4, *SIZES[dims])


@each
def test_slicing_the_output_selects_volumes_in_every_tensor(name, dims):
    with torch.no_grad():
        output = small(name, dims)(images(dims, batch=3))
    whole, part = tensors(output), tensors(output[:2])
    assert whole.keys() == part.keys()
    assert all(torch.equal(part[label], whole[label][:2]) for label in whole)


@each
def test_gradient_reaches_every_parameter(name, dims):
    net = small(
        name, dims, **({"dropout": 0.0} if "dropout" in inspect.signature(NETS[name].factory).parameters else {})
    )
    output = net.train()(images(dims))
    weights = torch.Generator().manual_seed(3)
    maps = [output.logits, *output.heads.values()]
    sum((m * torch.randn(m.shape, generator=weights)).sum() for m in maps).backward()
    missing = [label for label, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    # biases before a norm have no gradient in exact arithmetic, so only weights must have one
    silent = [label for label, p in net.named_parameters() if p.requires_grad and p.ndim > 1 and not p.grad.any()]
    assert not silent


@each
def test_features_carry_gradient(name, dims):
    net = small(name, dims).train()
    output = net(images(dims))
    if output.features is None:
        pytest.skip("this net offers no features")
    output.features.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in net.parameters())


@each
def test_eval_mode_is_deterministic_and_volumes_do_not_mix(name, dims):
    net, batch = small(name, dims).eval(), images(dims)
    with torch.no_grad():
        first, second, alone = net(batch), net(batch), net(batch[1:])
    assert all(torch.equal(a, b) for a, b in zip(tensors(first).values(), tensors(second).values()))
    torch.testing.assert_close(alone.logits, first.logits[1:], rtol=1e-3, atol=1e-4)


@each
def test_the_state_dict_is_the_whole_net(name, dims):
    net, batch = small(name, dims), images(dims)
    with torch.no_grad():
        net.train()(batch)  # moves the norms' statistics, if there are any
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = small(name, dims)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(net.eval()(batch).logits, other.eval()(batch).logits)


@each
def test_bfloat16_autocast_gives_finite_maps(name, dims):
    net = small(name, dims).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = net(images(dims, batch=1))
    assert all(tensor.isfinite().all() for tensor in tensors(output).values())


@each
@pytest.mark.parametrize("wrong", ["channels", "axes"])
def test_images_of_another_shape_are_refused_by_name(name, dims, wrong):
    net = small(name, dims).eval()
    bad = images(dims, channels=2) if wrong == "channels" else images(dims)[0]
    with pytest.raises(ValueError, match="images"):
        net(bad)
