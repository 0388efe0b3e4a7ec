# SPDX-License-Identifier: Apache-2.0
"""Headers of volumes, and what they claim, before memory is taken for it."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np

from ssmis._optional import require
from ssmis.data.cases import DataError, check_size

DEFLATE = 1032  # nothing that gzip or PNG packs gets smaller by more
HEAD_BYTES = 2**26  # of a NIfTI header with its extensions


def open_volume(path: Path, kind: str) -> Any:
    """Open a volume without its voxels.

    Args:
        path: of a file that is there.
        kind: of file, for messages.

    Returns:
        An image of nibabel.

    Raises:
        DataError: it cannot be read, or declares more voxels than a scan has or than the file can hold.
    """
    nib = require("nibabel", extra="medical", purpose="reading NIfTI")
    try:
        if path.name.lower().endswith(".nii.gz"):
            _check_head(path)
        image = nib.load(path)
        voxel, shape = np.dtype(image.get_data_dtype()), tuple(int(n) for n in image.shape)
    except DataError:
        raise
    except Exception as error:  # nibabel raises whatever the damage brings about
        raise DataError(f"{path}: cannot be read as {kind} ({error})") from error
    check_size(shape, path)
    stored = Path(image.file_map["image"].filename)
    there = stored.stat().st_size if stored.is_file() else 0
    packed = stored.suffix.lower() not in (".nii", ".img", ".mgh")
    if math.prod(shape) * voxel.itemsize > there * (DEFLATE if packed else 1):
        raise DataError(
            f"{path}: cannot be read as {kind}, perhaps truncated (it declares {shape} voxels of {voxel} "
            f"and has {there} bytes)"
        )
    return image


def _check_head(path: Path) -> None:
    """A packed file may claim a header of gigabytes, and hold it: zeros pack well."""
    with gzip.open(path) as file:
        head = file.read(544)
        wide = head[4:7] == b"n+2"
        axes = int(np.frombuffer(head, "<i8" if wide else "<i2", 1, 16 if wide else 40)[0])
        order = "<" if 1 <= axes <= 7 or (not axes and head[:2] in (b"\x5c\x01", b"\x1c\x02")) else ">"
        claimed = float(np.frombuffer(head, order + ("i8" if wide else "f4"), 1, 168 if wide else 108)[0])
        start, at = int(claimed) if abs(claimed) < 2**62 else 2**62, 540 if wide else 348
        if start > HEAD_BYTES:
            raise DataError(f"{path}: its voxels begin at byte {start}; expected a header of at most {HEAD_BYTES}")
        file.seek(at)
        if not file.read(4)[:1].strip(b"\0"):
            return
        at += 4
        while at + 16 <= start:  # extensions: each has its size first
            size = int(np.frombuffer(file.read(8)[:4].ljust(4, b"\0"), order + "i4")[0])
            if size < 16 or at + size > start:
                raise DataError(f"{path}: an extension of the header has {size} bytes; expected 16 to {start - at}")
            at += size
            file.seek(at)
