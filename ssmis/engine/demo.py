# SPDX-License-Identifier: Apache-2.0
"""Scans of a made-up organ, laid out as a user's folder: few labels, mixed orientation and spacing."""

from pathlib import Path

import numpy as np

from ssmis.data import Grid, atrium_phantom, batch_key, write_map

ORIENTATIONS = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    ((0, 0, 1), (-1, 0, 0), (0, -1, 0)),
)


def write_demo(
    root: Path | str,
    *,
    labelled: int = 6,
    unlabelled: int = 20,
    size: tuple[int, int, int] = (32, 32, 24),
    seed: int = 0,
) -> Path:
    """Write phantoms as NIfTI into `images/` and `labels/`, each case in one of three orientations; returns `root`.

    Files that are there are left as they are.
    """
    root = Path(root)
    for index in range(labelled + unlabelled):
        name = f"scan_{index:03d}"
        image, label = atrium_phantom(batch_key(seed, index), size=size)
        directions = np.array(ORIENTATIONS[index % len(ORIENTATIONS)], dtype=np.float64)
        affine = np.eye(4)
        affine[:3, :3] = directions * (1.5 + 0.1 * (index % 2))  # columns are file axes
        grid = Grid(_file_shape(directions, image.shape), tuple(np.linalg.norm(affine[:3, :3], axis=0)), affine)
        if not (root / "images" / f"{name}.nii.gz").exists():
            write_map(root / "images" / name, np.rint(100 * image + 500).astype(np.int16), grid)
        if index < labelled and not (root / "labels" / f"{name}.nii.gz").exists():
            write_map(root / "labels" / name, label, grid)
    return root


def _file_shape(directions: np.ndarray, canonical: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(canonical[int(np.abs(directions[:, axis]).argmax())] for axis in range(3))
