# SPDX-License-Identifier: Apache-2.0
"""The cross-attention gate against loops, its positions at other sizes, and the fusion of two nets."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_logits
from torch.nn import functional as F

from ssmis.nets import CrossAttentionGate, FusedNets, FusionHead, GatedFusion, UNet, VNet
from ssmis.uncertainty import vacuity

each_dims = pytest.mark.parametrize("dims", [2, 3])


def make_gate(dims, *, seed=0, size=None, **settings):
    torch.manual_seed(seed)
    arguments = {"patch": 2, "embedding": 8, "heads": 2, "hidden": 6, **settings}
    return CrossAttentionGate(dims=dims, size=size or (4,) * dims, **arguments)


def maps(dims, seed=0, size=None, batch=2):
    return [make_logits(seed + i, batch, 1, size or (4,) * dims).double() for i in range(2)]


def brute(gate, query_map, key_map):
    """The gate of one volume `(*S)` each, patch by patch and head by head."""
    patch = gate.patch
    corners = list(itertools.product(*(range(0, n, own) for n, own in zip(query_map.shape, patch))))
    cut = {c: tuple(slice(at, at + own) for at, own in zip(c, patch)) for c in corners}

    def token(volume, corner):
        place = gate.positions[(0, slice(None), *(at // own for at, own in zip(corner, patch)))]
        return gate.embed.weight.flatten(1) @ volume[cut[corner]].flatten() + gate.embed.bias + place

    keys = [gate.key_value(token(key_map, c)) for c in corners]
    width = len(gate.query.bias)
    each = width // gate.heads
    result = torch.zeros_like(query_map)
    for corner in corners:
        asked, parts = gate.query(token(query_map, corner)), []
        for h in range(gate.heads):
            own = slice(h * each, (h + 1) * each)
            keys_h = [both.unflatten(0, (gate.heads, -1))[h, :each] for both in keys]
            values_h = [both.unflatten(0, (gate.heads, -1))[h, each:] for both in keys]
            scores = torch.stack([asked[own] @ key / math.sqrt(each) for key in keys_h]).softmax(0)
            parts.append(sum(s * v for s, v in zip(scores, values_h)))
        answer = gate.merge(torch.cat(parts))
        answer = answer + gate.perceptron(answer)
        result[cut[corner]] = gate.spread(answer).view(patch)
    return result


@each_dims
@pytest.mark.parametrize("patch", [2, (4, 3, 1)])
def test_the_gate_equals_a_loop_over_patches_and_heads(dims, patch):
    size = (4, 6, 2)[:dims]
    gate = make_gate(dims, size=size, patch=patch if isinstance(patch, int) else patch[:dims]).double()
    query_map, key_map = maps(dims, size=size)
    found = gate(query_map, key_map)
    assert found.shape == query_map.shape
    for i in range(2):
        torch.testing.assert_close(found[i, 0], brute(gate, query_map[i, 0], key_map[i, 0]))


@each_dims
def test_gradient_reaches_both_maps_and_every_parameter(dims):
    gate = make_gate(dims).double()
    first, second = (m.requires_grad_() for m in maps(dims))
    gate(first, second).square().sum().backward()
    for tensor in (first, second, *gate.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


@each_dims
@given(factors=st.tuples(*[st.integers(1, 3)] * 3))
def test_any_divisible_size_works_and_another_is_refused(dims, factors):
    gate = make_gate(dims).double()
    size = tuple(2 * f for f in factors[:dims])
    assert gate(*maps(dims, size=size)).shape == (2, 1, *size)
    with pytest.raises(ValueError, match=r"query_map has spatial size .* each a multiple of patch 2"):
        gate(*maps(dims, size=(size[0] + 1, *size[1:])))


def test_positions_of_another_grid_are_interpolated():
    gate = make_gate(2, size=(4, 4)).double()
    expected = F.interpolate(gate.positions, size=(3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(gate._positions((3, 5)), expected)
    assert gate._positions((2, 2)) is gate.positions
    with torch.no_grad():
        gate.positions.copy_(gate.positions[..., :1, :1].expand_as(gate.positions))
    # where all positions are alike, patches may be permuted: whole maps may be rolled by patches
    first, second = maps(2, size=(6, 10))
    rolled = gate(first.roll((2, 4), (2, 3)), second)
    torch.testing.assert_close(rolled, gate(first, second).roll((2, 4), (2, 3)))


def test_dropout_is_off_in_eval_mode_and_on_the_gate_in_training():
    gate = make_gate(2, dropout=0.5).double()
    first, second = maps(2)
    assert (gate(first, second) == 0).any()
    gate.eval()
    assert torch.equal(gate(first, second), gate(first, second))
    assert not (gate(first, second) == 0).any()


def test_the_gate_starts_around_one():
    gate = make_gate(3, embedding=32, heads=4)
    assert (gate(*(m.float() for m in maps(3))) - 1).abs().mean() < 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"embedding": 9}, "embedding 9"),
        ({"patch": 0}, "patch is 0"),
        ({"patch": (2, 2, 2)}, "patch a number or 2"),
        ({"patch": (2, 4), "size": (4, 6)}, r"each a multiple of patch \(2, 4\)"),
        ({"dropout": 2.0}, "dropout is 2"),
        ({"size": (4, 5)}, r"size has spatial size \(4, 5\)"),
        ({"size": (4, 4, 4)}, "expected 2 axes"),
    ],
)
def test_impossible_gates_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make_gate(2, **settings)


def test_maps_that_do_not_fit_are_named():
    gate = make_gate(2).double()
    first, second = maps(2)
    with pytest.raises(ValueError, match="key_map has shape"):
        gate(first, second[:1])
    with pytest.raises(ValueError, match=r"query_map has shape \(2, 2, 4, 4\); expected \(B, 1, \*S\)"):
        gate(first.repeat(1, 2, 1, 1), second.repeat(1, 2, 1, 1))


@each_dims
def test_the_head_is_one_map_for_all_voxels(dims):
    head = FusionHead(3, dims=dims, widths=(5, 4), norm="none").double()
    joined = make_logits(0, 2, 6, (4,) * dims).double()
    order = torch.randperm(4**dims, generator=torch.Generator().manual_seed(0))
    shuffled = joined.flatten(2)[..., order].view_as(joined)
    torch.testing.assert_close(head(shuffled), head(joined).flatten(2)[..., order].view(2, 3, *joined.shape[2:]))


@given(st.integers(0, 2**31))
def test_only_an_activated_head_squeezes_negative_logits(seed):
    joined = make_logits(seed, 4, 4, (4, 4))
    lows = {}
    for activated in (False, True):
        torch.manual_seed(0)
        head = FusionHead(2, dims=2, widths=(8,), activated=activated)
        assert isinstance(head.layers[-1], torch.nn.LeakyReLU) == activated
        with torch.no_grad():
            for layer in head.layers:  # the last norm or bias shifts everything far down
                if getattr(layer, "bias", None) is not None and len(layer.bias) == 2:
                    layer.bias.fill_(-100)
        lows[activated] = head(joined).mean()
    assert lows[True] > -25
    assert lows[False] < -75


def fused(dims, classes=2):
    torch.manual_seed(0)
    nets = UNet(1, classes, dims=dims, widths=(2, 4)), VNet(1, classes, dims=dims, widths=(2, 4), dropout=0.0)
    fusion = GatedFusion(make_gate(dims), FusionHead(classes, dims=dims, widths=(4,)), uncertainty=vacuity)
    return FusedNets(nets, fusion, names=("unet", "vnet"))


@each_dims
def test_fused_nets_are_one_net_whose_loss_reaches_all_parts(dims):
    net = fused(dims, classes=3)
    images = make_logits(0, 2, 1, (8,) * dims)
    output = net(images)
    assert output.logits.shape == (2, 3, *images.shape[2:])
    assert list(output.heads) == ["unet", "vnet"]
    output.logits.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
    for part in (*net.nets, net.fusion.gate, net.fusion.head):
        assert max(p.grad.abs().max() for p in part.parameters()) > 0


def test_fused_logits_are_the_head_of_gated_logits():
    net = fused(2).eval()
    output = net(make_logits(0, 2, 1, (8, 8)))
    first, second = output.heads.values()
    gate = net.fusion.gate(vacuity(first)[:, None], vacuity(second)[:, None])
    expected = net.fusion.head(torch.cat([gate * first, gate * second], 1))
    torch.testing.assert_close(output.logits, expected)


def test_wrong_parts_are_named():
    with pytest.raises(ValueError, match="classes is 1"):
        FusionHead(1, dims=2)
    with pytest.raises(ValueError, match=r"widths is \(0,\)"):
        FusionHead(2, dims=2, widths=(0,))
    with pytest.raises(ValueError, match="nets has 1"):
        FusedNets([UNet(dims=2, widths=(2, 4))], torch.nn.Identity())
    with pytest.raises(ValueError, match="second_logits has shape"):
        fused(2).fusion(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
