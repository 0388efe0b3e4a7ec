# SPDX-License-Identifier: Apache-2.0
"""What a case is: an image, perhaps a label, a spacing and an id; and how cases are split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """Something is wrong with the data; the message names the file if one is at fault, else the case or the count."""


MAX_VOXELS = 2**30  # of a volume; the largest scans of whole bodies have fewer


@dataclass(frozen=True)
class Case:
    """One case on disk.

    Attributes:
        id: unique name.
        image: file that holds the image.
        label: file that holds the label; None makes the case unlabelled, whatever the image file may hold besides.
        spacing_mm: voxel size in mm, in the order of the spatial axes; empty where the image file says it.
        channels: files of the second and further channels, where each has one.
        subject: whom it is of; cases of one subject stay on one side of a split. Empty: it is a subject by itself.
    """

    id: str
    image: Path
    label: Path | None
    spacing_mm: tuple[float, ...]
    channels: tuple[Path, ...] = ()
    subject: str = ""

    @property
    def labelled(self) -> bool:
        """Whether the label of this case may be read."""
        return self.label is not None


@dataclass(frozen=True)
class Volume:
    """A decoded case: image float32 `(C, *S)`, label uint8 `(*S)` or None, spacing in mm."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Split:
    """Cases by role; no case has two roles, and unlabelled ones carry no label path.

    Raises:
        DataError: a case is in two of the four groups, or twice in one.
    """

    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    val: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()

    def __post_init__(self) -> None:
        check_no_overlap(**{name: [case.id for case in group] for name, group in vars(self).items()})


def check_no_overlap(**groups: Sequence[str]) -> None:
    """Raise DataError if an id is in two of the named groups, or twice in one."""
    seen: dict[str, str] = {}
    for group, ids in groups.items():
        for case in ids:
            if case in seen:
                where = f"twice in {group}" if seen[case] == group else f"in both {seen[case]} and {group}"
                raise DataError(f"case {case!r} is {where}")
            seen[case] = group


def check_name(name: str, source: object, *, file: bool = False) -> str:
    """Return the name of a case in a list, if a path made of it stays in the data folder.

    Symbolic links inside of the folder are followed: they are of whoever owns it.

    Args:
        name: of a case, or a path.
        source: where it stands, for the message.
        file: it is a path and no name, so it may go a way round, such as `./a`; with names of cases one case would have
            two.

    Raises:
        DataError: it is absolute, leads upwards, goes a way round, or has a control character.
    """
    parts = name.replace("\\", "/").split("/")
    wrong = {".."} if file else {"", ".", ".."}
    if wrong & set(parts) or parts[0] == "" or not name.strip(" .") or ":" in parts[0] or not name.isprintable():
        raise DataError(
            f"{source}: case {name!r} is no name of a case; expected a path inside of the data folder, without '.', "
            "'..', drives and control characters"
        )
    return name


def check_size(shape: Sequence[int], source: object) -> None:
    """Raise DataError, naming `source`, before memory is taken for a volume that cannot be one."""
    if (voxels := math.prod(shape)) > MAX_VOXELS:
        raise DataError(f"{source}: it declares {tuple(shape)}, {voxels} voxels; expected at most {MAX_VOXELS}")


def check_volume(volume: Volume, source: object, *, classes: int) -> None:
    """Raise DataError, naming `source`, for values or shapes that no training can use.

    Args:
        volume: what was read.
        source: the file, for messages.
        classes: number of classes K; labels must lie in 0..K-1.
    """
    image, label = volume.image, volume.label
    bad = image.size - int(np.isfinite(image).sum())
    if bad:
        raise DataError(f"{source}: the image has {bad} NaN or infinite voxels of {image.size}")
    if label is None:
        return
    if label.shape != image.shape[1:]:
        raise DataError(f"{source}: the label has shape {label.shape}; expected {image.shape[1:]} to match the image")
    found = np.flatnonzero(np.bincount(label.ravel()))
    if found.size and found[-1] >= classes:
        raise DataError(f"{source}: the label has values {found.tolist()}; expected 0 to {classes - 1}")
