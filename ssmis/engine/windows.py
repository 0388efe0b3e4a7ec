# SPDX-License-Identifier: Apache-2.0
"""Sliding windows over a volume: where they start, how they are weighted, and what lies outside."""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from ssmis._checks import check_choice

Blending = Literal["gaussian", "uniform"]
BLENDINGS = ("gaussian", "uniform")


def window_starts(size: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the start of every window, the last axis fastest.

    On each axis windows start at multiples of the stride, and the last is moved back to end at the border. An axis
    shorter than the patch has one window, at 0: the volume is padded to the patch.

    Args:
        size: of the volume.
        patch: size of the window.
        stride: step between windows.

    Raises:
        ValueError: the lengths differ, a number is not positive, or a stride exceeds the patch and would leave gaps.

    >>> window_starts((10, 3), (4, 4), (4, 2))
    [(0, 0), (4, 0), (6, 0)]
    """
    if not len(size) == len(patch) == len(stride) or min(*size, *patch, *stride) < 1:
        raise ValueError(
            f"size is {tuple(size)}, patch {tuple(patch)}, stride {tuple(stride)}; expected a positive number per axis"
        )
    if any(step > length for step, length in zip(stride, patch)):
        raise ValueError(
            f"stride is {tuple(stride)}; expected at most the patch {tuple(patch)}, else windows leave gaps"
        )
    axes = []
    for whole, length, step in zip(size, patch, stride):
        last = max(whole - length, 0)
        axes.append([*range(0, last, step), last])
    return list(product(*axes))


def blend_weight(
    patch: Sequence[int], blending: Blending = "gaussian", *, device: torch.device | str | None = None
) -> Tensor:
    """Return the weight of a window's voxels, float32 `(*patch)`, in [0.001, 1].

    "gaussian" falls off from the centre with sigma = patch / 8 on each axis and never below 0.001, so that a voxel only
    corners reach keeps a well-conditioned mean; "uniform" is 1.
    """
    check_choice(blending, BLENDINGS, name="blending")
    weight = torch.ones(tuple(patch), device=device)
    if blending == "uniform":
        return weight
    for axis, length in enumerate(patch):
        offset = torch.arange(length, device=device) - (length - 1) / 2
        bell = torch.exp(-0.5 * (offset / (length / 8)) ** 2)
        weight *= bell.view([-1 if other == axis else 1 for other in range(len(patch))])
    return weight.clamp_min(1e-3)
