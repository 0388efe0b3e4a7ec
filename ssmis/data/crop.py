# SPDX-License-Identifier: Apache-2.0
"""Random crops of memory-mapped volumes, padded where a volume is smaller than the patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmis._checks import check_range


@dataclass(frozen=True)
class Crop:
    """A patch: image float32 `(C, *S)`, label int64 `(*S)` (-1 where unknown), valid bool `(*S)` (false in padding)."""

    image: Tensor
    label: Tensor
    valid: Tensor

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, patch: Sequence[int]) -> "Crop":
        """Take back the dict of a transform, in which label and valid are `(1, *S)`.

        Raises:
            ValueError: a shape does not fit the patch.
        """
        parts = {}
        for name in ("image", "label", "valid"):
            part = torch.as_tensor(values[name]).as_subclass(Tensor)  # a guest may return a subclass of Tensor
            if tuple(part.shape[1:]) != tuple(patch) or (name != "image" and len(part) != 1):
                channels = "C" if name == "image" else 1
                raise ValueError(
                    f"transform returned {name!r} of shape {tuple(part.shape)}; expected ({channels}, *{tuple(patch)})"
                )
            parts[name] = part
        label = parts["label"][0]
        label = label.round() if label.is_floating_point() else label
        return cls(parts["image"].float(), label.long(), parts["valid"][0] > 0.5)


def crop_volume(
    image: NDArray[np.float32], label: NDArray[Any] | None, *, start: Sequence[int], patch: Sequence[int]
) -> Crop:
    """Cut `patch` voxels from `start` on; what lies outside the volume is padding.

    Args:
        image: `(C, *S)`.
        label: `(*S)` or None, which gives -1 throughout.
        start: first voxel on each axis; may be negative.
        patch: size of the crop.
    """
    size = image.shape[1:]
    inside, target = [], []
    for first, length, limit in zip(start, patch, size):
        low, high = max(first, 0), min(first + length, limit)
        inside.append(slice(low, high))
        target.append(slice(low - first, high - first))
    whole = all(where == slice(0, length) for where, length in zip(target, patch))
    if whole:
        cut = np.array(image[(slice(None), *inside)], dtype=np.float32)
    else:
        cut = np.zeros((len(image), *patch), dtype=np.float32)  # zeros, as around the windows of inference
        cut[(slice(None), *target)] = image[(slice(None), *inside)]
    valid = np.full(tuple(patch), whole)
    if not whole:
        valid[tuple(target)] = True
    if whole and label is not None:
        labels = np.array(label[tuple(inside)], dtype=np.int64)
    else:
        labels = np.full(tuple(patch), -1, dtype=np.int64)
        if label is not None:
            labels[tuple(target)] = label[tuple(inside)]
    return Crop(torch.from_numpy(cut), torch.from_numpy(labels), torch.from_numpy(valid))


class CropPicker:
    """Random crops: anywhere in the volume, or around a random foreground voxel.

    Args:
        patch: size of the crops.
        foreground_prob: chance of a crop centred on foreground, as far as the border allows, for volumes with a
            label that has any.
    """

    def __init__(self, patch: tuple[int, ...], foreground_prob: float = 0.0) -> None:
        if not patch or any(length < 1 for length in patch):
            raise ValueError(f"patch is {patch}; expected positive lengths")
        check_range(foreground_prob, 0, 1, name="foreground_prob")
        self.patch = patch
        self.foreground_prob = foreground_prob
        self._foreground: dict[str, NDArray[np.int64]] = {}  # looking it up anew each step would read whole labels

    def __call__(self, case: str, image: NDArray[np.float32], label: NDArray[Any] | None, key: int) -> Crop:
        """Crop one volume; `key` decides where."""
        random = np.random.default_rng(key)
        share = random.random(len(self.patch))
        wants_foreground = random.random() < self.foreground_prob
        pick = random.random()
        size = image.shape[1:]
        start = [int(s * (limit - length + 1)) for s, limit, length in zip(share, size, self.patch)]
        if wants_foreground and label is not None:
            voxels = self._voxels(case, label)
            if len(voxels):
                centre = np.unravel_index(voxels[int(pick * len(voxels))], size)
                start = [
                    min(max(int(c) - length // 2, 0), limit - length)
                    for c, length, limit in zip(centre, self.patch, size)
                ]
        # Smaller volumes sit in the middle of the patch.
        start = [
            first if limit >= length else (limit - length) // 2 for first, limit, length in zip(start, size, self.patch)
        ]
        return crop_volume(image, label, start=start, patch=self.patch)

    def _voxels(self, case: str, label: NDArray[Any]) -> NDArray[np.int64]:
        if case not in self._foreground:
            voxels = np.flatnonzero(np.asarray(label) > 0)
            self._foreground[case] = voxels[:: max(1, len(voxels) // 4096)]
        return self._foreground[case]


def stack_crops(crops: Sequence[Crop], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Images `(B, C, *S)`, labels and valid `(B, *S)` on `device`."""
    return (
        torch.stack([crop.image for crop in crops]).to(device),
        torch.stack([crop.label for crop in crops]).to(device),
        torch.stack([crop.valid for crop in crops]).to(device),
    )
