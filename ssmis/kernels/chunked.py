# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast in torch on a CPU: similarities stay in the cache, and the gradient is made in the same pass.

Voxels are taken in blocks, and the similarities of a block in parts that fit in the cache of a core; `steps.py` is what
is done with a block. Voxels that do not count are left out; for "negatives" of many keys they go class by class, so
that positives and negatives are two matrices instead of two masks.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ssmis.kernels import masked
from ssmis.kernels.keys import Keys, classify, direct, keys_gradient, prepare_keys
from ssmis.kernels.steps import All, FewNegatives, Negatives, Step

__all__ = ["classify", "contrast", "prepare_keys"]

_LARGEST_EXPONENT = 30.0  # exp(+-30), its ratios and sums over keys are far from the ends of float32
_FEW = 16  # keys, with which masks are faster than going class by class


def contrast(
    features: Tensor,
    classes: Tensor,
    counted: Tensor,
    keys: Keys,
    *,
    temperature: float,
    normalize: bool,
    denominator: str,
    scale: Tensor | None = None,
    with_keys: bool = True,
    storage: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss of each voxel and, if `scale` is given, the gradients of `(scale * loss).sum()`.

    Args:
        features: `(B, E, V)`, any strides.
        classes: `(B, V)` class positions.
        counted: bool `(B, V)`; other voxels get loss and gradient zero, whatever their features.
        keys: what `prepare_keys` returned; on a CPU every slot takes part.
        temperature: divisor of the similarities.
        normalize: cosine similarity, else the plain inner product.
        denominator: "all" or "negatives".
        scale: `(B, V)`, zero where not counted.
        with_keys: also compute the gradient by the keys; else it is zero.
        storage: dtype of the gradient `(B, E, V)`; default: as below.

    Returns:
        Losses `(B, V)`, gradient `(B, E, V)` and gradient `(M, E)` in the dtype of the prepared keys.
    """
    if features.device.type != "cpu":
        return masked.contrast(
            features, classes, counted, keys,
            temperature=temperature, normalize=normalize, denominator=denominator, scale=scale, with_keys=with_keys,
            storage=storage,
        )  # fmt: skip
    dtype = keys.directions.dtype
    features = features.detach()
    losses = features.new_zeros(classes.shape, dtype=dtype)
    sizes = [int(own.count_nonzero()) for own in counted]
    allocate = torch.empty_like if sum(sizes) == counted.numel() else torch.zeros_like
    grad_features = allocate(features, dtype=storage or dtype) if scale is not None else None
    kind: type[Step] = All
    if denominator == "negatives":
        kind = FewNegatives if len(keys.directions) <= _FEW else Negatives
    narrow = normalize and 1 / temperature <= _LARGEST_EXPONENT
    size = max(kind.chunk // features.shape[1], 64)
    blocks = []
    for group in range(len(keys.counts) if kind is Negatives else 1):
        for volume, own_classes in enumerate(classes):
            chosen = counted[volume] & (own_classes == group) if kind is Negatives else counted[volume]
            blocks += [(group, volume, voxels) for voxels in _blocks(chosen, size)]

    def work(share: list[tuple[int, int, slice | Tensor]]) -> Tensor:
        grad_directions, step, last = torch.zeros_like(keys.directions), None, None
        for group, volume, voxels in share:
            if step is None or group != last:
                step, last = kind(keys, group, temperature, narrow, grad_directions if with_keys else None), group
            own = _take(features[volume], voxels, dtype)  # (E, n)
            own, lengths = direct(own, 0) if normalize else (own, own.new_ones(()))
            weight = None if scale is None else _pick(scale[volume], voxels).to(dtype)
            loss, gradient = step(own, weight, _pick(classes[volume], voxels))
            if isinstance(voxels, slice):
                losses[volume, voxels] = loss
            else:
                losses[volume].index_copy_(0, voxels, loss)
            if grad_features is None or gradient is None:
                continue
            if normalize:
                gradient.addcmul_(own, (own * gradient).sum(0), value=-1)
            _put(grad_features[volume], voxels, gradient, lengths)
        return grad_directions

    grad_directions = torch.stack(_spread(work, blocks)).sum(0)
    if scale is None:
        return losses, None, None
    return losses, grad_features, keys_gradient(grad_directions, keys, normalize=normalize)


def _spread(work: Callable[[list[Any]], Tensor], blocks: list[Any]) -> list[Tensor]:
    """Give the blocks to as many threads as torch may use, each with one core for its operations.

    The operations are short: torch's own threads would wait for each other after every one, and on a busy machine, such
    as one that prepares the next batch, for a turn of the scheduler.
    """
    threads = min(torch.get_num_threads(), len(blocks))
    if threads <= 1:
        return [work(blocks)]

    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad  # modes belong to a thread

    def alone(share: list[Any]) -> Tensor:
        torch.set_num_threads(1)
        with mode():
            return work(share)

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, (blocks[first::threads] for first in range(threads))))
    finally:
        torch.set_num_threads(before)  # what a thread sets is also the default of threads to come


def _blocks(chosen: Tensor, size: int) -> Iterator[slice | Tensor]:
    """Slices of `size` voxels, or their indices where not all `(V,)` are chosen."""
    if chosen.all():
        yield from (slice(start, start + size) for start in range(0, len(chosen), size))
    elif len(found := chosen.nonzero().squeeze(1)):
        yield from found.split(size)


def _pick(values: Tensor, voxels: slice | Tensor) -> Tensor:
    return values[voxels] if isinstance(voxels, slice) else values.index_select(0, voxels)


def _take(features: Tensor, voxels: slice | Tensor, dtype: torch.dtype) -> Tensor:
    if features.stride(0) != 1:
        some = features[:, voxels] if isinstance(voxels, slice) else features.index_select(1, voxels)
        return some.to(dtype)
    rows = _pick(features.T, voxels)  # channels-last
    return rows.new_empty(rows.T.shape, dtype=dtype).copy_(rows.T)


def _put(features: Tensor, voxels: slice | Tensor, values: Tensor, divisor: Tensor) -> None:
    if isinstance(voxels, slice):
        torch.div(values, divisor, out=features[:, voxels])
    elif features.stride(0) == 1:
        rows = values.div_(divisor).T
        features.T.index_copy_(0, voxels, features.new_empty(rows.shape).copy_(rows))
    else:
        features.index_copy_(1, voxels, values.div_(divisor).to(features.dtype))
