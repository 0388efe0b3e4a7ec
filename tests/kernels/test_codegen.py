# SPDX-License-Identifier: Apache-2.0
"""Device code compiled for cards that are not here: no spills, shared memory within limits, matrix instructions."""

import os
from itertools import product
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this process interprets: run again without TRITON_INTERPRET", allow_module_level=True)

import triton

from benchmarks.kernel_resources import CARDS, DTYPES, LAYOUTS, complaints, resources, variants
from ssmis.kernels import triton_voxel_contrast as device

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
on_cards = pytest.mark.parametrize("card", CARDS)
KERNELS = ["forward, all", "forward, negatives", "keys, all", "keys, negatives", "scale", "class means"]
# here the default configuration, and what has the most registers last; benchmarks/kernel_resources.py compiles all


def default(card, dtype, width, name, layout="contiguous"):
    """The variant of a kernel in its default configuration with the running maximum, if it takes one."""
    own = [v for v in variants(card, dtype, width) if (v.name, v.layout) == (name, layout)]
    return next(v for v in reversed(own) if str(v.config) == str(own[0].config))


def wrong_with(variant, card, dtype):
    """Complaints about a compiled variant; one that has no registers was not compiled."""
    found = resources(variant, card, dtype)
    assert found.registers > 0
    return complaints(found, card, dtype, variant.name)


@on_cards
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_fit_the_cards(card, dtype, name):
    assert wrong_with(default(card, dtype, 16, name), card, dtype) == []


@on_cards
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [64, 256])
def test_wide_features_fit_too(card, dtype, width):
    assert wrong_with(default(card, dtype, width, "forward, negatives", "odd"), card, dtype) == []


@on_cards
@pytest.mark.parametrize("name", ["forward, negatives", "keys, negatives"])
@pytest.mark.parametrize("layout", ["channels last", "odd"])
def test_layouts_with_more_arithmetic_fit_too(card, name, layout):
    assert wrong_with(default(card, "fp32", 16, name, layout), card, "fp32") == []


@on_cards
def test_a_spill_is_noticed(card):
    variant = default(card, "bf16", 256, "keys, all")
    too_wide = triton.Config({"BLOCK_V": 128, "BLOCK_M": 64}, num_warps=8, num_stages=2)
    found = resources(variant._replace(config=too_wide), card, "bf16")
    assert found.spilled > 0  # by ptxas -v, or by the metadata of an AMD kernel
    assert found.stack > 0  # by cuobjdump -res-usage
    assert complaints(found, card, "bf16", variant.name)[:2] == [
        f"spills {found.spilled}", f"has a stack of {found.stack} bytes"
    ]  # fmt: skip


def test_other_complaints():
    variant = default("sm_80", "bf16", 16, "scale")
    found = resources(variant, "sm_80", "bf16")
    assert complaints(found, "sm_80", "bf16", "scale") == []
    assert complaints(found, "sm_80", "bf16", "forward") == ["has no matrix instruction"]
    assert complaints(found._replace(spilled=4), "sm_80", "bf16", "scale") == ["spills 4"]
    assert complaints(found._replace(stack=8), "sm_80", "bf16", "scale") == ["has a stack of 8 bytes"]
    greedy = found._replace(shared=200 * 1024)
    assert "shared memory" in complaints(greedy, "sm_80", "bf16", "scale")[0]
    assert complaints(greedy, "sm_90", "bf16", "scale") == []


@on_cards
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_script_compiles_every_kernel_in_every_configuration(card, dtype):
    for width in (16, 32, 64, 128, 256):
        found = list(variants(card, dtype, width))
        assert [name for name in KERNELS if name in {v.name for v in found}] == KERNELS
        left = {str(c) for c in device.configurations(width, 65536, DTYPES[dtype], card == "gfx942")}
        for name in KERNELS[:4]:
            assert {(str(v.config), v.layout) for v in found if v.name == name} == set(product(left, LAYOUTS))


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
