# SPDX-License-Identifier: Apache-2.0
"""One training batch: what a recipe sees, and nothing it must not see."""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Labelled and unlabelled volumes of one step. Labels of unlabelled cases never enter it.

    Attributes:
        labelled: `(L, C, *S)` images.
        labels: int64 `(L, *S)`, -1 where a voxel is padding or not annotated.
        unlabelled: `(U, C, *S)` images, weak view; U may be 0.
        strong: strong views of the unlabelled volumes, each `(U, C, *S)`, same geometry as the weak view.
        valid: bool `(U, *S)`, false where an unlabelled voxel is padding; None if none is.
        cases: ids of the L + U cases, labelled first.
        key: integer made from seed, step, micro-step and rank; whatever is random in a step derives from it.
    """

    labelled: Tensor
    labels: Tensor
    unlabelled: Tensor
    strong: tuple[Tensor, ...] = ()
    valid: Tensor | None = None
    cases: tuple[str, ...] = ()
    key: int = 0

    @property
    def images(self) -> Tensor:
        """Labelled and weak unlabelled images in one `(L + U, C, *S)` tensor, so that BatchNorm sees one batch."""
        return torch.cat([self.labelled, self.unlabelled])

    @property
    def student_images(self) -> Tensor:
        """`images` with the first strong view of the unlabelled volumes, if there is one, instead of the weak one."""
        return torch.cat([self.labelled, self.strong[0] if self.strong else self.unlabelled])

    def split(self, output: T) -> tuple[T, T]:
        """Split a tensor or `NetOutput` over `images` or `student_images` into its labelled and unlabelled part."""
        count = len(self.labelled)
        return output[:count], output[count:]  # type: ignore[index]

    def to(self, device: torch.device | str, memory_format: torch.memory_format = torch.preserve_format) -> "Batch":
        """Move every tensor to `device`, images in `memory_format`."""

        def move(images: Tensor) -> Tensor:
            return images.to(device, non_blocking=True, memory_format=memory_format)

        return replace(
            self,
            labelled=move(self.labelled),
            labels=self.labels.to(device, non_blocking=True),
            unlabelled=move(self.unlabelled),
            strong=tuple(map(move, self.strong)),
            valid=None if self.valid is None else self.valid.to(device, non_blocking=True),
        )
