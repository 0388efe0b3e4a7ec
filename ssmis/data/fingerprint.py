# SPDX-License-Identifier: Apache-2.0
"""What makes an image known again: digests, coarse pictures of it and of its labelled part, a sample of intensities."""

import hashlib
import math
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ssmis.data.components import bounding_box

_SIDE = 16
_VALUES = 256
_SMALLEST = 8  # voxels an axis of a labelled part that is told from another one


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of shape and values `(*S)`: float32 (images) or uint8 (labels), little-endian, last axis fastest.

    It is the same however the file was compressed.
    """
    kind = "<f4" if np.issubdtype(array.dtype, np.floating) else "|u1"
    values = np.ascontiguousarray(array, dtype=kind)
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


def coarse_picture(image: NDArray[Any]) -> NDArray[np.float64]:
    """Unit vector of an image `(*S)`: averaged onto 16 points an axis, minus its mean; zeros for a constant image."""
    tensor = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    coarse = F.interpolate(tensor, size=(_SIDE,) * image.ndim, mode="area")
    picture: NDArray[np.float64] = coarse.numpy().ravel().astype(np.float64)
    picture -= picture.mean()
    return picture / (np.linalg.norm(picture) or 1.0)


def orientations(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coarse picture with its axes flipped and exchanged in every way, a row each (3-D: 48), first as it is."""
    dims = round(math.log(picture.size, _SIDE))
    cube = picture.reshape((_SIDE,) * dims)
    ways = product(permutations(range(dims)), product((1, -1), repeat=dims))
    return np.array([cube.transpose(axes)[tuple(slice(None, None, step) for step in steps)].ravel()
                     for axes, steps in ways])  # fmt: skip


def likeness(
    pictures: NDArray[np.float64], picture: NDArray[np.float64], *, turned: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Correlations of coarse pictures `(N, P)` with one `(P,)`, negative where dark and bright are exchanged.

    With `turned` the orientation in which its absolute value is largest counts, and the second `(N,)` says where it
    is another one than the stored.
    """
    found = pictures @ (orientations(picture) if turned else picture[None]).T
    best = np.abs(found).argmax(axis=1)
    return found[np.arange(len(found)), best], best > 0


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Of one image `(*S)`, and of the label beside it.

    Attributes:
        digest: `array_digest` of the image.
        picture: unit vector: the image averaged onto 16 points an axis, minus its mean. The inner product of
            two is the correlation of the images, each stretched to the same box.
        values: sorted sample of at most 256 of its distinct values, chosen by the values alone. A z-scored volume has
            values of its own: a crop or a flip of it shares them, another scan does not. Whole numbers and multiples
            of one are nobody's own: of an image of them there are none.
        label_digest: `array_digest` of the label within the box of its foreground, which is the same in a crop;
            empty without a label, for a box under 8 voxels an axis, and for one that the foreground fills.
        label_picture: as `picture`, of the image within that box; zeros where `label_digest` is empty.
    """

    digest: str
    picture: NDArray[np.float64]
    values: NDArray[np.uint32]
    label_digest: str
    label_picture: NDArray[np.float64]

    @classmethod
    def of(cls, image: NDArray[np.float32], label: NDArray[np.uint8] | None = None) -> "Fingerprint":
        """Take the fingerprint of an image `(*S)`, and of its label `(*S)` if there is one."""
        digest, picture = array_digest(image), coarse_picture(image)
        box = () if label is None else _box(label)
        if label is None or not box or label[box].all():
            return cls(digest, picture, _sample(image), "", np.zeros_like(picture))
        return cls(digest, picture, _sample(image), array_digest(label[box]), coarse_picture(image[box]))

    def correlation(self, other: "Fingerprint") -> float:
        """Correlation of the coarse pictures, in [-1, 1]; 0 for a constant image."""
        return float(self.picture @ other.picture)

    def shared_values(self, other: "Fingerprint") -> float:
        """Share of the values of the one with fewer that the other has too, in [0, 1]; 0 where one has none."""
        fewer = min(len(self.values), len(other.values))
        return len(np.intersect1d(self.values, other.values, assume_unique=True)) / max(fewer, 1)


def _box(label: NDArray[np.uint8]) -> tuple[slice, ...]:
    """Box of the foreground; empty if it has under 8 voxels along an axis."""
    box = bounding_box(label)
    return box if box and all(side.stop - side.start >= _SMALLEST for side in box) else ()


def _sample(image: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The distinct values whose scrambled bits are smallest: a crop keeps those that it holds.

    None where they are whole numbers or multiples of one, as of CT or 8 bits: other scans have the same.
    """
    values = np.unique(np.ascontiguousarray(image, dtype=np.float32))
    if len(values) > 1 and _of_one_grid(values.astype(np.float64)):
        return np.zeros(0, np.uint32)
    scrambled = (values.view(np.uint32).astype(np.uint64) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    kept: NDArray[np.uint32] = np.sort(scrambled)[:_VALUES].astype(np.uint32)
    return kept


def _of_one_grid(values: NDArray[np.float64]) -> bool:
    """Whether rising values are multiples of their smallest step, 0 among them or not."""
    steps = np.diff(values)
    step = steps.sum() / np.round(steps / steps.min()).sum()
    return bool(np.abs(values / step - np.round(values / step)).max() < 1e-3)
