# SPDX-License-Identifier: Apache-2.0
"""From a protocol to batches, predictions and scores on the original grid."""

import numpy as np
import pytest
import torch
from recipes.small import small_nets

from ssmis.data import DataError, la_split, load_la, write_phantoms
from ssmis.engine import PROTOCOLS, FitConfig, Protocol, evaluate
from ssmis.recipes import Prediction, Supervised

SMALL = Protocol(patch=(16, 16, 16), fit=FitConfig(steps=2, seed=3))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("data"), labelled=2, unlabelled=2, test=1, size=(24, 20, 18))


def test_published_protocol_is_pinned():
    paper = PROTOCOLS["paper"]
    assert paper.patch == (112, 112, 80)
    assert paper.stride == (18, 18, 4)
    assert (paper.labelled_per_batch, paper.unlabelled_per_batch) == (2, 2)
    assert paper.scale == 1.0
    fit = paper.fit
    assert (fit.steps, fit.optimizer, fit.learning_rate, fit.momentum, fit.weight_decay) == (
        6000,
        "sgd",
        0.01,
        0.9,
        1e-4,
    )
    assert [fit.rate(step / 6000) for step in (0, 2499, 2500, 4999, 5000)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001, 0.0001]
    )
    assert fit.ema_decay is None


def test_cpu_protocol_is_half_resolution():
    cpu = PROTOCOLS["cpu"]
    assert (cpu.scale, cpu.patch) == (0.5, (64, 64, 48))


def test_supervised_batches_have_no_unlabelled_part(root, tmp_path):
    split = la_split(root, labelled=2)
    cache = SMALL.cache([*split.labelled, *split.unlabelled], tmp_path)
    assert SMALL.batches(cache, split.labelled)(0).unlabelled.shape == (0, 1, 16, 16, 16)
    assert SMALL.batches(cache, split.labelled, split.unlabelled)(0).unlabelled.shape == (2, 1, 16, 16, 16)


def test_batches_follow_the_seed(root, tmp_path):
    split = la_split(root, labelled=2)
    cache = SMALL.cache(split.labelled, tmp_path)
    first, again = (SMALL.batches(cache, split.labelled)(1) for _ in range(2))
    assert torch.equal(first.images, again.images)
    other = Protocol(patch=(16, 16, 16), fit=FitConfig(seed=4)).batches(cache, split.labelled)(1)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_scores_are_on_the_original_grid(root, scale):
    protocol = Protocol(patch=(8, 8, 8), scale=scale, fit=FitConfig(precision="fp32"))
    case = la_split(root, labelled=2, test="test.list").test[0]
    recipe = Supervised(small_nets(names=("vnet",), dims=3))
    (result,) = evaluate(protocol.predictor(recipe), [case])
    assert result.prediction.shape == load_la(case).label.shape
    assert result.case == result.scores[0].case == case.id


class Oracle:
    """Stands in for a predictor: knows the answer."""

    def __init__(self, label):
        self.foreground = 0.1 + 0.8 * torch.from_numpy(label.astype(np.float32))

    def predict(self, image):
        assert image.shape[1:] == self.foreground.shape
        return Prediction(torch.stack([1 - self.foreground, self.foreground]), self.foreground)


def test_a_perfect_prediction_scores_one(root):
    case = la_split(root, labelled=2, test="test.list").test[0]
    (result,) = evaluate(Oracle(load_la(case).label), [case])
    assert result.scores[0].dice == 1.0
    assert result.scores[0].hd95 == 0.0


def test_an_unlabelled_case_cannot_be_scored(root):
    case = la_split(root, labelled=2).unlabelled[0]
    with pytest.raises(DataError, match="has no label to evaluate against"):
        evaluate(SMALL.predictor(Supervised(small_nets(names=("vnet",), dims=3))), [case])
