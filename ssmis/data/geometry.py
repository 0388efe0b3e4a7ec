# SPDX-License-Identifier: Apache-2.0
"""Flips and quarter turns, which lose nothing, and affine maps, which do: one draw for image, label and mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Flips and quarter turns of a batch, volume by volume, for any tensor whose last axes are `*S`.

    Attributes:
        flips: for each volume the spatial axes to flip, counted from 0.
        turns: for each volume the quarter turns in `plane`, after the flips; odd ones need a square plane.
        dims: number of spatial axes.
        plane: the two spatial axes that turn.
    """

    flips: tuple[tuple[int, ...], ...]
    turns: tuple[int, ...]
    dims: int
    plane: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if len(self.flips) != len(self.turns):
            raise ValueError(f"flips has {len(self.flips)} volumes; expected {len(self.turns)} to match turns")

    def apply(self, volumes: Tensor) -> Tensor:
        """Move `(B, *S)` or `(B, C, *S)`."""
        return self._each(volumes, undo=False)

    def invert(self, volumes: Tensor) -> Tensor:
        """Undo `apply`, bit for bit; for predictions made on moved images."""
        return self._each(volumes, undo=True)

    def _each(self, volumes: Tensor, *, undo: bool) -> Tensor:
        if len(volumes) != len(self.turns) or volumes.ndim <= self.dims:
            raise ValueError(
                f"volumes has shape {tuple(volumes.shape)}; "
                f"expected {len(self.turns)} volumes with {self.dims} spatial axes"
            )
        plane = tuple(axis - self.dims for axis in self.plane)
        if any(turn % 2 for turn in self.turns) and volumes.shape[plane[0]] != volumes.shape[plane[1]]:
            raise ValueError(
                f"volumes has shape {tuple(volumes.shape)}; a quarter turn needs a square plane {self.plane}"
            )
        moved = []
        for volume, axes, turn in zip(volumes, self.flips, self.turns):
            flip = [axis - self.dims for axis in axes]
            if undo:
                volume = torch.rot90(volume, -turn, plane) if turn % 4 else volume
                volume = volume.flip(flip) if flip else volume
            else:
                volume = volume.flip(flip) if flip else volume
                volume = torch.rot90(volume, turn, plane) if turn % 4 else volume
            moved.append(volume)
        return torch.stack(moved) if moved else volumes


def affine_matrices(
    degrees: Tensor, scales: Tensor, shifts: Tensor, *, spacing_mm: Sequence[float] | None = None
) -> Tensor:
    r"""Matrices that turn, scale and shift about the centre, in voxels.

    Turns are rigid in mm: with voxels of 0.7 x 0.7 x 5 mm a turn in voxels would shear the body.

    Args:
        degrees: `(B, 1)` in 2-D, `(B, 3)` in 3-D: angles in the planes (0, 1), (0, 2), (1, 2), applied in this order.
        scales: `(B,)`; 2 shows everything twice as large.
        shifts: `(B, dims)`, voxels by which the content moves.
        spacing_mm: voxel size; None is cubes.

    Returns:
        `(B, dims, dims + 1)`, the inverse map: voxel offset from the centre in the result -> offset in the source.

    Raises:
        ValueError: `spacing_mm` has another number of axes.
    """
    dims = shifts.shape[1]
    planes = [(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]
    linear = torch.eye(dims, dtype=shifts.dtype, device=shifts.device).expand(len(shifts), dims, dims)
    for index, (first, second) in enumerate(planes):
        angle = degrees[:, index] * (math.pi / 180)
        turn = torch.eye(dims, dtype=shifts.dtype, device=shifts.device).repeat(len(shifts), 1, 1)
        turn[:, first, first] = turn[:, second, second] = angle.cos()
        turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
        linear = turn @ linear
    inverse = linear.mT / scales[:, None, None]
    if spacing_mm is not None and len(set(spacing_mm)) > 1:  # to mm, turned there, and back
        if len(spacing_mm) != dims:
            raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; expected {dims} numbers, one an axis")
        sizes = torch.tensor(spacing_mm, dtype=shifts.dtype, device=shifts.device)
        inverse = inverse * sizes / sizes[:, None]
    return torch.cat([inverse, -inverse @ shifts[..., None]], dim=2)


def affine(
    images: Tensor, matrices: Tensor, labels: Tensor | None = None, valid: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Resample through `affine_matrices`: images linearly, labels and mask by the nearest voxel.

    What comes from outside the volume repeats the border in the image, is -1 in the labels and false in the mask.

    Args:
        images: `(B, C, *S)`.
        matrices: `(B, dims, dims + 1)`, voxel offsets in the order of `*S`.
        labels: int64 `(B, *S)`.
        valid: bool `(B, *S)`.
    """
    grid = _grid(matrices.to(images), images.shape[2:])
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    maps = [m[:, None].to(images.dtype) for m in (None if labels is None else labels + 1, valid) if m is not None]
    if maps:
        stacked = F.grid_sample(torch.cat(maps, 1), grid, mode="nearest", padding_mode="zeros", align_corners=False)
        if labels is not None:
            labels = stacked[:, 0].round().to(labels.dtype) - 1
        if valid is not None:
            valid = stacked[:, -1] > 0.5
    return moved, labels, valid


def _grid(matrices: Tensor, size: Sequence[int]) -> Tensor:
    """Voxel matrices -> sampling grid in `grid_sample`'s coordinates (axes reversed, half a volume is 1)."""
    half = torch.tensor(size, dtype=matrices.dtype, device=matrices.device) / 2
    linear = matrices[:, :, :-1] * half / half[:, None]
    theta = torch.cat([linear.flip(1, 2), (matrices[:, :, -1:] / half[:, None]).flip(1)], dim=2)
    return F.affine_grid(theta, [len(matrices), 1, *size], align_corners=False)
