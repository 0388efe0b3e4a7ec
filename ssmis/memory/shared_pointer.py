# SPDX-License-Identifier: Apache-2.0
"""A ring a class whose classes share one pointer: a defect of published code, kept to measure what it costs."""

import torch
from torch import Tensor

from ssmis.memory.fifo import FIFOBank
from ssmis.registry import BANKS, Example


@BANKS.register("fifo_shared_pointer", example=Example(create={"classes": 2, "channels": 8, "slots": 16}))
class SharedPointerFIFOBank(FIFOBank):
    """A `fifo` bank whose pointer moves on with every vector of any class; not for new work.

    With one vector of each of K classes a write, and K a divisor of `slots`, a class only ever reaches every K-th slot
    of its ring: the memory is a K-th of what it says. Slots never written take no part.

    Args:
        classes: K.
        channels: E, length of a vector.
        slots: vectors kept a class.
        normalize: keep directions; False keeps vectors as they are.

    Paper: behaviour of the public code of Huang et al., IEEE TIP 2025, arXiv 2508.09014.
    """

    written: Tensor

    def __init__(self, classes: int, channels: int, *, slots: int = 256, normalize: bool = True) -> None:
        super().__init__(classes, channels, slots=slots, normalize=normalize)
        self.register_buffer("written", torch.zeros(classes, slots, dtype=torch.bool))

    def forward(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `(K * slots, E)` and labels `(K * slots,)`: what is stored; the candidates are only checked."""
        self._candidates(vectors, labels)
        return self.ring.flatten(0, 1).clone(), self._label(self.written)

    @torch.no_grad()
    def write(self, vectors: Tensor, labels: Tensor) -> None:
        """Store the candidates in order, one slot further each; of those that meet in a slot the last one stays."""
        stored, member = self._candidates(vectors, labels, normalize=self.normalize)
        used = member.any(1)
        order, total = used.cumsum(0) - 1, used.sum()
        slot = ((self.pointer[0] + order) % self.slots)[:, None].expand_as(member)
        # of one class in one slot only the last: the ones `slots` positions earlier are lost
        later = (slot[:, None, 0] == slot[None, :, 0]) & (labels[:, None] == labels) & used
        kept = member & ~later.triu(1).any(1)[:, None]
        target = self._store(stored, kept, slot)
        longer = torch.cat([self.written.flatten(), self.written.new_zeros(1)]).index_fill(0, target, True)
        self.written.copy_(longer[:-1].view_as(self.written))
        self.pointer.copy_((self.pointer + total) % self.slots)
        self.filled.copy_(self.written.sum(1))
