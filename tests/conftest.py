# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: the folder of real data, a seeded generator; the reproducible hypothesis profile; the GPU skip."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ssmis", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck)
)
settings.load_profile("ssmis")


def pytest_addoption(parser):
    parser.addoption("--data-root", default=None, help="folder with real volumes (la/, hippocampus/, hc18/, ...)")


@pytest.fixture
def data_root(request) -> Path:
    root = request.config.getoption("--data-root")
    if root is None:
        pytest.skip("real data not given (--data-root=DATA)")
    return Path(root)


@pytest.fixture(autouse=True)
def _gpu_or_skip(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
