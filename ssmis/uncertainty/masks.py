# SPDX-License-Identifier: Apache-2.0
"""Selection of the most certain voxels by rank: an exact number, whatever ties there are."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ssmis._checks import check_choice, check_range, check_same_shape
from ssmis._classes import top_class
from ssmis.registry import UNCERTAINTY, Example
from ssmis.uncertainty.entropy import entropy

Scope = Literal["volume", "batch", "class"]
SCOPES = ("volume", "batch", "class")


def lowest(
    values: Tensor,
    keep_fraction: float,
    *,
    scope: Scope = "volume",
    labels: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Mark the voxels with the lowest values, exactly $\max(1, \lfloor q n + 1/2 \rfloor)$ of n.

    Rank based, because a threshold fails at ties: saturated entropies would select everything or nothing. Ties are
    broken by index, NaN ranks last.

    Args:
        values: `(B, *S)`, floating point.
        keep_fraction: q in [0, 1].
        scope: what n counts: valid voxels of each "volume", of the whole "batch", or of each volume and "class".
        labels: integer `(B, *S)`, needed for scope "class"; a negative label is never kept.
        valid: bool `(B, *S)`; voxels outside are neither counted nor kept. None is all voxels.

    Returns:
        bool `(B, *S)`.

    Raises:
        ValueError: a fraction outside [0, 1], an unknown scope, shapes that differ, or labels missing or unused.

    Gradient: none.
    Empty case: a group without valid voxels keeps none; a batch without volumes gives an empty mask.

    >>> lowest(torch.tensor([[0.2, 0.0, 0.0, 0.0]]), 0.5)
    tensor([[False,  True,  True, False]])
    """
    check_range(keep_fraction, 0, 1, name="keep_fraction")
    check_choice(scope, SCOPES, name="scope")
    if not values.is_floating_point():
        raise ValueError(f"values has dtype {values.dtype}; expected floating point")
    if (labels is not None) != (scope == "class"):
        came = "missing" if labels is None else "given"
        raise ValueError(f"labels are {came} with scope {scope!r}; expected them with scope 'class' only")
    for name, other in (("labels", labels), ("valid", valid)):
        if other is not None:
            check_same_shape(values=values, **{name: other})
    if labels is not None and (labels.is_floating_point() or labels.is_complex()):
        raise ValueError(f"labels has dtype {labels.dtype}; expected integer class indices")
    if valid is not None and valid.dtype != torch.bool:
        raise ValueError(f"valid has dtype {valid.dtype}; expected bool")
    if values.numel() == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    rows = 1 if scope == "batch" else values.shape[0]
    flat = values.detach().reshape(rows, -1)
    group = None if labels is None else labels.detach().reshape(rows, -1).long()  # uint8 has no -1
    inside = None if valid is None else valid.reshape(rows, -1)
    if group is not None:
        kept = _lowest_groups(flat, keep_fraction, group if inside is None else group.where(inside, -1))
    else:
        kept = _lowest_rows(flat, keep_fraction, inside)
    return kept.view_as(values)


def _lowest_rows(values: Tensor, keep_fraction: float, valid: Tensor | None) -> Tensor:
    # a threshold; of the voxels equal to it, the first ones fill the count
    ranked = values.nan_to_num(nan=math.inf, posinf=torch.finfo(values.dtype).max, neginf=-math.inf)
    keep: int | Tensor
    if valid is None:
        keep = max(1, math.floor(keep_fraction * values.shape[1] + 0.5))
        threshold = ranked.kthvalue(keep, dim=1, keepdim=True).values  # linear time
        below, tied = ranked < threshold, ranked == threshold
    else:
        # counts differ from row to row and stay on the device, which `kthvalue` does not take: one sort of the values
        keep = counts = (keep_fraction * valid.sum(1, keepdim=True).double() + 0.5).floor().clamp_min(1).long()
        threshold = ranked.masked_fill(~valid, math.inf).sort(dim=1).values.gather(1, counts - 1)
        below, tied = (ranked < threshold) & valid, (ranked == threshold) & valid
    room = keep - below.sum(1, keepdim=True)
    return below | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))


def _lowest_groups(values: Tensor, keep_fraction: float, group: Tensor) -> Tensor:
    # stable sorts by value, then by group: each group is a run in which position minus start is the rank
    order = values.argsort(dim=1, stable=True)
    runs, by_group = group.gather(1, order).sort(dim=1, stable=True)
    order = order.gather(1, by_group)
    start = torch.searchsorted(runs, runs)
    count = torch.searchsorted(runs, runs, right=True) - start
    keep = (keep_fraction * count.double() + 0.5).floor().clamp_min(1)
    rank = torch.arange(values.shape[1], device=values.device) - start
    return torch.zeros_like(group, dtype=torch.bool).scatter(1, order, (rank < keep) & (runs >= 0))


def lowest_entropy(
    logits: Tensor, keep_fraction: float, *, scope: Scope = "volume", valid: Tensor | None = None
) -> Tensor:
    """Mark the voxels with the lowest softmax entropy; see `lowest`.

    Args:
        logits: `(B, K, *S)`; detached.
        keep_fraction: q in [0, 1].
        scope: "volume", "batch" or "class"; the class of a voxel is the arg max.
        valid: bool `(B, *S)`; None is all voxels.

    Returns:
        bool `(B, *S)`.

    Raises:
        ValueError: see `lowest`.

    Gradient: none.
    """
    logits = logits.detach()
    labels = top_class(logits) if scope == "class" else None
    return lowest(entropy(logits), keep_fraction, scope=scope, labels=labels, valid=valid)


@UNCERTAINTY.register(
    "lowest_entropy", example=Example(create={"keep_fraction": 0.5}, call={"logits": "logits"}, teacher=("logits",))
)
class LowestEntropy(nn.Module):
    """Mask of the voxels with the lowest entropy; see `lowest_entropy`."""

    def __init__(self, *, keep_fraction: float, scope: Scope = "volume") -> None:
        super().__init__()
        check_range(keep_fraction, 0, 1, name="keep_fraction")
        check_choice(scope, SCOPES, name="scope")
        self.keep_fraction = keep_fraction
        self.scope: Scope = scope

    def forward(self, logits: Tensor, valid: Tensor | None = None) -> Tensor:
        """See `lowest_entropy`."""
        return lowest_entropy(logits, self.keep_fraction, scope=self.scope, valid=valid)
