# SPDX-License-Identifier: Apache-2.0
"""What makes an image known again: a digest of its values, a coarse picture of it, and a sample of its intensities."""

import hashlib
import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

_SIDE = 16
_VALUES = 256


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


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Of one image `(*S)`.

    Attributes:
        digest: `array_digest` of it.
        picture: unit vector: the image averaged onto 16 points an axis, minus its mean. The inner product of
            two is the correlation of the images, each stretched to the same box.
        values: sorted sample of at most 256 of its distinct values, chosen by the values alone. A z-scored volume has
            values of its own: a crop or a flip of it shares them, another scan does not.
    """

    digest: str
    picture: NDArray[np.float64]
    values: NDArray[np.uint32]

    @classmethod
    def of(cls, image: NDArray[np.float32]) -> "Fingerprint":
        """Take the fingerprint of an image `(*S)`."""
        return cls(array_digest(image), coarse_picture(image), _sample(image))

    def correlation(self, other: "Fingerprint") -> float:
        """Correlation of the coarse pictures, in [-1, 1]; 0 for a constant image."""
        return float(self.picture @ other.picture)

    def mirrored(self) -> NDArray[np.float64]:
        """Coarse pictures of the image flipped along one axis or several, a row each."""
        dims = round(math.log(self.picture.size, _SIDE))
        picture = self.picture.reshape((_SIDE,) * dims)
        flips = (axes for count in range(1, dims + 1) for axes in combinations(range(dims), count))
        return np.array([np.flip(picture, axes).ravel() for axes in flips])

    def shared_values(self, other: "Fingerprint") -> float:
        """Share of the values of the one with fewer that the other has too, in [0, 1]."""
        fewer = min(len(self.values), len(other.values))
        return len(np.intersect1d(self.values, other.values, assume_unique=True)) / max(fewer, 1)


def _sample(image: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The distinct values whose scrambled bits are smallest: a crop keeps those that it holds."""
    bits = np.unique(np.ascontiguousarray(image, dtype=np.float32)).view(np.uint32)
    scrambled = (bits.astype(np.uint64) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    kept: NDArray[np.uint32] = np.sort(scrambled)[:_VALUES].astype(np.uint32)
    return kept
