# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast in torch on a CPU: similarities stay in the cache, and the gradient is made in the same pass.

Voxels are taken in blocks, and the similarities of a block in parts that fit in the cache of a core. Exponentials have
base 2, and where none can leave the range (unit vectors, not too cold) they are not shifted by a maximum. A product
with the keys and a row of ones gives every sum that the loss and its gradient need. Voxels that do not count are left
out; for "negatives" they go class by class, so that positives and negatives are two matrices instead of two masks.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmis.kernels import masked
from ssmis.kernels.keys import Keys, classify, direct, keys_gradient, prepare_keys

__all__ = ["classify", "contrast", "prepare_keys"]

_LARGEST_EXPONENT = 30.0  # exp(+-30), its ratios and sums over keys are far from the ends of float32
_LARGEST = 120.0  # log2 of odds from which log(1 + odds) is log(odds)


class _Side(NamedTuple):
    """Keys on one side of a contrast.

    Attributes:
        rows: `(m,)` their places among all keys.
        scaled: `(m, E)`; products with unit features are similarities (positives: minus them) in units of log 2.
        summing: `(E + 1, m)`: keys over the temperature, and ones.
    """

    rows: Tensor
    scaled: Tensor
    summing: Tensor


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
    allocate = torch.empty_like if counted.all() else torch.zeros_like
    grad_features = allocate(features, dtype=storage or dtype) if scale is not None else None
    kind = _All if denominator == "all" else _Negatives
    narrow = normalize and 1 / temperature <= _LARGEST_EXPONENT
    size = max(kind.chunk // features.shape[1], 64)
    blocks = []
    for group in range(len(keys.counts) if kind is _Negatives else 1):
        for volume, own_classes in enumerate(classes):
            chosen = counted[volume] if kind is _All else counted[volume] & (own_classes == group)
            blocks += [(group, volume, voxels) for voxels in _blocks(chosen, size)]

    def work(share: list[tuple[int, int, slice | Tensor]]) -> Tensor:
        grad_directions, step, last = torch.zeros_like(keys.directions), None, None
        for group, volume, voxels in share:
            if step is None or group != last:
                step, last = kind(keys, group, temperature, narrow, grad_directions if with_keys else None), group
            own = _take(features[volume], voxels, dtype)  # (E, n)
            own, lengths = direct(own, 0) if normalize else (own, own.new_ones(()))
            weight = None if scale is None else scale[volume, voxels].to(dtype)
            loss, gradient = step(own, weight, classes[volume], voxels)
            losses[volume, voxels] = loss
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


def _take(features: Tensor, voxels: slice | Tensor, dtype: torch.dtype) -> Tensor:
    if features.stride(0) != 1:
        some = features[:, voxels] if isinstance(voxels, slice) else features.index_select(1, voxels)
        return some.to(dtype)
    rows = features.T[voxels] if isinstance(voxels, slice) else features.T.index_select(0, voxels)  # channels-last
    return rows.to(dtype).T.contiguous()


def _put(features: Tensor, voxels: slice | Tensor, values: Tensor, divisor: Tensor) -> None:
    if isinstance(voxels, slice):
        torch.div(values, divisor, out=features[:, voxels])
    elif features.stride(0) == 1:
        features.T.index_copy_(0, voxels, values.div_(divisor).T.to(features.dtype))
    else:
        features.index_copy_(1, voxels, values.div_(divisor).to(features.dtype))


class _Step:
    """Loss of a block and its gradient by the directions of its voxels; that by the keys' is added up.

    Subclasses write `__call__(own, weight, classes, voxels)`: directions `(E, n)` and weights `(n,)` of a block give
    losses `(n,)` and the gradient `(E, n)` of their weighted sum, or None without weights; `classes[voxels]` are the
    class positions of the block.

    Attributes:
        chunk: numbers in a block of features; twice as many in a part of its similarities: 1 MB in float32.
    """

    chunk = 2**17

    def __init__(
        self, keys: Keys, group: int, temperature: float, narrow: bool, grad_directions: Tensor | None
    ) -> None:
        self.keys, self.temperature, self.narrow, self.grad_directions = keys, temperature, narrow, grad_directions
        self.reach = 1 / (temperature * math.log(2))  # largest similarity of unit vectors, in units of log 2
        self.size = max(2 * self.chunk // len(keys.directions), 64)
        # a few more than needed: rows a power of two apart would share their places in the cache
        self.space = keys.directions.new_empty(4, len(keys.directions) * self.size + 272)
        self.rooms: dict[tuple[int, int, int], Tensor] = {}

    def side(self, rows: Tensor, sign: float = 1.0) -> _Side:
        directions = self.keys.directions[rows] / self.temperature
        ones = directions.new_ones(1, len(rows))
        return _Side(rows, directions * (sign / math.log(2)), torch.cat([directions.T, ones]))

    def room(self, side: _Side, own: Tensor, slot: int) -> Tensor:
        # (m, n) in the workspace: memory that stays in the cache
        shape = side.scaled.shape[0], own.shape[1], slot
        if shape not in self.rooms:
            self.rooms[shape] = self.space[slot, : shape[0] * shape[1]].view(shape[:2])
        return self.rooms[shape]

    def attend(self, side: _Side, own: Tensor, sums: Tensor) -> tuple[Tensor, Tensor | None]:
        """Write the sums over keys `(E + 1, n)`; return the powers `(m, n)` and the exponents' shift `(n,)`."""
        powers = torch.mm(side.scaled, own, out=self.room(side, own, 0))
        top = None if self.narrow else powers.amax(0)
        if top is not None:
            powers.sub_(top)
        torch.mm(side.summing, powers.exp2_(), out=sums)
        return powers, top

    def learn(self, side: _Side, derivative: Tensor, own: Tensor, weight: Tensor) -> None:
        """Add to the gradient by the directions of the keys: `derivative` `(m, n)` times `weight` `(n,)`."""
        if self.grad_directions is not None:
            self.grad_directions.index_add_(0, side.rows, derivative @ (own * (weight / self.temperature)).T)


class _All(_Step):
    """log of the sum over all keys, less the mean positive similarity."""

    def __init__(self, keys: Keys, group: int, *settings: Any) -> None:
        super().__init__(keys, group, *settings)
        self.every = self.side(torch.arange(len(keys.directions)))
        self.share = keys.one_hot / keys.counts.clamp_min(1)  # (M, K)
        self.means = self.share.T @ keys.directions / self.temperature  # (K, E)
        self.positions = torch.arange(len(keys.counts))[:, None]

    def __call__(
        self, own: Tensor, weight: Tensor | None, classes: Tensor, voxels: slice | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        sums = own.new_empty(len(own) + 1, own.shape[1])
        tops: list[Tensor] = []
        weights = itertools.repeat(None) if weight is None or self.grad_directions is None else weight.split(self.size)
        for some, out, factor in zip(own.split(self.size, 1), sums.split(self.size, 1), weights):
            powers, top = self.attend(self.every, some, out)
            if top is not None:
                tops.append(top)
            if factor is not None:
                self.learn(self.every, powers, some, factor / out[-1])
        loss = sums[-1].log2()
        if tops:
            loss.add_(torch.cat(tops))
        member = (self.positions == classes[voxels]).to(own.dtype)  # (K, n)
        loss.mul_(math.log(2)).sub_(((self.means @ own) * member).sum(0))
        if weight is None:
            return loss, None
        gradient = sums[:-1].mul_(weight / sums[-1])
        gradient.addmm_(self.means.T, member.mul_(weight), alpha=-1)
        if self.grad_directions is not None:
            self.grad_directions.addmm_(self.share, member @ own.T, alpha=-1 / self.temperature)
        return loss, gradient


class _Negatives(_Step):
    """Mean over the positives of log(1 + odds), odds the sum over the keys of other classes against one positive."""

    chunk = 2**18  # a part has half of the keys; many operations a part, for which threads wait for the interpreter

    def __init__(self, keys: Keys, group: int, *settings: Any) -> None:
        super().__init__(keys, group, *settings)
        self.negative = self.side((keys.classes != group).nonzero().squeeze(1))
        self.positive = self.side((keys.classes == group).nonzero().squeeze(1), sign=-1.0)

    def __call__(
        self, own: Tensor, weight: Tensor | None, classes: Tensor, voxels: slice | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        sums, pulled = own.new_empty(2, len(own) + 1, own.shape[1])
        loss, count = own.new_empty(own.shape[1]), len(self.positive.rows)
        weight = None if weight is None else weight / count
        weights = itertools.repeat(None) if weight is None else weight.split(self.size)
        for some, out, pull, term, factor in zip(*(t.split(self.size, -1) for t in (own, sums, pulled, loss)), weights):
            powers, top = self.attend(self.negative, some, out)
            rest = out[-1].log2()
            odds = self.repel(some, rest if top is None else rest.add_(top), term)
            if factor is None:
                continue
            torch.mm(self.positive.summing, odds, out=pull)
            if self.grad_directions is not None:
                self.learn(self.negative, powers, some, factor * pull[-1] / out[-1])
                self.learn(self.positive, odds, some, -factor)
        loss.div_(count)
        if weight is None:
            return loss, None
        return loss, sums[:-1].mul_(weight * pulled[-1] / sums[-1]).sub_(pulled[:-1].mul_(weight))

    def repel(self, own: Tensor, rest: Tensor, loss: Tensor) -> Tensor:
        """Write the sum of log(1 + odds) `(n,)`; return its derivative by the log odds `(m, n)`.

        `rest` is the log2-sum-exp2 `(n,)` of the negatives.
        """
        odds, *scratch = (self.room(self.positive, own, slot) for slot in (1, 2, 3))
        torch.mm(self.positive.scaled, own, out=odds).add_(rest)
        if self.narrow:
            largest = max(float(rest.max()) + self.reach, 0) + 1  # log2(1 + odds) stays below
            _sum_log1p(odds.exp2_(), largest, *scratch, out=loss)
        else:
            beyond = (odds - _LARGEST).clamp_min_(0).sum(0).mul_(math.log(2))
            _sum_log1p(odds.clamp_max_(_LARGEST).exp2_(), _LARGEST, *scratch, out=loss)
            loss.add_(beyond)
        return odds.div_(torch.add(odds, 1, out=scratch[0]))


def _sum_log1p(values: Tensor, largest: float, one: Tensor, other: Tensor, *, out: Tensor) -> None:
    """Sum of log(1 + values) over the first axis; log2(1 + values) is below `largest`. Writes into `one` and `other`.

    Two values become one, (1 + a)(1 + b) - 1, while the range allows it: that keeps the digits of small ones.
    """
    while 2 * largest <= _LARGEST and len(values) % 2 == 0:
        first, second = values.chunk(2)
        values = torch.addcmul(torch.add(first, second, out=one[: len(first)]), first, second, out=one[: len(first)])
        one, other, largest = other, one, 2 * largest
    above, lost = one[: len(values)], other[-len(values) :]
    # what rounding takes from 1 + value, to first order: log1p in accuracy, and vectorised everywhere
    torch.sub(values, torch.sub(torch.add(values, 1, out=above), 1, out=lost), out=lost).div_(above)
    torch.sum(above.log_(), 0, out=out).add_(lost.sum(0))
