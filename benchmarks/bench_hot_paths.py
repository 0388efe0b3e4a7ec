# SPDX-License-Identifier: Apache-2.0
"""The other hot paths: rank mask, sliding window, metrics of one case, a batch from the cache."""

import numpy as np
import pytest
import torch

from ssmis.data import BatchMaker, Cache, TwoStreamSampler, la_split, write_phantoms
from ssmis.engine import Predictor
from ssmis.metrics import evaluate_case
from ssmis.nets import VNet
from ssmis.uncertainty import lowest_entropy


@pytest.mark.parametrize("with_padding", [False, True])
def test_rank_mask(benchmark, with_padding):
    logits = torch.randn(2, 2, 64, 64, 48)
    valid = torch.rand(2, 64, 64, 48) > 0.1 if with_padding else None
    benchmark(lambda: lowest_entropy(logits, 0.5, valid=valid))


@pytest.mark.gpu
def test_rank_mask_on_a_gpu(benchmark):
    logits = torch.randn(2, 2, 112, 112, 80, device="cuda")

    def step():
        lowest_entropy(logits, 0.5)
        torch.cuda.synchronize()

    benchmark(step)


@pytest.mark.parametrize("blending", ["uniform", "gaussian"])
def test_sliding_window_without_the_net(benchmark, blending):
    predictor = Predictor(lambda images: images.repeat(1, 2, 1, 1, 1) * 0 + 0.5, patch=(64, 64, 48), blending=blending)
    benchmark(lambda: predictor.predict(np.zeros((1, 95, 71, 44), np.float32)))


@pytest.mark.gpu
@pytest.mark.parametrize("blending", ["uniform", "gaussian"])
def test_sliding_window_on_a_gpu(benchmark, blending):
    net = VNet(dims=3, widths=(16, 32, 64, 128, 256)).cuda().eval()
    predictor = Predictor(
        lambda images: net(images).logits.softmax(1), patch=(112, 112, 80), blending=blending, device="cuda"
    )

    def step():
        predictor.predict(np.zeros((1, 190, 142, 88), np.float32))
        torch.cuda.synchronize()

    benchmark(step)


def test_metrics_of_one_case(benchmark):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (190, 142, 88)], indexing="ij"))
    reference, prediction = ((((grid - shift) ** 2).sum(0) < 0.3).astype(np.uint8) for shift in (0.0, 0.03))
    benchmark(lambda: evaluate_case(prediction, reference, classes=(1,), spacing_mm=(0.625,) * 3))


def test_batch_from_the_cache(benchmark, tmp_path):
    split = la_split(write_phantoms(tmp_path, labelled=2, unlabelled=2), labelled=2)
    cache = Cache.build([*split.labelled, *split.unlabelled], tmp_path / "cache")
    sampler = TwoStreamSampler([c.id for c in split.labelled], [c.id for c in split.unlabelled])
    maker = BatchMaker(cache, sampler, patch=(32, 32, 32))
    benchmark(lambda: maker(0))
