# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast on a CPU: what is done with a block of voxels, for both denominators.

Exponentials have base 2, and where none can leave the range (unit vectors, not too cold) they are not shifted by a
maximum. A product with the keys and a row of ones gives every sum that the loss and its gradient need.
"""

import itertools
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmis.kernels.keys import Keys

_LARGEST = 120.0  # log2 of odds from which log(1 + odds) is log(odds)
_AWAY = 1e30  # below every similarity by this much, a power is 0


class Side(NamedTuple):
    """Keys on one side of a contrast.

    Attributes:
        rows: `(m,)` their places among all keys.
        scaled: `(m, E)`; products with unit features are similarities (positives: minus them) in units of log 2.
        summing: `(E + 1, m)`: keys over the temperature, and ones.
    """

    rows: Tensor
    scaled: Tensor
    summing: Tensor


class Step(ABC):
    """Loss of a block and its gradient by the directions of its voxels; that by the keys' is added up.

    Subclasses write `__call__(own, weight, classes)`: directions `(E, n)`, weights `(n,)` and class positions `(n,)` of
    a block give losses `(n,)` and the gradient `(E, n)` of their weighted sum, or None without weights.

    Attributes:
        chunk: numbers in a block of features.
        part: numbers in a part of its similarities: 1 MB in float32.
        any_layout: is as fast with directions that lie channels-last; its gradient then does too.
    """

    chunk = 2**18
    part = 2**18
    any_layout = False

    def __init__(
        self, keys: Keys, group: int, temperature: float, narrow: bool, grad_directions: Tensor | None
    ) -> None:
        self.keys, self.temperature, self.narrow, self.grad_directions = keys, temperature, narrow, grad_directions
        self.reach = 1 / (temperature * math.log(2))  # largest similarity of unit vectors, in units of log 2
        self.size = max(self.part // len(keys.directions), 64)
        # a few more than needed: rows a power of two apart would share their places in the cache
        self.space = keys.directions.new_empty(4, len(keys.directions) * self.size + 272)
        self.rooms: dict[tuple[int, int, int], Tensor] = {}
        self.kept = [keys.directions.new_empty(0)] * 2

    @abstractmethod
    def __call__(self, own: Tensor, weight: Tensor | None, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Losses and gradient of a block."""

    def side(self, rows: Tensor, sign: float = 1.0) -> Side:
        """Keys of some rows as products want them."""
        directions = self.keys.directions[rows] / self.temperature
        ones = directions.new_ones(1, len(rows))
        return Side(rows, directions * (sign / math.log(2)), torch.cat([directions.T, ones]))

    def room(self, side: Side, own: Tensor, slot: int) -> Tensor:
        """Part of the workspace `(m, n)`: memory that stays in the cache."""
        shape = side.scaled.shape[0], own.shape[1], slot
        if shape not in self.rooms:
            self.rooms[shape] = self.space[slot, : shape[0] * shape[1]].view(shape[:2])
        return self.rooms[shape]

    def sums(self, own: Tensor, slot: int = 0) -> Tensor:
        """Memory for sums over keys `(E + 1, n)`, valid until the next block."""
        rows, columns = len(own) + 1, own.shape[1]
        if self.kept[slot].numel() < rows * columns:
            self.kept[slot] = own.new_empty(rows * columns)
        return self.kept[slot][: rows * columns].view(rows, columns)

    def attend(self, side: Side, own: Tensor, sums: Tensor) -> tuple[Tensor, Tensor | None]:
        """Write the sums over keys `(E + 1, n)`; return the powers `(m, n)` and the exponents' shift `(n,)`."""
        powers = torch.mm(side.scaled, own, out=self.room(side, own, 0))
        top = None if self.narrow else powers.amax(0)
        if top is not None:
            powers.sub_(top)
        torch.mm(side.summing, powers.exp2_(), out=sums)
        return powers, top

    def learn(self, side: Side, derivative: Tensor, own: Tensor, weight: Tensor) -> None:
        """Add to the gradient by the directions of the keys: `derivative` `(m, n)` times `weight` `(n,)`."""
        if self.grad_directions is not None:
            self.grad_directions.index_add_(0, side.rows, derivative @ (own * (weight / self.temperature)).T)


class All(Step):
    """log of the sum over all keys, less the mean positive similarity."""

    def __init__(self, keys: Keys, group: int, *settings: Any) -> None:
        super().__init__(keys, group, *settings)
        self.every = self.side(torch.arange(len(keys.directions)))
        self.share = keys.one_hot / keys.counts.clamp_min(1)  # (M, K)
        self.means = self.share.T @ keys.directions / self.temperature  # (K, E)
        self.positions = torch.arange(len(keys.counts))[:, None]

    def __call__(self, own: Tensor, weight: Tensor | None, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Losses and gradient of a block."""
        sums = self.sums(own)
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
        member = (self.positions == classes).to(own.dtype)  # (K, n)
        loss.mul_(math.log(2)).sub_(((self.means @ own) * member).sum(0))
        if weight is None:
            return loss, None
        gradient = sums[:-1].mul_(weight / sums[-1])
        gradient.addmm_(self.means.T, member.mul_(weight), alpha=-1)
        if self.grad_directions is not None:
            self.grad_directions.addmm_(self.share, member @ own.T, alpha=-1 / self.temperature)
        return loss, gradient


class Negatives(Step):
    """Mean over the positives of log(1 + odds), odds the sum over the keys of other classes against one positive."""

    part = 2**19  # has half of the keys; many operations a part, for which threads wait for the interpreter

    def __init__(self, keys: Keys, group: int, *settings: Any) -> None:
        super().__init__(keys, group, *settings)
        self.negative = self.side((keys.classes != group).nonzero().squeeze(1))
        self.positive = self.side((keys.classes == group).nonzero().squeeze(1), sign=-1.0)

    def __call__(self, own: Tensor, weight: Tensor | None, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Losses and gradient of a block."""
        sums, pulled = self.sums(own), self.sums(own, 1)
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
            sum_log1p(odds.exp2_(), largest, *scratch, out=loss)
        else:
            beyond = (odds - _LARGEST).clamp_min_(0).sum(0).mul_(math.log(2))
            sum_log1p(odds.clamp_max_(_LARGEST).exp2_(), _LARGEST, *scratch, out=loss)
            loss.add_(beyond)
        return odds.div_(torch.add(odds, 1, out=scratch[0]))


class FewNegatives(Step):
    """As `Negatives`, of so few keys that masks cost less than parting the voxels by class.

    Masks are numbers: to fill where a random mask says so takes 20 times as long as to add, and so does exp(-inf).
    """

    any_layout = True

    def __init__(self, keys: Keys, group: int, *settings: Any) -> None:
        super().__init__(keys, group, *settings)
        every = self.side(torch.arange(len(keys.directions)))
        self.scaled, self.summing = every.scaled, every.summing[:-1]
        self.own = keys.classes[:, None].to(torch.int32)
        self.share = 1 / (keys.one_hot @ keys.counts)[:, None]  # (M, 1)

    def __call__(self, own: Tensor, weight: Tensor | None, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Losses and gradient of a block."""
        similarity = self.scaled @ own  # (M, n), in units of log 2
        positive = (self.own == classes).to(own.dtype)
        powers = torch.sub(similarity, positive, alpha=_AWAY)
        top = powers.amax(0)
        powers.sub_(top).exp2_()
        total = powers.sum(0)
        odds = similarity.neg_().add_(top.add_(total.log2())).mul_(math.log(2))  # logarithms of those against each key
        positive.mul_(self.share)
        loss = F.softplus(odds, threshold=80).mul_(positive).sum(0)
        if weight is None:
            return loss, None
        pushed = odds.sigmoid_().mul_(positive)
        by_similarity = powers.mul_(pushed.sum(0).div_(total)).sub_(pushed).mul_(weight)
        if self.grad_directions is not None:
            self.grad_directions.addmm_(by_similarity, own.T, alpha=1 / self.temperature)
        return loss, torch.mm(self.summing, by_similarity, out=torch.empty_like(own))


def sum_log1p(values: Tensor, largest: float, one: Tensor, other: Tensor, *, out: Tensor) -> None:
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
