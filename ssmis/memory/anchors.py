# SPDX-License-Identifier: Apache-2.0
"""A random sample of the labelled voxels of each volume, as anchors of a contrast that cannot afford them all."""

import torch
from torch import Tensor

from ssmis._checks import check_labels


def sample_voxels(
    features: Tensor, labels: Tensor, *, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw `count` random voxels with a label >= 0 from each volume; the output's size never changes.

    Args:
        features: `(B, E, *S)`.
        labels: integer `(B, *S)`; a negative label is not drawn while there are others.
        count: voxels a volume, at least 1; more than V are all of them.
        generator: of the draw; None is torch's global generator.

    Returns:
        Features `(B, E, n)` and int64 labels `(B, n)` with n = min(count, V); where a volume has fewer labelled voxels,
        the rest has label -1.

    Raises:
        ValueError: shapes or dtypes that do not fit, or count < 1.

    Gradient: to features, at the voxels drawn.
    Empty case: a volume without a labelled voxel gives labels -1 throughout.
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1")
    check_labels(labels, features, maps_name="features")
    flat, flat_labels = features.flatten(2), labels.flatten(1).long()  # uint8 has no -1
    device = generator.device if generator is not None else flat.device
    scores = torch.rand(flat_labels.shape, generator=generator, device=device).to(flat.device)
    chosen = scores.where(flat_labels >= 0, -1).topk(min(count, flat.shape[2]), dim=1).indices
    drawn = flat.gather(2, chosen[:, None].expand(-1, flat.shape[1], -1))
    return drawn, flat_labels.gather(1, chosen).clamp_min(-1)


def volume_weight(labels: Tensor) -> Tensor:
    """Return float `(B, *S)` weights under which a mean over voxels is a mean over each volume, then over volumes.

    Args:
        labels: integer `(B, *S)`; voxels with a negative label weigh nothing.

    Empty case: a volume without a labelled voxel weighs nothing.

    >>> volume_weight(torch.tensor([[0, 1, 1, 0], [1, -1, -1, -1]]))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500],
            [1.0000, 0.0000, 0.0000, 0.0000]])
    """
    counted = (labels >= 0).flatten(1).float()
    return (counted / counted.sum(1, keepdim=True).clamp_min(1)).view(labels.shape)
