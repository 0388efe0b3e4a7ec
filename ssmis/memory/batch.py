# SPDX-License-Identifier: Apache-2.0
"""A bank without memory: the class means of this step's candidates."""

from torch import Tensor
from torch.nn import functional as F

from ssmis.memory.bank import Bank
from ssmis.registry import BANKS, Example


@BANKS.register("batch", example=Example(create={"classes": 2, "channels": 8}))
class BatchBank(Bank):
    """One key a class: the normalised mean of the candidates given to `forward`; a class without any has label -1.

    Args:
        classes: K.
        channels: E, length of a vector.
    """

    def forward(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `(K, E)` and labels `(K,)`."""
        means, present = self._means(vectors, labels)
        return F.normalize(means, dim=1), self._label(present)

    def write(self, vectors: Tensor, labels: Tensor) -> None:
        """Check the candidates, keep nothing."""
        self._candidates(vectors, labels)
