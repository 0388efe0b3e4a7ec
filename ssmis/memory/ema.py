# SPDX-License-Identifier: Apache-2.0
"""A bank with one moving prototype a class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmis._checks import check_range
from ssmis.memory.bank import Bank
from ssmis.registry import BANKS, Example


@BANKS.register("ema", example=Example(create={"classes": 2, "channels": 8}))
class EMABank(Bank):
    r"""One key a class: an exponential moving average of the class means written so far.

    $c_k \leftarrow d\, c_k + (1 - d)\, \mu_k$ with $\mu_k$ the mean of the normalised candidates; the first write sets
    it, and a class without candidates keeps its prototype.

    Args:
        classes: K.
        channels: E, length of a vector.
        decay: d in [0, 1].

    Raises:
        ValueError: classes or channels < 1, or decay outside [0, 1].
    """

    prototypes: Tensor
    written: Tensor

    def __init__(self, classes: int, channels: int, *, decay: float = 0.9) -> None:
        super().__init__(classes, channels)
        check_range(decay, 0, 1, name="decay")
        self.decay = decay
        self.register_buffer("prototypes", torch.zeros(classes, channels))
        self.register_buffer("written", torch.zeros(classes, dtype=torch.bool))

    def forward(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `(K, E)` and labels `(K,)`: what is stored; the candidates are only checked."""
        self._candidates(vectors, labels)
        return F.normalize(self.prototypes, dim=1), self._label(self.written)

    @torch.no_grad()
    def write(self, vectors: Tensor, labels: Tensor) -> None:
        """Move the prototypes of the classes that have candidates."""
        means, present = self._means(vectors, labels)
        means = means.to(self.prototypes)  # a bank in half precision
        moved = torch.where(self.written[:, None], self.prototypes.lerp(means, 1 - self.decay), means)
        self.prototypes.copy_(moved.where(present[:, None], self.prototypes))
        self.written.logical_or_(present)

    @property
    def ready(self) -> bool:
        """See `Bank.ready`."""
        return int(self.written.sum()) >= 2

    def extra_repr(self) -> str:
        """Settings shown by `print(bank)`."""
        return f"{super().extra_repr()}, decay={self.decay}"
