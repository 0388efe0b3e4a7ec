# SPDX-License-Identifier: Apache-2.0
"""What several losses do to voxels: raise the precision, find the valid ones, compare labels with classes."""

import torch
from torch import Tensor

from ssmis.losses._reduce import Reduction


def upcast(values: Tensor) -> Tensor:
    """Return half and bfloat16 values as float32; float32 and float64 stay as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def valid_voxels(labels: Tensor, ignore_index: int, mask: Tensor | None) -> Tensor:
    """Bool `(B, *S)`: labelled and inside `mask`."""
    valid = labels != ignore_index
    return valid if mask is None else valid & mask


def is_class(labels: Tensor, classes: range) -> Tensor:
    """Bool `(B, C, *S)`, one map per class of `classes`: an eighth of an int64 one-hot volume."""
    index = torch.arange(classes.start, classes.stop, device=labels.device)
    return labels.unsqueeze(1) == index.view(1, -1, *[1] * (labels.ndim - 1))


def class_sums(values: Tensor, reduction: Reduction) -> Tensor:
    """Sum `(B, C, *S)` over voxels: `(B, C)`, or `(1, C)` over the whole batch with "pooled"."""
    sums = values.flatten(2).sum(2)
    return sums.sum(0, keepdim=True) if reduction == "pooled" else sums
