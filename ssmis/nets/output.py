# SPDX-License-Identifier: Apache-2.0
"""What every net returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class NetOutput:
    """Output of one forward pass over `(B, C, *S)` images.

    Attributes:
        logits: `(B, K, *S)`.
        features: `(B, E, *S)` voxel features, before the final dropout; None if the net offers none.
        pyramid: encoder maps from fine to coarse, each `(B, C_l, *S_l)`.
        heads: further named logits `(B, K, *S)` (auxiliary decoders, deep supervision).
    """

    logits: Tensor
    features: Tensor | None = None
    pyramid: tuple[Tensor, ...] = ()
    heads: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, volumes: slice) -> "NetOutput":
        """Select volumes of the batch in every tensor: `output[:2]` is the labelled half of a 2 + 2 batch."""
        return NetOutput(
            self.logits[volumes],
            None if self.features is None else self.features[volumes],
            tuple(level[volumes] for level in self.pyramid),
            {name: logits[volumes] for name, logits in self.heads.items()},
        )
