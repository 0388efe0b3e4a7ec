# SPDX-License-Identifier: Apache-2.0
"""The four built-in nets: parameter counts, sizes, features, gradients, refusals."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmis.engine.runtime import cpu_has_fast_bf16
from ssmis.nets import ResNetUNet, TimmUNet, UNet, VNet
from ssmis.nets.decoder import AdditiveDecoder
from ssmis.registry import NETS

TINY = {"widths": (2, 4, 4, 4, 4)}
BUILDERS = {
    "vnet": lambda **settings: VNet(**{**TINY, **settings}),
    "resnet_unet": lambda **settings: ResNetUNet(**{**TINY, "blocks": (1, 2, 1, 1), **settings}),
    "unet": lambda **settings: UNet(**{**TINY, **settings}),
}
each_net = pytest.mark.parametrize("name", list(BUILDERS))
each_dims = pytest.mark.parametrize("dims", [2, 3])


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, *, seed: int = 0, **settings):
    torch.manual_seed(seed)
    return BUILDERS[name](**settings)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("net", "count"), [(VNet, 9_448_866), (ResNetUNet, 17_930_354)])
def test_default_networks_have_the_published_number_of_parameters(net, count):
    assert parameters(net()) == count


def test_both_networks_of_the_dual_recipe_share_the_decoder():
    assert type(VNet(**TINY).decoder) is type(ResNetUNet(**TINY).decoder) is AdditiveDecoder


@pytest.mark.parametrize("name", ["vnet", "resnet_unet", "unet"])
def test_registered_nets_need_no_arguments(name):
    net = NETS.create(name)
    assert (net.in_channels, net.classes, net.dims) == (1, 2, 3)


@each_net
@given(
    size=st.sampled_from([2, 3]).flatmap(lambda dims: st.tuples(*[st.integers(17, 36)] * dims)),
    batch=st.integers(1, 2),
    classes=st.integers(2, 4),
    channels=st.integers(1, 3),
)
def test_any_size_gives_outputs_of_that_size(name, size, batch, classes, channels):
    net = build(name, in_channels=channels, classes=classes, dims=len(size)).eval()
    with torch.no_grad():
        output = net(images(batch, channels, *size))
    assert output.logits.shape == (batch, classes, *size)
    assert output.features.shape == (batch, 2, *size)
    assert [tuple(level.shape) for level in output.pyramid] == [
        (batch, width, *(-(-n // stride) for n in size)) for width, stride in zip(TINY["widths"], (1, 2, 4, 8, 16))
    ]


@each_net
def test_padding_is_appended_and_cropped(name):
    net = build(name).eval()
    small = images(1, 1, 17, 20, 30)
    padded = torch.zeros(1, 1, 32, 32, 32)
    padded[..., :17, :20, :30] = small
    with torch.no_grad():
        torch.testing.assert_close(net(small).logits, net(padded).logits[..., :17, :20, :30])


@each_net
@each_dims
def test_features_are_taken_before_the_final_dropout(name, dims):
    net = build(name, dims=dims, dropout=0.75)
    output = net.eval()(images(4, 1, *[16] * dims))
    torch.testing.assert_close(net.head(output.features), output.logits)

    seen = []
    net.dropout.register_forward_hook(lambda module, args, result: seen.append((args[0], result)))
    trained = net.train()(images(4, 1, *[16] * dims))
    before, after = seen[0]
    assert trained.features is before
    assert before.flatten(2).ne(0).any(2).all()
    assert after.flatten(2).eq(0).all(2).any()
    torch.testing.assert_close(net.head(after), trained.logits)


@each_net
def test_final_dropout_leaves_the_features_alone(name):
    net = build(name, dropout=0.5).train()
    net.bottleneck_dropout.p = 0.0
    batch = images(2, 1, 16, 16, 32)
    torch.manual_seed(1)
    first = net(batch)
    torch.manual_seed(2)
    second = net(batch)
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.logits, second.logits)
    assert first.features.flatten(2).amax(2).gt(0).any(0).all()


def test_only_the_vnet_and_the_unet_drop_channels_of_the_bottleneck():
    assert VNet(**TINY).bottleneck_dropout.p == 0.5
    assert ResNetUNet(**TINY).bottleneck_dropout.p == 0.0
    assert ResNetUNet(**TINY).dropout.p == 0.5
    assert UNet(**TINY, dropout=0.25).bottleneck_dropout.p == 0.25


@each_net
@each_dims
def test_gradient_reaches_every_parameter(name, dims):
    net = build(name, dims=dims, dropout=0.0).train()
    output = net(images(2, 1, *[32] * dims))
    (output.logits * images(*output.logits.shape, seed=3)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    silent = [name for name, p in net.named_parameters() if p.ndim > 1 and p.grad.abs().max() == 0]
    assert silent == []


@each_net
@each_dims
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_every_norm_runs_and_trains(name, dims, norm):
    net = build(name, dims=dims, norm=norm).train()
    net(images(2, 1, *[32] * dims)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@each_net
@each_dims
def test_compiles_without_a_graph_break(name, dims):
    small = {"widths": (2, 3), "blocks": (1,)} if name == "resnet_unet" else {"widths": (2, 3)}
    net = build(name, dims=dims, dropout=0.0, **small)
    reference = copy.deepcopy(net)
    batch = images(2, 1, *[7] * dims)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(batch)
    expected = reference(batch)
    torch.testing.assert_close(compiled.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert [level.shape for level in compiled.pyramid] == [level.shape for level in expected.pyramid]


@each_net
def test_memory_format_survives_and_bf16_autocast_is_close(name):
    net = build(name, widths=(4, 8, 8, 8, 8)).eval().to(memory_format=torch.channels_last_3d)
    batch = images(2, 1, 48, 48, 48)  # the coarsest map is as large as its kernel: smaller ones are float32
    with torch.no_grad():
        reference = net(batch)
        with torch.autocast("cpu", torch.bfloat16):
            fast = net(batch.to(memory_format=torch.channels_last_3d))
    for level in (fast.features, *fast.pyramid):
        assert level.dtype == torch.bfloat16
        if cpu_has_fast_bf16():  # elsewhere torch computes bfloat16 in a layout of its own
            assert level.is_contiguous(memory_format=torch.channels_last_3d)
    error = (fast.logits - reference.logits).norm() / reference.logits.norm()
    assert error < 0.1


@each_net
def test_evaluation_is_deterministic_and_nets_can_be_copied_and_pickled(name):
    net = build(name).eval()
    batch = images(1, 1, 16, 17, 18)
    with torch.no_grad():
        first = net(batch).logits
        for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(batch).logits, first)


@each_net
def test_volumes_of_a_batch_do_not_mix_in_eval_mode(name):
    net = build(name).eval()
    batch = images(3, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(batch[1:2]).logits, net(batch).logits[1:2], atol=1e-5, rtol=1e-4)


@each_net
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dims": 4}, "dims is 4; expected 2 or 3"),
        ({"classes": 1}, "classes is 1; expected at least 2"),
        ({"in_channels": 0}, "in_channels is 0; expected at least 1"),
        ({"norm": "layer"}, "norm is 'layer'; expected one of 'batch'"),
        ({"dropout": 1.5}, "dropout is 1.5; expected a number in"),
        ({"widths": (4,)}, "widths is .* expected at least 2"),
        ({"widths": (4, 0)}, "widths is .* expected at least 2"),
    ],
)
def test_impossible_settings_are_refused(name, settings, words):
    with pytest.raises(ValueError, match=words):
        build(name, **settings)


def test_resnet_refuses_blocks_that_do_not_fit_the_widths():
    with pytest.raises(ValueError, match=r"blocks is \(1, 2\); expected 4 numbers"):
        ResNetUNet(**TINY, blocks=(1, 2))
    with pytest.raises(ValueError, match=r"blocks is \(1, 0, 1, 1\)"):
        ResNetUNet(**TINY, blocks=(1, 0, 1, 1))


@each_net
def test_wrong_images_are_refused(name):
    net = build(name, in_channels=2)
    with pytest.raises(ValueError, match=r"images has 1 channels \(shape \(1, 1, 16, 16, 16\)\); expected 2"):
        net(images(1, 1, 16, 16, 16))
    with pytest.raises(ValueError, match=r"with 4 axes; expected 5: \(B, 2, D, H, W\)"):
        net(images(1, 2, 16, 16))


@each_net
def test_a_bottleneck_of_one_voxel_is_refused_where_a_norm_would_fail(name):
    one_voxel = images(1, 1, 16, 16, 16)
    for mode in (True, False):
        with pytest.raises(ValueError, match="one value a channel at the coarsest level"):
            build(name, norm="instance").train(mode)(one_voxel)
    with pytest.raises(ValueError, match="norm 'batch'"):
        build(name, norm="batch").train()(one_voxel)
    for net in (build(name).eval(), build(name, norm="group").train(), build(name, norm="none").train()):
        assert net(one_voxel).logits.isfinite().all()
    assert build(name).train()(one_voxel.expand(2, -1, -1, -1, -1)).logits.isfinite().all()


def test_timm_net_is_a_table_entry_of_two_dims():
    assert NETS["timm_unet"].factory is TimmUNet
    assert NETS["timm_unet"].example.dims == (2,)


@pytest.mark.parametrize("build", [UNet, VNet, ResNetUNet])
def test_an_axis_of_thick_slices_can_keep_its_resolution(build):
    torch.manual_seed(0)
    pooling, kernels = ((2, 2, 1), (2, 2, 1), (2, 2, 2), 2), ((3, 3, 1), (3, 3, 1), 3, 3, 3)
    net = build(widths=(4, 6, 8, 8, 8), pooling=pooling, kernels=kernels)
    output = net(torch.rand(2, 1, 21, 24, 9))
    assert output.logits.shape == (2, 2, 21, 24, 9)
    assert [level.shape[4] for level in output.pyramid] == [9, 9, 9, 5, 3]
    output.logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("build", [UNet, VNet])
def test_slices_do_not_mix_where_neither_kernel_nor_pooling_crosses_them(build):
    torch.manual_seed(0)
    flat = [(2, 2, 1)] * 4, [(3, 3, 1)] * 5
    net = build(widths=(4, 6, 8, 8, 8), pooling=flat[0], kernels=flat[1]).eval()
    images = torch.rand(1, 1, 16, 16, 4)
    changed = images.clone()
    changed[..., 2] += 1
    moved = (net(changed).logits - net(images).logits).abs().amax((0, 1, 2, 3)) > 0
    assert moved.tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"pooling": [2, 2]}, "pooling has 2 entries; expected 4"),
        ({"kernels": [3, 3, 3, 3, 2]}, "kernels has 2; expected odd lengths"),
        ({"pooling": [2, 2, 2, (2, 2)]}, r"pooling is \(2, 2\); expected 3 numbers"),
    ],
)
def test_levels_that_do_not_fit_are_named(arguments, told):
    with pytest.raises(ValueError, match=told):
        UNet(widths=(4, 6, 8, 8, 8), **arguments)
