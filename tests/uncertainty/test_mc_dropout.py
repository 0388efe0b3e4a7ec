# SPDX-License-Identifier: Apache-2.0
"""Monte-Carlo dropout leaves no trace and measures what the draws disagree on."""

import pytest
import torch
from torch import nn

from ssmis.nets.output import NetOutput
from ssmis.uncertainty import entropy, mc_dropout


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return NetOutput(self.net(images))


def make_net(rate=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.Dropout2d(rate), nn.Conv2d(8, 3, 1))


def test_modes_buffers_and_random_state_are_as_before(generator):
    net, images = make_net(), torch.randn(2, 1, 4, 4, generator=generator)
    net.train()
    net[1].eval()
    modes, buffers = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    mc_dropout(net, images, samples=3)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_are_restored_after_an_error():
    net = make_net().train()
    with pytest.raises(RuntimeError):
        mc_dropout(net, torch.zeros(1, 5, 4, 4))
    assert all(module.training for module in net.modules())


def test_the_seed_decides(generator):
    net, images = make_net(), torch.randn(2, 1, 4, 4, generator=generator)
    first, again, other = (mc_dropout(net, images, samples=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.probs, again.probs)
    assert not torch.equal(first.probs, other.probs)
    wrapped = mc_dropout(Wrapped(net), images, samples=4, seed=1)
    assert torch.equal(first.probs, wrapped.probs)


def test_uncertainties_are_in_range_and_consistent(generator):
    net, images = make_net(), torch.randn(2, 1, 4, 4, generator=generator)
    result = mc_dropout(net, images, samples=6)
    torch.testing.assert_close(result.probs.sum(1), torch.ones(2, 4, 4))
    assert result.mutual_information.max() > 0
    assert result.mutual_information.ge(0).all()
    assert result.mutual_information.le(result.entropy + 1e-6).all()
    assert result.entropy.le(1).all()
    assert not result.probs.requires_grad


def test_one_draw_has_no_mutual_information(generator):
    net, images = make_net(), torch.randn(1, 1, 4, 4, generator=generator)
    result = mc_dropout(net, images, samples=1)
    assert not result.mutual_information.any()
    net[2].p = 1e-9
    torch.testing.assert_close(mc_dropout(net, images, samples=3).entropy, entropy(net.eval()(images)).detach())


def test_a_net_without_dropout_and_no_samples_are_refused():
    with pytest.raises(ValueError, match="no dropout"):
        mc_dropout(make_net(rate=0.0), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="samples"):
        mc_dropout(make_net(), torch.zeros(1, 1, 4, 4), samples=0)
