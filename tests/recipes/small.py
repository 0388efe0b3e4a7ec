# SPDX-License-Identifier: Apache-2.0
"""Small nets and batches for tests of recipes and of the engine."""

import torch

from ssmis.data import Batch
from ssmis.nets import ResNetUNet, VNet


def small_nets(*, names=("resnet", "vnet"), dims=2, classes=2, dropout=0.0, norm="batch", seed=0):
    """One or two small nets, named."""
    torch.manual_seed(seed)
    kinds = {
        "resnet": lambda: ResNetUNet(
            1, classes, dims=dims, widths=(4, 4, 8), blocks=(1, 1), norm=norm, dropout=dropout
        ),
        "vnet": lambda: VNet(1, classes, dims=dims, widths=(4, 4, 8), norm=norm, dropout=dropout),
    }
    return {name: kinds[name]() for name in names}


def small_batch(step=0, *, dims=2, classes=2, labelled=2, unlabelled=2, side=8, valid=False) -> Batch:
    """Images whose labels are where they are bright, so that a few steps learn something."""
    generator = torch.Generator().manual_seed(100 + step)
    size = (side,) * dims
    images = torch.randn(labelled + unlabelled, 1, *size, generator=generator)
    labels = ((images[:labelled, 0] > 0).long() * (classes - 1)).clamp_max(classes - 1)
    mask = None
    if valid:
        mask = torch.ones(unlabelled, *size, dtype=torch.bool)
        mask[:, : side // 4] = False
    names = tuple(f"case{i}" for i in range(labelled + unlabelled))
    return Batch(images[:labelled], labels, images[labelled:], valid=mask, cases=names, key=step)


def gradients(value, recipe) -> dict[str, float]:
    """Largest absolute gradient of a term in each student; 0 where it has no path."""
    found = {}
    for name, net in recipe.students.items():
        grads = torch.autograd.grad(value, list(net.parameters()), retain_graph=True, allow_unused=True)
        found[name] = max((float(g.abs().max()) for g in grads if g is not None), default=0.0)
    return found
