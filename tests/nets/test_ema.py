# SPDX-License-Identifier: Apache-2.0
import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssmis.nets import EMA, VNet


def student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout2d(0.5))


def shake(net: nn.Module, generator: torch.Generator) -> None:
    """Change every parameter and buffer."""
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    net.train()(torch.randn(2, 1, 6, 6, generator=generator))


@given(decay=st.floats(0, 1), warmup=st.booleans(), steps=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_average_is_the_recursion_over_parameters_and_buffers(decay, warmup, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    net = student()
    ema = EMA(net, decay=decay, warmup=warmup)
    expected = {name: tensor.double() for name, tensor in net.state_dict().items()}
    for n in range(steps):
        shake(net, generator)
        ema.update(net)
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        for name, tensor in net.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = d * expected[name] + (1 - d) * tensor.double() if floating else tensor.double()
    assert int(ema.steps) == steps
    for name, tensor in ema.module.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], atol=1e-5, rtol=1e-5)


def test_integer_buffers_are_copied_and_float_buffers_averaged():
    net = student()
    ema = EMA(net, decay=0.5, warmup=False)
    net.train()(torch.full((2, 1, 6, 6), 3.0))
    ema.update(net)
    assert ema.module[1].num_batches_tracked == net[1].num_batches_tracked == 1
    torch.testing.assert_close(ema.module[1].running_mean, 0.5 * net[1].running_mean)
    assert net[1].running_mean.abs().max() > 0


def test_the_copy_is_frozen_in_eval_mode_and_apart_from_the_student():
    net = student()
    ema = EMA(net)
    wrapper = nn.ModuleList([ema]).train()
    assert wrapper.training
    assert not any(module.training for module in ema.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert net.training
    own = {p.data_ptr() for p in ema.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in net.parameters())


def test_update_leaves_the_student_alone_and_builds_no_graph():
    net = student()
    ema = EMA(net, decay=0.5)
    before = copy.deepcopy(net.state_dict())
    ema.update(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad_fn is None and p.is_leaf for p in ema.parameters())


def test_forward_is_that_of_the_averaged_net_and_gradient_passes_to_images():
    net = VNet(widths=(2, 4), dims=2)
    ema = EMA(net)
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    output = ema(images)
    assert torch.equal(output.logits, net.eval()(images).logits)
    output.logits.square().sum().backward()
    assert images.grad.abs().max() > 0
    assert all(p.grad is None for p in ema.parameters())


def test_warm_up_starts_low_and_ends_at_the_decay():
    ema = EMA(student(), decay=0.99)
    assert ema.decay_at(0) == pytest.approx(0.1)
    values = [ema.decay_at(n) for n in range(2000)]
    assert values == sorted(values)
    assert values[-1] == 0.99
    assert EMA(student(), decay=0.99, warmup=False).decay_at(0) == 0.99


def test_progress_step_sets_the_position_in_the_warm_up():
    net = student()
    ema = EMA(net, decay=1.0)
    shake(net, torch.Generator().manual_seed(0))
    ema.update(net, progress_step=90)
    expected = 0.91 * student()[0].weight + 0.09 * net[0].weight
    torch.testing.assert_close(ema.module[0].weight, expected)
    assert int(ema.steps) == 91


def test_state_dict_is_complete():
    generator = torch.Generator().manual_seed(0)
    net = student()
    first = EMA(net, decay=0.9)
    for _ in range(3):
        shake(net, generator)
        first.update(net)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = EMA(student(5), decay=0.9)
    second.load_state_dict(torch.load(file, weights_only=True))
    shake(net, generator)
    first.update(net)
    second.update(net)
    assert int(second.steps) == 4
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_module_that_does_not_match_is_refused():
    ema = EMA(student())
    with pytest.raises(ValueError, match=r"lacks \['1\.bias'.*and has \[\]"):
        ema.update(nn.Sequential(nn.Conv2d(1, 3, 3)))
    with pytest.raises(ValueError, match=r"0\.weight has shape \(3, 1, 5, 5\); expected \(3, 1, 3, 3\)"):
        ema.update(nn.Sequential(nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3)))
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        EMA(student(), decay=1.5)


def test_double_student_updates_a_float_copy():
    net = student()
    ema = EMA(net, decay=0.5, warmup=False)
    ema.update(copy.deepcopy(net).double())
    assert {p.dtype for p in ema.parameters()} == {torch.float32}
    torch.testing.assert_close(ema.module[0].weight, net[0].weight.detach())
