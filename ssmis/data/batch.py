# SPDX-License-Identifier: Apache-2.0
"""One training batch: what a recipe sees, and nothing it must not see."""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ssmis.data.sampling import batch_key

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
        key: integer made from seed and step, in a `part` from its index too; what is random in a step derives from it.
    """

    labelled: Tensor
    labels: Tensor
    unlabelled: Tensor
    strong: tuple[Tensor, ...] = ()
    valid: Tensor | None = None
    cases: tuple[str, ...] = ()
    key: int = 0

    @property
    def forward_key(self) -> int:
        """Seed of what is random in the forward pass, such as dropout and boxes that are exchanged.

        It is none that a batch or a crop is made with, so nothing there follows from how the images were moved.
        """
        return batch_key(self.key, 0, 1, 1)

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

    def without_unlabelled(self) -> "Batch":
        """The labelled volumes alone."""
        cases = self.cases[: len(self.labelled)]
        return replace(self, unlabelled=self.unlabelled[:0], strong=(), valid=None, cases=cases)

    def part(self, index: int, count: int) -> "Batch":
        """Return one of `count` equal parts, for a process or a micro-step; the only part of one is the batch itself.

        Raises:
            ValueError: the labelled or the unlabelled volumes do not divide by `count`.
        """
        labelled = len(self.labelled)
        first, second = part_of(index, count, labelled, len(self.unlabelled))
        if count == 1:
            return self
        return replace(
            self,
            labelled=self.labelled[first],
            labels=self.labels[first],
            unlabelled=self.unlabelled[second],
            strong=tuple(view[second] for view in self.strong),
            valid=None if self.valid is None else self.valid[second],
            cases=(*self.cases[:labelled][first], *self.cases[labelled:][second]),
            key=batch_key(self.key, index),
        )

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


def part_of(index: int, count: int, labelled: int, unlabelled: int) -> tuple[slice, slice]:
    """Where the labelled and the unlabelled volumes of one of `count` equal parts of a batch are.

    Raises:
        ValueError: they do not divide by `count`.
    """
    if not 0 <= index < count:
        raise ValueError(f"part {index} of {count} asked for; expected 0 to {count - 1}")
    if labelled % count or unlabelled % count:
        raise ValueError(
            f"the batch has {labelled} labelled and {unlabelled} unlabelled volumes; expected multiples of "
            f"{count}, the number of processes times the micro-steps of each"
        )
    return (
        slice(index * labelled // count, (index + 1) * labelled // count),
        slice(index * unlabelled // count, (index + 1) * unlabelled // count),
    )
