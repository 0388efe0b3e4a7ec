# SPDX-License-Identifier: Apache-2.0
"""Gradients that torch gets wrong on a CPU: memory that nobody wrote, or a damaged heap."""

import pytest
import torch
from torch import nn

import ssmis.nets.conv
from ssmis.nets import NetAdapter, VNet
from ssmis.nets.conv import Conv2d, Conv3d, protect_small_maps


def gradients(layer, size, autocast):
    torch.manual_seed(0)
    images = torch.randn(2, 8, *size).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(images)
    garbage = [torch.full((1 << 14,), 1e30) for _ in range(40)]  # freed at once: what unwritten memory would hold
    del garbage
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(output, (images, layer.weight), upstream.to(output.dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 1), (2, 2, 2), (3, 2, 2), (3, 3, 2), (3, 3, 3)])
def test_bfloat16_gradients_are_near_those_of_float32(size, memory_format):
    layer = Conv3d(8, 8, 3, padding=1).to(memory_format=memory_format)
    for half, full in zip(gradients(layer, size, True), gradients(layer, size, False), strict=True):
        assert (half.float() - full).norm() < 0.03 * full.norm()


def test_state_and_results_are_those_of_torch():
    ours, theirs = Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 6, 6)
    assert torch.equal(ours(images), theirs(images))
    assert ours.bfloat16()(images[..., :2, :2].bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "memory_format"), [(Conv2d, torch.channels_last), (Conv3d, torch.channels_last_3d)])
@pytest.mark.parametrize("stride", [2, (2, 1, 3)])
@pytest.mark.parametrize("channels", [4, 8])
def test_kernels_of_one_voxel_with_a_stride(kind, memory_format, stride, channels):
    size = (8, 9, 7)[: 2 if kind is Conv2d else 3]
    stride = stride if isinstance(stride, int) else stride[: len(size)]
    torch.manual_seed(0)
    layer = kind(channels, 4, 1, stride=stride).to(memory_format=memory_format)
    exact = (nn.Conv2d if kind is Conv2d else nn.Conv3d)(channels, 4, 1, stride=stride).double()
    exact.load_state_dict(layer.state_dict())
    for _ in range(20):  # what writes outside its memory ends the process sooner or later
        images = torch.randn(4, channels, *size).to(memory_format=memory_format).requires_grad_()
        wide = images.detach().double().requires_grad_()
        output, expected = layer(images), exact(wide)
        assert torch.allclose(output.double(), expected, atol=1e-5)
        found = torch.autograd.grad(output.square().sum(), (images, *layer.parameters()))
        true = torch.autograd.grad(expected.square().sum(), (wide, *exact.parameters()))
        assert all(torch.allclose(one.double(), other, atol=1e-3) for one, other in zip(found, true, strict=True))


@pytest.mark.parametrize(("kind", "size"), [(Conv2d, (9, 8)), (Conv3d, (9, 8, 10))])
@pytest.mark.parametrize("kernel", [3, 7])
def test_images_of_one_channel_are_unrolled(kind, size, kernel, monkeypatch):
    """The same map, and the same gradients in image, weight and bias, but for the rounding of bfloat16."""
    torch.manual_seed(0)
    layer = kind(1, 8, kernel, padding=kernel // 2)
    images = torch.randn(2, 1, *size).bfloat16().float().requires_grad_()
    upstream = torch.randn(2, 8, *size).bfloat16()
    layer.weight.data = layer.weight.data.bfloat16().float()

    def found():
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(images)
        return output, *torch.autograd.grad(output, (images, *layer.parameters()), upstream)

    exact = layer(images)
    wanted = exact, *torch.autograd.grad(exact, (images, *layer.parameters()), upstream.float())
    monkeypatch.setattr(ssmis.nets.conv, "_least_unrolled", lambda: 3)  # whatever the CPU
    assert layer._unrolls()
    unrolled = found()
    monkeypatch.setattr(kind, "_unrolls", lambda self: False)
    for ours, torchs, true in zip(unrolled, found(), wanted, strict=True):
        assert ours.dtype == torchs.dtype
        assert (ours.float() - true).norm() <= 1.2 * (torchs.float() - true).norm() + 1e-3 * true.norm()


@pytest.mark.parametrize(
    "other",
    [{"stride": 2}, {"dilation": 2}, {"padding": 0}, {"padding_mode": "circular"}, {"in_channels": 2}, {"kernel": 1}],
)
def test_other_convolutions_are_left_to_torch(other, monkeypatch):
    monkeypatch.setattr(ssmis.nets.conv, "_least_unrolled", lambda: 3)
    arguments = {"in_channels": 1, "kernel": 3, "padding": 1} | other
    channels, kernel = arguments.pop("in_channels"), arguments.pop("kernel")
    arguments["padding"] = 0 if kernel == 1 else arguments["padding"]
    torch.manual_seed(0)
    layer = Conv3d(channels, 4, kernel, **arguments)
    theirs = nn.Conv3d(channels, 4, kernel, **arguments)
    theirs.load_state_dict(layer.state_dict())
    images = torch.randn(1, channels, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(images), theirs(images))


@pytest.mark.parametrize(
    ("amx", "bf16", "kernels"), [(True, True, {3, 5, 7}), (False, True, {5, 7}), (False, False, set())]
)
def test_kernels_are_unrolled_where_the_cpu_gains_from_it(amx, bf16, kernels, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    ssmis.nets.conv._least_unrolled.cache_clear()
    assert {size for size in (3, 5, 7) if Conv3d(1, 4, size, padding=size // 2)._unrolls()} == kernels
    ssmis.nets.conv._least_unrolled.cache_clear()


@pytest.mark.parametrize(("kind", "size"), [(Conv2d, (9, 8)), (Conv3d, (9, 8, 10))])
@pytest.mark.parametrize(("channels", "kernel"), [((8, 8), 3), ((16, 2), 3), ((3, 16), 5)])
@pytest.mark.parametrize("low", [False, True])
def test_trainings_on_copies_in_channels_last_are_the_same(kind, size, channels, kernel, low, monkeypatch):
    """The same contiguous maps, and the same contiguous gradients, but for rounding."""
    torch.manual_seed(0)
    layer = kind(*channels, kernel, padding=kernel // 2)
    layer.weight.data = layer.weight.data.bfloat16().float()
    images = torch.randn(2, channels[0], *size).bfloat16().float().requires_grad_()
    upstream = torch.randn(2, channels[1], *size).bfloat16()
    asked = []

    def found(pays):
        monkeypatch.setattr(kind, "_copies_pay", lambda self, low: asked.append(low) or pays)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = layer(images)
        return output, *torch.autograd.grad(output, (images, *layer.parameters()), upstream.to(output.dtype))

    exact = layer.double()(images.double())
    wanted = exact, *torch.autograd.grad(exact, (images, *layer.parameters()), upstream.double())
    layer.float()
    copied, plain = found(True), found(False)
    assert asked == [low, low]
    assert made_copies(copied[0])
    assert not made_copies(plain[0])
    assert all(one.is_contiguous() for one in copied[:2])
    for ours, torchs, true in zip(copied, plain, wanted, strict=True):
        assert ours.dtype == torchs.dtype
        rounding = 1e-3 if low else 1e-6
        assert (ours.double() - true).norm() <= 1.2 * (torchs.double() - true).norm() + rounding * true.norm()


def made_copies(output):
    """Whether a layer had its input cloned, by what its gradient goes through."""
    node, names = output.grad_fn, []
    while node is not None:
        names.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    return "CloneBackward0" in names[names.index("ConvolutionBackward0") :] if names else False


def test_copies_are_for_training_on_contiguous_maps_alone(monkeypatch):
    monkeypatch.setattr(Conv3d, "_copies_pay", lambda self, low: True)
    layer, images = Conv3d(8, 8, 3, padding=1), torch.rand(1, 8, 6, 6, 6).requires_grad_()
    assert made_copies(layer(images))
    with torch.no_grad():
        assert not made_copies(layer(images))
    assert not made_copies(layer(images.detach()))
    assert not made_copies(layer(images.detach().to(memory_format=torch.channels_last_3d).requires_grad_()))
    assert not made_copies(layer(torch.rand(1, 8, 1, 1, 1).requires_grad_()))  # is in both layouts
    assert not made_copies(layer.requires_grad_(False)(images))
    layer.requires_grad_(True).to(memory_format=torch.channels_last_3d)
    assert not made_copies(layer(images))
    assert not made_copies(layer.double()(images.double()))


def test_copies_leave_no_hook_on_what_was_given(monkeypatch):
    monkeypatch.setattr(Conv3d, "_copies_pay", lambda self, low: True)
    layer = Conv3d(2, 4, 3, padding=1)
    for size in (1, 4):
        images = torch.rand(1, 2, size, size, size).requires_grad_()
        layer(images).sum().backward()
        assert not images._backward_hooks


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.GELU()])
def test_copies_know_second_derivatives_and_gradients_that_are_none(activation, monkeypatch):
    """A gradient penalty: a layer's second derivative by its own input does not exist."""
    layers = nn.Sequential(Conv2d(3, 4, 3, padding=1), activation or nn.Identity(), Conv2d(4, 2, 3, padding=1))
    images = torch.rand(1, 3, 6, 6).requires_grad_()
    found = []
    for pays in (True, False):
        monkeypatch.setattr(Conv2d, "_copies_pay", lambda self, low, pays=pays: pays)
        (slope,) = torch.autograd.grad(layers(images).sum(), images, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), layers[0].weight)[0])
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


def test_transforms_and_compilers_see_no_copies(monkeypatch):
    layer, images = Conv3d(2, 4, 3, padding=1), torch.rand(3, 2, 4, 4, 4).requires_grad_()
    plain = layer(images)
    monkeypatch.setattr(Conv3d, "_copies_pay", lambda self, low: True)
    assert made_copies(layer(images))
    each = torch.func.vmap(lambda image: layer(image[None])[0])(images)
    assert torch.allclose(each, plain, atol=1e-6)
    slopes = torch.func.jacfwd(lambda x: layer(x).sum())(images.detach())
    assert torch.allclose(slopes, torch.autograd.grad(plain.sum(), images)[0], atol=1e-5)
    for net in (layer, nn.Sequential(layer)):
        traced = torch.jit.trace(net, images)
        assert "aten::contiguous" not in str(traced.inlined_graph)


@pytest.mark.parametrize(
    ("kind", "arguments", "where"),  # of those of the next test
    [
        (Conv3d, (8, 8, 3), "abc"),
        (Conv3d, (16, 8, 3), "abc"),
        (Conv3d, (24, 24, 3), "abc"),
        (Conv3d, (32, 16, 3), "c"),
        (Conv3d, (2, 40, 3), ""),
        (Conv3d, (40, 2, 3), ""),
        (Conv2d, (8, 8, 3), "ab"),
        (Conv2d, (24, 8, 3), ""),
        (Conv2d, (16, 16, 3), ""),
        (Conv3d, (1, 8, 3), ""),
        (Conv3d, (8, 8, 1), ""),
        (Conv3d, (8, 8, 3, 2), ""),
        (Conv3d, (8, 8, 3, 1, 1, 1, 8), ""),
    ],
)
def test_copies_are_made_where_they_pay(kind, arguments, where, monkeypatch):
    """In bfloat16 with AVX-512 and no tiles; in float32 with AVX-512; with AVX2 alone."""
    layer, found = kind(*arguments), ""
    machines = {"a": ("AVX512", True, False), "b": ("AVX512", False, True), "c": ("AVX2", False, False),
                "d": ("AVX512", True, True), "e": ("AVX2", True, False), "f": ("DEFAULT", False, False)}  # fmt: skip
    for name, (capability, low, tiles) in machines.items():
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles, raising=False)
        found += name * layer._copies_pay(low)
    assert found == where


@pytest.mark.parametrize("shape", [(1, 9, 9, 9), (9, 9, 9), (2, 3, 9, 9, 9)])
def test_input_of_other_shapes_is_treated_as_torch_does(shape):
    """Without a batch, or with channels that do not fit."""
    results = []
    for kind in (Conv3d, nn.Conv3d):
        torch.manual_seed(0)
        layer = kind(1, 4, 7, padding=3)
        with torch.autocast("cpu", torch.bfloat16):
            try:
                results.append(layer(torch.ones(shape)))
            except RuntimeError as error:
                results.append(str(error))
    ours, theirs = results
    assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_guests_are_protected_in_place():
    guest = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Sequential(nn.Conv3d(2, 2, 1)))
    keys = list(guest.state_dict())
    protect_small_maps(guest)
    assert [type(m) for m in guest.modules() if isinstance(m, nn.Conv3d)] == [Conv3d, Conv3d]
    assert list(guest.state_dict()) == keys
    assert type(NetAdapter(nn.Sequential(nn.Conv3d(1, 2, 3, padding=1))).module[0]) is Conv3d


def test_built_in_nets_use_them():
    assert all(type(m) is Conv3d for m in VNet(widths=(2, 4)).modules() if isinstance(m, nn.Conv3d))
