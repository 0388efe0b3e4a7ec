# SPDX-License-Identifier: Apache-2.0
"""Copy-paste of boxes between labelled and unlabelled volumes, with their labels and pseudo-labels."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from ssmis._checks import check_choice, check_labels, check_range

Pasted = Literal["random", "labelled", "unlabelled"]


@dataclass(frozen=True)
class Mixed:
    """Volumes that are part labelled and part unlabelled.

    Attributes:
        images: `(U, C, *S)`.
        labels: int64 `(U, *S)`: ground truth in the labelled part, pseudo-labels in the other one.
        labelled: bool `(U, *S)`, true in the labelled part.
    """

    images: Tensor
    labels: Tensor
    labelled: Tensor


def random_boxes(
    count: int,
    size: tuple[int, ...],
    *,
    side: float = 2 / 3,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw one box a volume, wherever it fits.

    Args:
        count: B.
        size: S.
        side: of the box, as a share of each axis in (0, 1]; rounded to voxels, at least one.
        generator: of the draw, on the CPU; None is torch's global generator.
        device: of the result.

    Returns:
        Bool `(B, *S)`, true inside.

    Raises:
        ValueError: `side` is out of range.
    """
    check_range(side, 0, 1, name="side", open_low=True)
    boxes = torch.ones(count, *size, dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        edge = max(1, round(side * length))
        start = (
            (torch.rand(count, generator=generator) * (length - edge + 1))
            .long()
            .clamp_max(length - edge)
            .to(boxes.device)
        )
        at = torch.arange(length, device=boxes.device)
        inside = (at >= start[:, None]) & (at < start[:, None] + edge)  # (B, length)
        boxes &= inside.view(count, *[length if other == axis else 1 for other in range(len(size))])
    return boxes


def cut_mix(volumes: Tensor, boxes: Tensor) -> Tensor:
    """Fill the box of each volume with what the next volume of the batch has there; after the last comes the first.

    Args:
        volumes: `(B, C, *S)` images, logits or one-hot maps, or `(B, *S)` labels or masks.
        boxes: bool `(B, *S)`, as of `random_boxes`. The same boxes for images and pseudo-labels keep them together.

    Returns:
        As `volumes`. One volume alone comes back as it is.

    Raises:
        ValueError: the shapes do not match.

    Gradient: to both volumes, each in its own part.
    Paper: Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899; for semi-supervised segmentation French et al., BMVC 2020,
        arXiv 1906.01916.
    """
    channels = volumes.ndim - boxes.ndim
    if channels not in (0, 1) or boxes.shape != (*volumes.shape[:1], *volumes.shape[1 + channels :]):
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)} and volumes {tuple(volumes.shape)}; expected (B, *S) with "
            "(B, C, *S) or (B, *S)"
        )
    return torch.where(boxes.unsqueeze(1) if channels else boxes, volumes.roll(-1, 0), volumes)


def box_mix(
    images: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    pseudo_labels: Tensor,
    *,
    side: float = 2 / 3,
    pasted: Pasted = "random",
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Mixed:
    """Paste a random box of a labelled volume into each unlabelled one, or the reverse, and their labels alike.

    Unlabelled volume i meets labelled volume i modulo L.

    Args:
        images: `(L, C, *S)`, labelled.
        labels: integer `(L, *S)`, -1 where unknown.
        unlabelled: `(U, C, *S)`.
        pseudo_labels: integer `(U, *S)`; they carry no gradient.
        side: of the box, as a share of each axis.
        pasted: whose box it is: "labelled" puts one of the labelled volume into the unlabelled one, "unlabelled" the
            reverse, "random" tosses a coin for each volume.
        valid: bool `(U, *S)`, false where an unlabelled voxel is padding: its mixed label is -1.
        generator: of boxes and coins, on the CPU; None is torch's global generator.

    Returns:
        U mixed volumes.

    Raises:
        ValueError: shapes or dtypes do not match, there are unlabelled volumes and no labelled one, or an option is out
            of range.

    Gradient: to both images; none from labels.
    Empty case: without unlabelled volumes there is nothing to mix, and nothing comes back.
    Paper: as used by Huang et al., "Uncertainty-aware Cross-training", IEEE TIP 2025, arXiv 2508.09014. Bai et al.,
        "Bidirectional Copy-Paste", CVPR 2023, arXiv 2305.00673, mixes in both directions: call it twice, with `pasted`
        "labelled" and "unlabelled".
    """
    check_choice(pasted, ("random", "labelled", "unlabelled"), name="pasted")
    check_labels(labels, images, maps_name="images")
    check_labels(pseudo_labels, unlabelled, name="pseudo_labels", maps_name="unlabelled")
    if images.shape[1:] != unlabelled.shape[1:]:
        raise ValueError(
            f"unlabelled has shape {tuple(unlabelled.shape)}; expected (U, {', '.join(map(str, images.shape[1:]))}) "
            "to match images"
        )
    count, size = len(unlabelled), tuple(unlabelled.shape[2:])
    if count and not len(images):
        raise ValueError("images has no volume to mix with; expected at least 1")
    partner = torch.arange(count, device=images.device) % max(1, len(images))
    boxes = random_boxes(count, size, side=side, generator=generator, device=images.device)
    coins = torch.rand(count, generator=generator) < {"random": 0.5, "labelled": 1.0, "unlabelled": 0.0}[pasted]
    labelled = boxes == coins.to(boxes.device).view(-1, *[1] * len(size))
    targets = pseudo_labels.detach().long()  # uint8 has no -1
    targets = targets if valid is None else targets.where(valid, -1)
    return Mixed(
        torch.where(labelled.unsqueeze(1), images[partner], unlabelled),
        torch.where(labelled, labels[partner].long(), targets),
        labelled,
    )
