# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast in torch on a CPU: similarities stay in the cache, and the gradient is made in the same pass.

Voxels are taken in blocks, and the similarities of a block in parts that fit in the cache of a core; `steps.py` is what
is done with a block. Voxels that do not count are left out; for "negatives" of many keys they go class by class, so
that positives and negatives are two matrices instead of two masks.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmis.kernels import masked
from ssmis.kernels.keys import Keys, classify, direct, keys_gradient, prepare_keys
from ssmis.kernels.steps import All, FewNegatives, Negatives, Step

__all__ = ["PART", "classify", "contrast", "prepare_keys", "unpack"]

_LARGEST_EXPONENT = 30.0  # exp(+-30), its ratios and sums over keys are far from the ends of float32
_FEW = 16  # keys, with which masks are faster than going class by class
PART = 2**14  # voxels


class Block(NamedTuple):
    """Voxels of one volume (and, for "negatives" of many keys, of one class), and where a packed gradient has them."""

    group: int
    volume: int
    voxels: slice | Tensor
    room: slice


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
    places: Tensor | None = None,
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
        places: int32 `(B, V)`, used on a CPU only. If given and some voxels do not count, the gradient is packed, its
            other columns are zero, and here is written in which one each voxel's is; see `unpack`.

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
    whole = bool(counted.all())
    packing = None if whole else places
    grad_features = None if scale is None else room_like(features, storage or dtype, zero=not whole)
    if packing is not None:
        packing.fill_(features.shape[2] - 1)  # where no voxel's own is unless all of its volume count
    kind: type[Step] = All
    if denominator == "negatives":
        kind = FewNegatives if len(keys.directions) <= _FEW else Negatives
    narrow = normalize and 1 / temperature <= _LARGEST_EXPONENT
    size = max(kind.chunk // features.shape[1], 64)
    blocks = []
    filled = [0] * len(classes)
    for group in range(len(keys.counts) if kind is Negatives else 1):
        for volume, own_classes in enumerate(classes):
            chosen = counted[volume] & (own_classes == group) if kind is Negatives else counted[volume]
            for voxels, count in _blocks(chosen, size):
                blocks.append(Block(group, volume, voxels, slice(filled[volume], filled[volume] + count)))
                filled[volume] += count

    def work(share: list[Block]) -> Tensor:
        grad_directions, step, last = torch.zeros_like(keys.directions), None, None
        spare = torch.empty(2, features.shape[1] * size, dtype=dtype)  # new memory for each block would be slower
        for group, volume, voxels, room in share:
            if step is None or group != last:
                step, last = kind(keys, group, temperature, narrow, grad_directions if with_keys else None), group
            own = _take(features[volume], voxels, dtype, kind.any_layout)  # (E, n)
            scratch, unit = (_laid_out(memory, own) for memory in spare)
            own, lengths = direct(own, 0, scratch, unit) if normalize else (own, own.new_ones(()))
            weight = None if scale is None else _pick(scale[volume], voxels).to(dtype)
            loss, gradient = step(own, weight, _pick(classes[volume], voxels))
            _fill(losses[volume], voxels, loss)
            if grad_features is None or gradient is None:
                continue
            if normalize:
                gradient.addcmul_(own, torch.mul(own, gradient, out=scratch).sum(0), value=-1)
            _put(grad_features[volume], voxels if packing is None else room, gradient, lengths)
            if packing is not None:
                _fill(packing[volume], voxels, torch.arange(room.start, room.stop, dtype=packing.dtype))
        return grad_directions

    grad_directions = torch.stack(_spread(work, blocks)).sum(0)
    if scale is None:
        return losses, None, None
    return losses, grad_features, keys_gradient(grad_directions, keys, normalize=normalize)


def room_like(like: Tensor, dtype: torch.dtype, *, zero: bool) -> Tensor:
    """Memory in the shape and layout of a tensor, on a CPU, as it comes or zero.

    numpy asks the system for large pages, which torch does not, so the first write takes half the time; and for zeros
    that are large it leaves to the system what is never written.
    """
    strides = torch.empty_like(like, device="meta").stride()
    allocate = np.zeros if zero else np.empty
    room = torch.from_numpy(allocate(max(like.numel(), 1) * dtype.itemsize, dtype=np.uint8))
    return room.view(dtype).as_strided(like.shape, strides)


def unpack(packed: Tensor, places: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Columns of `packed` `(B, E, V)` at `places` `(B, V)`, times a scalar factor, rounded to `dtype`."""
    result = torch.empty_like(packed, dtype=dtype)
    for own, where, out in zip(packed, places, result):
        for some, room in zip(where.split(PART), out.split(PART, 1)):
            if own.stride(0) == room.stride(0) == 1 and own.dtype == dtype:  # channels-last
                torch.index_select(own.T, 0, some, out=room.T).mul_(factor)
            else:
                torch.mul(_columns(own, some), factor, out=room)
    return result


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


def _blocks(chosen: Tensor, size: int) -> Iterator[tuple[slice | Tensor, int]]:
    """Slices of `size` voxels, or their indices where not all `(V,)` are chosen; and how many they are."""
    if chosen.all():
        yield from (
            (slice(start, start + size), min(size, len(chosen) - start)) for start in range(0, len(chosen), size)
        )
        return
    on_cpu = chosen.device.type == "cpu"  # there numpy's takes an eighth of the time of torch's
    found = torch.from_numpy(np.flatnonzero(chosen.numpy())) if on_cpu else chosen.nonzero().squeeze(1)
    if len(found):
        yield from ((some, len(some)) for some in found.split(size))


def _pick(values: Tensor, voxels: slice | Tensor) -> Tensor:
    return values[voxels] if isinstance(voxels, slice) else values.index_select(0, voxels)


def _fill(values: Tensor, voxels: slice | Tensor, own: Tensor) -> None:
    if isinstance(voxels, slice):
        values[voxels] = own
    else:
        values.index_copy_(0, voxels, own)


def _columns(features: Tensor, voxels: slice | Tensor) -> Tensor:
    """Columns `(E, n)` in the layout of the features."""
    if isinstance(voxels, slice):
        return features[:, voxels]
    if features.stride(0) == 1:
        return features.T.index_select(0, voxels).T  # channels-last
    return features.index_select(1, voxels)


def _take(features: Tensor, voxels: slice | Tensor, dtype: torch.dtype, any_layout: bool) -> Tensor:
    some = _columns(features, voxels)
    if any_layout or features.stride(0) != 1:
        return some.to(dtype)
    return some.new_empty(some.shape, dtype=dtype).copy_(some)


def _laid_out(memory: Tensor, like: Tensor) -> Tensor:
    """First part of a memory in shape and layout of a matrix."""
    some = memory[: like.numel()]
    return some.view(like.shape[::-1]).T if like.stride(0) == 1 else some.view(like.shape)


def _put(features: Tensor, voxels: slice | Tensor, values: Tensor, divisor: Tensor) -> None:
    if isinstance(voxels, slice):
        torch.div(values, divisor, out=features[:, voxels])
    elif features.stride(0) == 1:
        rows = values.div_(divisor).T
        features.T.index_copy_(0, voxels, features.new_empty(rows.shape).copy_(rows))
    else:
        features.index_copy_(1, voxels, values.div_(divisor).to(features.dtype))
