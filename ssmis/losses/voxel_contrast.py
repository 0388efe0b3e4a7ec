# SPDX-License-Identifier: Apache-2.0
"""Contrast of voxel features with labelled keys, as a module around `ssmis.kernels.voxel_contrast`."""

from torch import Tensor, nn

from ssmis.kernels import voxel_contrast
from ssmis.kernels.voxel_contrast import ContrastReduction, Denominator, Implementation
from ssmis.registry import LOSSES, Example

__all__ = ["VoxelContrast", "voxel_contrast"]


@LOSSES.register(
    "voxel_contrast",
    example=Example(
        call={"features": "features", "labels": "labels", "keys": "keys", "key_labels": "key_labels"},
        student=("features",),
        teacher=("keys",),
    ),
)
class VoxelContrast(nn.Module):
    """Multi-positive InfoNCE of voxel features against labelled keys; see `ssmis.kernels.voxel_contrast`.

    The keys come from a memory bank and are detached here; the function gives them gradient where they ask for it.
    `reduction` is that of the function: "mean" is over all voxels of the batch that count, not per volume first.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        ignore_index: int = -1,
        normalize: bool = True,
        denominator: Denominator = "all",
        reduction: ContrastReduction = "mean",
        impl: Implementation = "auto",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.normalize = normalize
        self.denominator: Denominator = denominator
        self.reduction: ContrastReduction = reduction
        self.impl: Implementation = impl

    def forward(
        self, features: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss."""
        return voxel_contrast(
            features,
            labels,
            keys.detach(),
            key_labels,
            temperature=self.temperature,
            weight=weight,
            ignore_index=self.ignore_index,
            normalize=self.normalize,
            denominator=self.denominator,
            reduction=self.reduction,
            impl=self.impl,
        )
