# SPDX-License-Identifier: Apache-2.0
"""Device code compiled for cards that are not here: no spills, shared memory within limits, matrix instructions."""

import os
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this process interprets: run again without TRITON_INTERPRET", allow_module_level=True)

import triton

from benchmarks.kernel_resources import CARDS, DTYPES, compile_kernel, complaints, resources, variants
from ssmis.kernels import triton_voxel_contrast as device

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
on_cards = pytest.mark.parametrize("card", CARDS)


@on_cards
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["forward, negatives", "keys, all", "scale", "class means"])
def test_kernels_fit_the_cards(card, dtype, name):
    # the default configuration; benchmarks/kernel_resources.py does all of them
    _, kernel, config, constants = next(variant for variant in variants(card, dtype, 16) if variant[0] == name)
    found = resources(compile_kernel(kernel, card, dtype, config, **constants), card)
    assert found.registers > 0
    assert not complaints(found, card, dtype, name)


@pytest.mark.parametrize(("width", "dtype"), [(64, "bf16"), (256, "bf16"), (64, "fp32")])
def test_wide_features_fit_too(width, dtype):
    name, kernel, config, constants = next(iter(variants("sm_90", dtype, width)))
    found = resources(compile_kernel(kernel, "sm_90", dtype, config, **constants), "sm_90")
    assert not complaints(found, "sm_90", dtype, name)


@on_cards
def test_a_spill_is_noticed(card):
    name, kernel, _, constants = next(variant for variant in variants(card, "bf16", 256) if variant[0] == "keys, all")
    too_wide = triton.Config({"BLOCK_V": 128, "BLOCK_M": 64}, num_warps=8, num_stages=2)
    found = resources(compile_kernel(kernel, card, "bf16", too_wide, **constants), card)
    assert found.spilled > 0
    assert complaints(found, card, "bf16", name)[0] == f"spills {found.spilled}"


def test_other_complaints():
    _, kernel, config, constants = next(v for v in variants("sm_80", "bf16", 16) if v[0] == "scale")
    found = resources(compile_kernel(kernel, "sm_80", "bf16", config, **constants), "sm_80")
    assert complaints(found, "sm_80", "bf16", "scale") == []
    assert complaints(found, "sm_80", "bf16", "forward") == ["has no matrix instruction"]
    greedy = found._replace(shared=200 * 1024)
    assert "shared memory" in complaints(greedy, "sm_80", "bf16", "scale")[0]
    assert complaints(greedy, "sm_90", "bf16", "scale") == []


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("hip", [False, True])
def test_the_pruning_rule_always_leaves_something(dtype, width, hip):
    for rows in (16, 32, 65536):
        left = device.configurations(width, rows, dtype, hip)
        assert left
        assert all(config.kwargs["BLOCK_M"] <= rows for config in left)
        assert all(config.kwargs["BLOCK_V"] >= device.SMALLEST_V for config in left)
    named = {"E": width, "rows": 16, "features": SimpleNamespace(dtype=torch.float32)}
    assert all(config.kwargs["BLOCK_M"] == 16 for config in device._prune([], named))
