# SPDX-License-Identifier: Apache-2.0
"""The other hot paths: voxel contrast, rank mask, sliding window, metrics of one case, a batch from the cache."""

import numpy as np
import pytest
import torch

from ssmis.data import BatchMaker, Cache, TwoStreamSampler, la_split, write_phantoms
from ssmis.engine import Predictor
from ssmis.kernels import voxel_contrast
from ssmis.metrics import evaluate_case
from ssmis.uncertainty import lowest_entropy


def plain_contrast(features, labels, keys, key_labels):
    """The plain autograd expression, denominator "all"."""
    flat = torch.nn.functional.normalize(features.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
    log_p = (flat @ torch.nn.functional.normalize(keys, dim=1).T / 0.1).log_softmax(1)
    positive = (labels.flatten()[:, None] == key_labels).float()
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


@pytest.mark.parametrize("function", [plain_contrast, voxel_contrast], ids=["plain", "chunked"])
def test_voxel_contrast(benchmark, function):
    features = torch.randn(1, 16, 48, 48, 48, requires_grad=True)
    labels = torch.randint(2, (1, 48, 48, 48))
    keys, key_labels = torch.randn(256, 16), torch.arange(256) % 2

    def step():
        features.grad = None
        function(features, labels, keys, key_labels).backward()

    benchmark(step)


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
