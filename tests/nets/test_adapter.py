# SPDX-License-Identifier: Apache-2.0
import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssmis.nets import EMA, NetAdapter


class Guest(nn.Module):
    """A third-party net; `shape` turns (logits, coarse logits, images) into what it returns."""

    def __init__(self, shape=lambda logits, coarse, images: logits, *, dims: int = 2) -> None:
        super().__init__()
        layer = nn.Conv2d if dims == 2 else nn.Conv3d
        self.body = nn.ModuleDict({"stem": layer(1, 3, 3, padding=1), "deep": layer(3, 3, 2, stride=2)})
        self.unused = layer(1, 1, 1)
        self.head = layer(3, 2, 1)
        self.shape = shape

    def forward(self, images):
        features = self.body["stem"](images)
        deep = self.body["deep"](features)
        return self.shape(self.head(features.relu()), self.head(deep), images)


def images(dims: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 1, *[6] * dims, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_net_that_returns_logits_is_wrapped(dims):
    guest = Guest(dims=dims)
    batch = images(dims)
    output = NetAdapter(guest)(batch)
    assert torch.equal(output.logits, guest(batch))
    assert output.features is None
    assert output.pyramid == ()
    assert output.heads == {}


@pytest.mark.parametrize("dims", [2, 3])
def test_a_named_layer_gives_the_features_with_gradient(dims):
    guest = Guest(dims=dims)
    adapter = NetAdapter(guest, features="body.stem")
    for seed in range(3):
        output = adapter(images(dims, seed))
        assert torch.equal(output.features, guest.body["stem"](images(dims, seed)))
    output.features.square().sum().backward()
    assert guest.body["stem"].weight.grad.abs().max() > 0
    assert guest.head.weight.grad is None


def test_coarse_features_are_upsampled_to_the_images():
    guest = Guest()
    output = NetAdapter(guest, features="body.deep")(images())
    coarse = guest.body["deep"](guest.body["stem"](images()))
    assert coarse.shape[2:] == (3, 3)
    torch.testing.assert_close(output.features, F.interpolate(coarse, size=(6, 6), mode="bilinear"))


def test_a_deep_copy_captures_its_own_features():
    adapter = NetAdapter(Guest(), features="body.stem")
    teacher = EMA(adapter)
    with torch.no_grad():
        adapter.module.body["stem"].weight.zero_()
        adapter.module.body["stem"].bias.fill_(7.0)
    expected = teacher.module.module.body["stem"](images())
    assert torch.equal(teacher(images()).features, expected)
    assert adapter(images()).features.eq(7).all()
    assert teacher(images()).features.ne(7).any()
    assert copy.deepcopy(adapter)(images()).features.eq(7).all()


def test_nothing_is_held_between_two_passes():
    adapter = NetAdapter(Guest(), features="body.stem")
    held = weakref.ref(adapter(images()).features)
    gc.collect()
    assert held() is None


@pytest.mark.parametrize(
    ("shape", "logits", "heads"),
    [
        (lambda z, coarse, x: (z, coarse), None, {"1"}),
        (lambda z, coarse, x: [z, coarse, x, None], None, {"1"}),
        (lambda z, coarse, x: (coarse, z), 1, {"0"}),
        (lambda z, coarse, x: {"logits": z, "aux": coarse, "loss": z.sum()}, None, {"aux"}),
        (lambda z, coarse, x: {"out": z, "aux": coarse}, "out", {"aux"}),
        (lambda z, coarse, x: torch.stack([z, 2 * z], dim=1), None, {"1"}),
    ],
)
def test_logits_are_found_among_other_outputs(shape, logits, heads):
    plain = Guest()
    adapter = NetAdapter(Guest(shape), logits=logits)
    adapter.module.load_state_dict(plain.state_dict())
    output = adapter(images())
    assert torch.equal(output.logits, plain(images()))
    assert set(output.heads) == heads
    assert all(head.shape == output.logits.shape for head in output.heads.values())


def test_the_original_keeps_its_parameter_names():
    guest = Guest()
    assert set(NetAdapter(guest, features="head").state_dict()) == {f"module.{name}" for name in guest.state_dict()}


@pytest.mark.parametrize("name", ["body.stm", "bdy.stem", ""])
def test_an_unknown_layer_is_refused_with_the_nearest_names(name):
    with pytest.raises(
        ValueError, match="which Guest does not have; .*module" if not name else r"did you mean 'body\."
    ):
        NetAdapter(Guest(), features=name)


@pytest.mark.parametrize(
    ("shape", "logits", "words"),
    [
        (lambda z, coarse, x: z[:, :1], None, r"shape \(2, 1, 6, 6\) as logits; expected .*\(2, K >= 2, 6, 6\)"),
        (lambda z, coarse, x: coarse, None, r"shape \(2, 2, 3, 3\) as logits"),
        (lambda z, coarse, x: z.argmax(1), None, r"torch.int64 of shape \(2, 6, 6\) as logits"),
        (lambda z, coarse, x: z.mean((2, 3)), None, r"shape \(2, 2\) as logits"),
        (lambda z, coarse, x: "mask", None, "returned str as logits"),
        (lambda z, coarse, x: {"out": z, "aux": z}, None, r"logits is 'logits', .*returns \['out', 'aux'\]"),
        (lambda z, coarse, x: (z, z), 2, r"logits is '2', .*returns \['0', '1'\]"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(shape, logits, words):
    with pytest.raises(ValueError, match=words):
        NetAdapter(Guest(shape), logits=logits)(images())


def test_layers_that_give_no_map_are_refused():
    with pytest.raises(ValueError, match="features is 'unused', a layer that did not run"):
        NetAdapter(Guest(), features="unused")(images())
    net = nn.Sequential(nn.Sequential(nn.Flatten()), nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 2, 1))
    with pytest.raises(ValueError, match=r"features is '0', .*shape \(2, 36\); expected a map \(B, E, \*S\)"):
        NetAdapter(net, features="0")(images())


@pytest.mark.parametrize("features", [None, "body.stem"])
def test_compiles_without_a_graph_break(features):
    adapter = NetAdapter(Guest(lambda z, coarse, x: (z, coarse)), features=features)
    torch._dynamo.reset()
    compiled = torch.compile(adapter, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        expected, output = adapter(images(seed=seed)), compiled(images(seed=seed))
        torch.testing.assert_close(output.logits, expected.logits)
        torch.testing.assert_close(output.heads["1"], expected.heads["1"])
        if features:
            torch.testing.assert_close(output.features, expected.features)


def test_a_monai_net_is_a_guest():
    nets = pytest.importorskip("monai.networks.nets", reason="monai is not installed")
    guest = nets.BasicUNet(spatial_dims=2, in_channels=1, out_channels=3, features=(4, 4, 4, 4, 4, 4))
    adapter = NetAdapter(guest, features="upcat_1").train()
    batch = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    output = adapter(batch)
    assert output.logits.shape == (2, 3, 32, 32)
    torch.testing.assert_close(guest.final_conv(output.features), output.logits)
