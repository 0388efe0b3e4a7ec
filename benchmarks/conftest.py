# SPDX-License-Identifier: Apache-2.0
"""Benchmarks run with `pytest benchmarks`; CI runs each once with `--benchmark-disable`."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
