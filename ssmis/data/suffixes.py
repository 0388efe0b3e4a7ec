# SPDX-License-Identifier: Apache-2.0
"""Kinds of files, by the ends of their names."""

from pathlib import Path

VOLUMES = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh", ".mnc")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
HDF5 = (".h5", ".hdf5")


def suffix_of(path: Path | str) -> str:
    """The suffix by which a file is read, such as ".nii.gz"; empty if it is none that is."""
    name = Path(path).name.lower()
    return next((suffix for suffix in (*VOLUMES, *PICTURES) if name.endswith(suffix)), "")


def says_size(path: Path) -> bool:
    """Whether a file itself has the size of its voxels: pictures and HDF5 files have none."""
    return suffix_of(path) not in PICTURES and path.suffix not in HDF5


def stem_of(path: Path | str) -> str:
    """The name without that suffix.

    >>> stem_of("scans/knee_03.nii.gz")
    'knee_03'
    """
    return Path(path).name[: -len(suffix_of(path)) or None]
