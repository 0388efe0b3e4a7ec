# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch

from ssmis.nets import TimmUNet
from ssmis.nets.timm_unet import InterpolatingDecoder


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


TINY = {"widths": (4, 4, 8, 8, 8)}
ENCODERS = {
    "resnet18": (2, 4, 8, 16, 32),
    "convnext_atto": (4, 8, 16, 32),
    "mobilenetv3_small_050": (2, 4, 8, 16, 32),
    "vgg11": (1, 2, 4, 8, 16, 32),
}


@pytest.mark.parametrize(("encoder", "strides"), list(ENCODERS.items()))
def test_encoders_of_any_first_stride_reach_full_resolution(timm, encoder, strides):
    net = TimmUNet(encoder, 2, 3, **TINY).eval()
    with torch.no_grad():
        output = net(images(1, 2, 45, 70))
        torch.testing.assert_close(net.head(output.features), output.logits)
    assert net.strides == strides
    assert output.logits.shape == (1, 3, 45, 70)
    assert output.features.shape == (1, 4, 45, 70)
    assert [level.shape[2:] for level in output.pyramid] == [(-(-45 // s), -(-70 // s)) for s in strides]
    assert [level.shape[1] for level in output.pyramid] == net.encoder.channels


def test_channels_last_encoders_are_turned_round(timm):
    net = TimmUNet("swin_tiny_patch4_window7_224", encoder_options={"img_size": 64, "depths": (1, 1, 1, 1)}, **TINY)
    assert net.encoder.channels_last
    output = net.eval()(images(1, 1, 64, 64))
    assert [tuple(level.shape[1:]) for level in output.pyramid] == [
        (96, 16, 16),
        (192, 8, 8),
        (384, 4, 4),
        (768, 2, 2),
    ]
    assert output.logits.shape == (1, 2, 64, 64)


def test_encoders_with_equal_strides_work(timm):
    options = {"img_size": 32, "depth": 3}
    net = TimmUNet("vit_tiny_patch16_224", encoder_options=options, **TINY).eval()
    assert net.strides == (16, 16, 16)
    assert net(images(1, 1, 32, 32)).logits.shape == (1, 2, 32, 32)


@pytest.mark.parametrize("strides", [(1, 2, 4), (4, 8), (14,), (14, 14), (7, 14)])
def test_decoder_ends_at_stride_one_with_the_first_width(strides):
    decoder = InterpolatingDecoder([3] * len(strides), strides, (2, 4, 6), norm="batch")
    maps = [images(2, 3, 56 // s, 56 // s) for s in strides]
    assert decoder(maps).shape == (2, 2, 56, 56)


def test_gradient_reaches_every_parameter(timm):
    net = TimmUNet("resnet18", encoder_options={"zero_init_last": False}, **TINY).train()
    output = net(images(2, 1, 64, 64))
    (output.logits * images(*output.logits.shape)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert [name for name, p in net.named_parameters() if p.ndim > 1 and p.grad.abs().max() == 0] == []


def test_compiles_without_a_graph_break(timm):
    net = TimmUNet("resnet18", **TINY).eval()
    batch = images(1, 1, 40, 33)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(batch)
        torch.testing.assert_close(compiled.logits, net(batch).logits, atol=1e-4, rtol=1e-4)


def test_mistakes_are_named(timm):
    with pytest.raises(ValueError, match=r"encoder is 'resnet1888', .*did you mean 'resnet"):
        TimmUNet("resnet1888")
    with pytest.raises(ValueError, match="in_channels is 0"):
        TimmUNet(in_channels=0)
    with pytest.raises(ValueError, match="classes is 1"):
        TimmUNet(classes=1)
    with pytest.raises(ValueError, match=r"with 5 axes; expected 4: \(B, 1, H, W\)"):
        TimmUNet("mobilenetv3_small_050")(images(1, 1, 32, 32, 32))
    net = TimmUNet("mobilenetv3_small_050", norm="group")
    with pytest.raises(ValueError, match=r"for norm 'batch'; expected .* more than one a step: the encoder has"):
        net(images(1, 1, 32, 32))
    assert net(images(2, 1, 32, 32)).logits.shape == (2, 2, 32, 32)
    assert net.eval()(images(1, 1, 32, 32)).logits.shape == (1, 2, 32, 32)


def test_a_missing_timm_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'2-D encoders needs timm: pip install "ssmis\[timm\]"'):
        TimmUNet()
