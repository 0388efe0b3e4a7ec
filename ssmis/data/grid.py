# SPDX-License-Identifier: Apache-2.0
"""Where the voxels of a file lie, and how its axes are turned to a canonical orientation and back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray


def closest_axes(affine: NDArray[Any]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Find which voxel axis runs closest to each world axis, and which of them run against it.

    The rotation nearest to the affine's directions (its polar factor) decides, so a shear moves no axis by itself; of
    the six assignments the one with the largest sum of squared cosines is taken.

    Args:
        affine: `(4, 4)`, voxels to mm, world axes right, anterior, superior.

    Returns:
        `axes`: world axis -> voxel axis, and `flips`: world axis -> whether the voxel axis runs the other way.

    Raises:
        ValueError: the affine is not `(4, 4)`, not finite, or maps the voxels onto a plane.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"affine is {matrix.tolist()}; expected finite numbers (4, 4)")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() <= 0:
        raise ValueError(f"the voxels have the size {lengths.tolist()} mm; expected positive lengths")
    left, strengths, right = np.linalg.svd(matrix[:3, :3] / lengths)
    if strengths[-1] < 1e-4:
        raise ValueError("the affine maps the voxels onto a plane; expected three independent axes")
    rotation = left @ right  # world axis, voxel axis
    axes = max(permutations(range(3)), key=lambda order: sum(rotation[w, v] ** 2 for w, v in enumerate(order)))
    return tuple(axes), tuple(bool(rotation[w, v] < 0) for w, v in enumerate(axes))


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a file, and the way to its canonical orientation: axes that run right, anterior, superior.

    Turning is a permutation and flips of axes, never an interpolation: `restore(canonical(array))` is `array`.

    Attributes:
        shape: spatial axes of the file, two (pictures) or three.
        spacing_mm: size of a voxel along them.
        affine: float64 `(4, 4)`, voxels to mm; None for pictures, which stay as they are.
        header: what the file says besides, for writing on the same grid.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    affine: NDArray[np.float64] | None = None
    header: Any = None
    axes: tuple[int, ...] = field(init=False)
    flips: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Derive axes and flips."""
        plain = tuple(range(len(self.shape))), (False,) * len(self.shape)
        axes, flips = plain if self.affine is None else closest_axes(self.affine)
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "flips", flips)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """Shape after `canonical`."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def canonical_spacing_mm(self) -> tuple[float, ...]:
        """Spacing in the order of the canonical axes."""
        return tuple(self.spacing_mm[axis] for axis in self.axes)

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """Affine of the turned array; for pictures the spacing."""
        if self.affine is None:
            return np.diag([*self.spacing_mm, *[1.0] * (4 - len(self.spacing_mm))])
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for world, (axis, flip) in enumerate(zip(self.axes, self.flips)):
            turn[axis, world] = -1 if flip else 1
            turn[axis, 3] = self.shape[axis] - 1 if flip else 0
        return self.affine @ turn

    @property
    def orientation(self) -> str:
        """Where the axes of the file run, such as "LPS"; "picture" without an affine."""
        if self.affine is None:
            return "picture"
        letters = [""] * 3
        for world, (axis, flip) in enumerate(zip(self.axes, self.flips)):
            letters[axis] = ("LPI" if flip else "RAS")[world]
        return "".join(letters)

    def canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn the last axes `(..., *shape)` to the canonical orientation; a view."""
        lead = array.ndim - len(self.shape)
        self._check(array.shape[lead:], self.shape)
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return turned[_steps(self.flips)]

    def restore(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn `(..., *canonical_shape)` back to the axes of the file; a view."""
        lead = array.ndim - len(self.shape)
        self._check(array.shape[lead:], self.canonical_shape)
        turned = array[_steps(self.flips)]
        return turned.transpose(*range(lead), *(lead + axis for axis in np.argsort(self.axes).tolist()))

    def distance_to(self, other: "Grid") -> float:
        """Greatest distance between corresponding corners of the canonical grids, in voxels of this one.

        Infinite where the canonical shapes differ.
        """
        if self.canonical_shape != other.canonical_shape:
            return float("inf")
        ends = np.array([[0, size - 1] for size in self.canonical_shape] + [[0, 0]] * (3 - len(self.shape)))
        corners = np.stack([*(axis.ravel() for axis in np.meshgrid(*ends)), np.ones(8)])
        here, there = self.canonical_affine @ corners, other.canonical_affine @ corners
        return float(np.linalg.norm(here - there, axis=0).max() / min(self.spacing_mm))

    @staticmethod
    def _check(found: Sequence[int], expected: Sequence[int]) -> None:
        if tuple(found) != tuple(expected):
            raise ValueError(f"array has spatial shape {tuple(found)}; expected {tuple(expected)}")


def _steps(flips: Sequence[bool]) -> Any:
    return (..., *(slice(None, None, -1 if flip else 1) for flip in flips))
