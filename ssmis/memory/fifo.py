# SPDX-License-Identifier: Apache-2.0
"""A bank of the most recent vectors of each class."""

import torch
from torch import Tensor

from ssmis.memory.bank import Bank
from ssmis.registry import BANKS, Example


@BANKS.register("fifo", example=Example(create={"classes": 2, "channels": 8, "slots": 16}))
class FIFOBank(Bank):
    """A ring of `slots` vectors for each class, each with its own pointer: a rare class is not pushed out by others.

    Args:
        classes: K.
        channels: E, length of a vector.
        slots: vectors kept a class.
        normalize: keep directions; False keeps vectors as they are.

    Raises:
        ValueError: classes, channels or slots < 1.
    """

    ring: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, classes: int, channels: int, *, slots: int = 256, normalize: bool = True) -> None:
        super().__init__(classes, channels)
        if slots < 1:
            raise ValueError(f"slots is {slots}; expected at least 1")
        self.slots = slots
        self.normalize = normalize
        self.register_buffer("ring", torch.zeros(classes, slots, channels))
        self.register_buffer("pointer", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(classes, dtype=torch.int64))

    def forward(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `(K * slots, E)` and labels `(K * slots,)`: what is stored; the candidates are only checked."""
        self._candidates(vectors, labels)
        written = torch.arange(self.slots, device=self.ring.device) < self.filled[:, None]
        return self.ring.flatten(0, 1).clone(), self._label(written)

    @torch.no_grad()
    def write(self, vectors: Tensor, labels: Tensor) -> None:
        """Store the candidates in order; of more than `slots` of one class the last ones stay."""
        stored, member = self._candidates(vectors, labels, normalize=self.normalize)
        order, counts = member.cumsum(0) - 1, member.sum(0)  # (N, K), (K,)
        kept = member & (order >= counts - self.slots)
        self._store(stored, kept, (self.pointer + order) % self.slots)
        self.pointer.copy_((self.pointer + counts) % self.slots)
        self.filled.copy_((self.filled + counts).clamp_max(self.slots))

    @property
    def ready(self) -> bool:
        """See `Bank.ready`."""
        return int((self.filled > 0).sum()) >= 2

    def _store(self, vectors: Tensor, kept: Tensor, slot: Tensor) -> Tensor:
        # write (N, E) where `kept` (N, K) into slots (N, K); returns flat slots (N,), K * slots where nothing is kept
        offset = torch.arange(self.classes, device=kept.device) * self.slots
        # all that is not kept goes to one more slot, which is cut off: no choice by value, no host sync
        spare = self.classes * self.slots
        target = (offset + slot).where(kept, 0).sum(1).where(kept.any(1), spare)
        longer = torch.cat([self.ring.flatten(0, 1), self.ring.new_zeros(1, self.channels)])
        longer.index_copy_(0, target, vectors.to(longer.dtype))
        self.ring.copy_(longer[:spare].view_as(self.ring))
        return target

    def extra_repr(self) -> str:
        """Settings shown by `print(bank)`."""
        return f"{super().extra_repr()}, slots={self.slots}"
