# SPDX-License-Identifier: Apache-2.0
"""Metrics of one volume of the size of a Left Atrium case. For ratios to other libraries: `benchmarks/metrics.py`."""

import numpy as np
import pytest
import torch

from benchmarks.metrics import SPACING_MM, bumpy_ball, predictions_of
from ssmis.metrics import calibration, evaluate_case


@pytest.fixture(scope="module")
def field():
    return bumpy_ball()


@pytest.mark.parametrize("kind", ["close", "lobe missed", "ragged"])
def test_overlap_and_distances(benchmark, field, kind):
    prediction, reference = predictions_of(field)[kind].astype(np.uint8), (field > 0).astype(np.uint8)
    benchmark(lambda: evaluate_case(prediction, reference, classes=(1,), spacing_mm=SPACING_MM))


def test_four_classes(benchmark, field):
    bounds = [0.0, 0.1, 0.2]
    prediction, reference = np.digitize(field + 0.01, bounds), np.digitize(field, bounds)
    benchmark(lambda: evaluate_case(prediction, reference, classes=(1, 2, 3), spacing_mm=SPACING_MM))


@pytest.mark.parametrize("margin", [None, 8])
def test_calibration(benchmark, field, margin):
    foreground = torch.from_numpy(field * 20).sigmoid().float()
    probs = torch.stack([1 - foreground, foreground]).numpy()
    benchmark(lambda: calibration(probs, (field > 0).astype(np.uint8), foreground_margin=margin))
