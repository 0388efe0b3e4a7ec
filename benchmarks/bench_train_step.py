# SPDX-License-Identifier: Apache-2.0
"""One optimiser step of each recipe, and one batch: what a run is made of. For ratios: `benchmarks/train_step.py`."""

import pytest
import torch

from ssmis.data import Augment, Batch
from ssmis.recipes import DualUncertainty, Supervised, dual_nets


def make_batch(side: int) -> Batch:
    images = torch.randn(4, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    return Batch(images[:2], (images[:2, 0] > 1).long(), images[2:])


def step(recipe, batch):
    recipe.begin_step()
    recipe(batch, 0.5).total().backward()
    recipe.after_step(0.5)


@pytest.mark.parametrize("kind", [Supervised, DualUncertainty])
def test_step(benchmark, kind):
    recipe = kind(dual_nets(widths=(8, 16, 32, 64, 64)))
    benchmark(step, recipe, make_batch(32))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Supervised, DualUncertainty])
def test_step_of_the_paper_on_a_gpu(benchmark, kind):
    recipe, batch = kind(dual_nets()).cuda(), make_batch(96).to("cuda")

    def synchronised():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            recipe.begin_step()
            loss = recipe(batch, 0.5).total()
        loss.backward()
        recipe.after_step(0.5)
        torch.cuda.synchronize()

    benchmark(synchronised)


def test_strong_augmentation(benchmark):
    images, labels = torch.randn(4, 1, 64, 64, 48), torch.zeros(4, 64, 64, 48, dtype=torch.long)
    augment = Augment.strong()
    benchmark(lambda: augment(images, torch.Generator().manual_seed(0), labels))
