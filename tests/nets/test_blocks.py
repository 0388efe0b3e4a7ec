# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssmis.nets.blocks import conv, conv_stack, crop, norm_layer, pad_to_multiple, up_conv
from ssmis.nets.conv import Conv2d


@given(
    size=st.sampled_from([2, 3]).flatmap(lambda dims: st.tuples(*[st.integers(1, 9)] * dims)),
    multiple=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_crop_undoes_the_smallest_padding_with_zeros(size, multiple, seed):
    images = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(seed))
    padded = pad_to_multiple(images, multiple)
    assert all(n % multiple == 0 and n - m < multiple for n, m in zip(padded.shape[2:], size))
    assert torch.equal(crop(padded, size), images)
    assert padded.abs().sum() == pytest.approx(float(images.abs().sum()), rel=1e-5)


def test_sizes_that_fit_are_neither_padded_nor_copied():
    images = torch.zeros(1, 1, 8, 16)
    assert pad_to_multiple(images, 8) is images
    assert crop(images, (8, 16)) is images


def test_padding_keeps_channels_last():
    images = torch.zeros(1, 4, 5, 6, 7).to(memory_format=torch.channels_last_3d)
    assert pad_to_multiple(images, 4).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions_keep_halve_and_double_the_size(dims):
    features = torch.zeros(1, 3, *[8] * dims)
    for size in (1, 3, 7):
        assert conv(3, 5, size, dims=dims)(features).shape == (1, 5, *[8] * dims)
    for size in (1, 2, 3):
        assert conv(3, 5, size, stride=2, dims=dims)(features).shape == (1, 5, *[4] * dims)
    assert up_conv(3, 5, dims=dims)(features).shape == (1, 5, *[16] * dims)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 12, 16, 48])
def test_group_norm_has_two_or_more_channels_a_group(channels):
    layer = norm_layer("group", channels, dims=3)
    assert channels % layer.num_groups == 0
    assert channels // layer.num_groups >= min(2, channels)
    assert layer.num_groups <= 8


def test_conv_stack_is_convolution_norm_activation():
    stack = conv_stack(1, 4, 2, norm="batch", dims=2)
    kinds = [type(layer) for layer in stack.modules() if not isinstance(layer, nn.Sequential)]
    assert kinds == [Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
