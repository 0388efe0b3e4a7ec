# SPDX-License-Identifier: Apache-2.0
"""The contrast module: it stores what the kernel function takes, and training with it separates the classes."""

import pytest
import torch
from strategies import make_labels, make_logits

from ssmis.kernels import voxel_contrast
from ssmis.losses import VoxelContrast


def example(seed=0):
    features, labels = make_logits(seed, 2, 6, (4, 4)), make_labels(seed, 2, 3, (4, 4), low=-1)
    return features, labels, make_logits(seed + 1, 1, 12, (6,))[0], torch.arange(12) % 3


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"denominator": "negatives"},
        {"normalize": False},
        {"ignore_index": 1},
        {"reduction": "none"},
        {"reduction": "sum", "impl": "reference"},
    ],
)
def test_settings_reach_the_kernel(options):
    arguments = example()
    weight = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    value = VoxelContrast(**options)(*arguments, weight=weight)
    assert torch.equal(value, voxel_contrast(*arguments, weight=weight, **options))
    assert not torch.equal(value, VoxelContrast()(*arguments))


def test_no_anchor_or_no_key_is_an_attached_zero():
    features, labels, keys, key_labels = example()
    features.requires_grad_()
    for own, other in ((torch.full_like(labels, -1), key_labels), (labels, torch.full_like(key_labels, -1))):
        loss = VoxelContrast()(features, own, keys, other)
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss == 0
        assert torch.equal(gradient, torch.zeros_like(features))


@pytest.mark.parametrize("denominator", ["all", "negatives"])
def test_training_moves_classes_apart_and_voxels_of_a_class_together(denominator):
    features, labels, keys, key_labels = example()
    keys = 3 * torch.eye(3, 6)[key_labels] + 0.3 * keys  # a bank whose classes lie apart
    features.requires_grad_()

    def distances():
        unit = torch.nn.functional.normalize(features.detach(), dim=1).movedim(1, -1)[labels >= 0]
        apart = torch.cdist(unit, unit)
        same = labels[labels >= 0][:, None] == labels[labels >= 0]
        return apart[same].mean(), apart[~same].mean()

    within, between = distances()
    loss = VoxelContrast(denominator=denominator, temperature=0.5)
    optimizer = torch.optim.SGD([features], lr=200.0)
    for _ in range(30):
        optimizer.zero_grad()
        loss(features, labels, keys, key_labels).backward()
        optimizer.step()
    new_within, new_between = distances()
    assert new_within < within / 2
    assert new_between > between + 0.1
