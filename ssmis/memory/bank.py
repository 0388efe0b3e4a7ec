# SPDX-License-Identifier: Apache-2.0
"""What every bank of class features has in common."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bank(nn.Module):
    """A memory of labelled key vectors. Reading never changes it; `write` runs once per applied step.

    Its state is in buffers, so `state_dict()` is all of it. Keys are detached and L2-normalised unless a bank is told
    otherwise; a slot with label -1 takes no part, and a candidate that is not finite neither.

    Args:
        classes: K.
        channels: E, length of a vector.

    Raises:
        ValueError: classes or channels < 1.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        for name, value in (("classes", classes), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.classes = classes
        self.channels = channels

    def forward(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `(M, E)` and their labels `(M,)`, given this step's candidates `(N, E)` and `(N,)`."""
        raise TypeError(f"{type(self).__name__} must define forward(vectors, labels) -> (keys, key_labels)")

    def write(self, vectors: Tensor, labels: Tensor) -> None:
        """Take in candidates `(N, E)` with labels `(N,)`; a label outside 0..K-1, such as -1, is skipped."""
        raise TypeError(f"{type(self).__name__} must define write(vectors, labels)")

    @property
    def ready(self) -> bool:
        """Whether two classes have a key, as a contrast needs; a look at the device, so not for a forward pass."""
        return True

    def extra_repr(self) -> str:
        """Settings shown by `print(bank)`."""
        return f"classes={self.classes}, channels={self.channels}"

    def _candidates(self, vectors: Tensor, labels: Tensor, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        # checked; vectors in float32, of length 1 unless told otherwise, and one-hot membership (N, K)
        if vectors.ndim != 2 or vectors.shape[1] != self.channels or not vectors.is_floating_point():
            raise ValueError(
                f"vectors is {vectors.dtype} of shape {tuple(vectors.shape)}; "
                f"expected floating point (N, {self.channels}) for a bank of {self.channels} channels"
            )
        if labels.shape != vectors.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"labels is {labels.dtype} of shape {tuple(labels.shape)}; "
                f"expected integer ({len(vectors)},) to match vectors {tuple(vectors.shape)}"
            )
        member = labels[:, None] == torch.arange(self.classes, device=labels.device)
        member = member & vectors.detach().isfinite().all(1, keepdim=True)  # one such vector would stay for many steps
        used = vectors.detach().float().where(member.any(1, keepdim=True), 0)
        return F.normalize(used, dim=1) if normalize else used, member

    def _means(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # mean of the normalised candidates of each class (K, E), and whether there are any (K,)
        directions, member = self._candidates(vectors, labels)
        # a sum, not a product of matrices: autocast would round that
        sums = directions[:, None].where(member[:, :, None], 0).sum(0)
        counts = member.sum(0)
        return sums / counts.clamp_min(1)[:, None], counts > 0

    def _label(self, written: Tensor) -> Tensor:
        # class index where written (K, ...), -1 elsewhere, flat
        index = torch.arange(self.classes, device=written.device)
        return index.view(-1, *[1] * (written.ndim - 1)).where(written, -1).flatten()
