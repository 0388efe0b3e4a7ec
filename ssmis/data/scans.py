# SPDX-License-Identifier: Apache-2.0
"""Images and label maps in files: NIfTI (and what else nibabel reads) and pictures, in and out on their own grid."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmis._optional import require
from ssmis.data.cases import Case, DataError
from ssmis.data.grid import Grid
from ssmis.data.headers import DEFLATE, open_volume
from ssmis.data.held_out import check_file, check_open
from ssmis.data.la import load_la
from ssmis.data.suffixes import HDF5, PICTURES, VOLUMES, suffix_of
from ssmis.data.whole import replacing

SAME_PLACE = 0.1  # voxels: files of one scan that were written by two programs differ by less


@dataclass(frozen=True, eq=False)
class Scan:
    """A decoded image in canonical orientation: `(C, *S)` of the file's own type, and the grid it came from."""

    image: NDArray[Any]
    grid: Grid


def read_grid(path: Path | str, *, spacing_mm: Sequence[float] = ()) -> tuple[Grid, int, str]:
    """Read shape and geometry without the voxels: the grid, the number of channels and the stored type."""
    path = _existing(path)
    if suffix_of(path) in PICTURES:
        with _picture(path) as picture:
            grid = Grid(picture.size[::-1], tuple(spacing_mm) or (1.0, 1.0))
            return grid, len(picture.getbands()), str(picture.mode)
    image = open_volume(path, _format(path))
    return _grid(image, path), _channels(image.shape, path), str(image.get_data_dtype())


def read_scan(path: Path | str, *, channels: Sequence[Path] = (), spacing_mm: Sequence[float] = ()) -> Scan:
    """Read an image in canonical orientation.

    A fourth axis of a volume, or the bands of a picture, are channels; three equal bands are one. Values are those the
    file means (scaled by its slope), not yet float32.

    Args:
        path: of the image.
        channels: files of further channels, on the same grid.
        spacing_mm: of a picture; volumes say it themselves.

    Raises:
        DataError: no such file, a kind that is not read, a damaged file, an axis without voxels, geometry that is no
            geometry, or channels on different grids.
        HeldOutError: it is held out of a training that runs.
    """
    path = _existing(path)
    check_file(path)
    first = _read_picture(path, spacing_mm) if suffix_of(path) in PICTURES else _read_volume(path)
    parts = [first.image]
    for other in channels:
        further = read_scan(other, spacing_mm=spacing_mm)
        if not first.grid.distance_to(further.grid) < SAME_PLACE:
            raise DataError(
                f"{other}: this channel has shape {further.grid.shape} ({further.grid.orientation}); "
                f"expected the grid of {path.name}, {first.grid.shape} ({first.grid.orientation})"
            )
        parts.append(further.image)
    return Scan(np.concatenate(parts) if len(parts) > 1 else first.image, first.grid)


def read_labels(path: Path | str, grid: Grid, *, image: Path | str = "") -> NDArray[np.int32]:
    """Read the label map of an image whose grid is `grid`: int32 `(*S)` in canonical orientation.

    The file may be in another orientation than the image. A file whose header has no geometry (its codes are 0, or
    its affine is the identity) is taken voxel by voxel, if its shape is that of the image's file.

    Raises:
        DataError: as `read_scan`; several channels, values that are no whole numbers, or a grid that is not the
            image's.
    """
    path = _existing(path)
    scan = read_scan(path, spacing_mm=grid.spacing_mm if grid.affine is None else ())
    if len(scan.image) != 1:
        told = "colours are no classes" if suffix_of(path) in PICTURES else "expected one label map"
        raise DataError(f"{path}: the label has {len(scan.image)} channels; {told}")
    labels = _whole(scan.image[0], path)
    named = f" of {Path(image).name}" if str(image) else ""
    if grid.distance_to(scan.grid) < SAME_PLACE:
        return labels
    if scan.grid.shape == grid.shape and not has_geometry(scan.grid):
        return grid.canonical(scan.grid.restore(labels))
    if sorted(scan.grid.shape) != sorted(grid.shape) or scan.grid.canonical_shape != grid.canonical_shape:
        raise DataError(f"{path}: the label has shape {scan.grid.shape}; expected {grid.shape} as the image{named}")
    away = grid.distance_to(scan.grid)
    raise DataError(
        f"{path}: the label lies {away:.3g} voxels away from the image{named} ({scan.grid.orientation}, image "
        f"{grid.orientation}); expected the same place: resample the label onto the image"
    )


def _whole(values: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """Label values as int32; what is a hair beside a whole number is one."""
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            wrong = np.unique(values[~np.isclose(np.rint(values), values, atol=1e-3, rtol=0)])  # NaN too
        if len(wrong):
            raise DataError(f"{path}: the label has values {wrong[:8].tolist()}; expected whole numbers")
        values = np.rint(values)
    low, high = int(values.min()), int(values.max())
    if low < -1 or high > 2**31 - 1:
        raise DataError(f"{path}: the label has values from {low} to {high}; expected 0 to {2**31 - 1}")
    return values.astype(np.int32)


def has_geometry(grid: Grid) -> bool:
    """Whether the header says where the volume lies: a code above 0 and an affine that is not the identity."""
    if grid.affine is None:
        return True
    header = grid.header
    try:
        coded = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    except (KeyError, ValueError, TypeError, IndexError):
        coded = True  # a format without codes
    return coded and not np.array_equal(grid.affine, np.eye(4))


def case_scan(case: Case) -> Scan:
    """Read the image of a case, from any file that `read_scan` reads or an HDF5 file of the SSL4MIS kind."""
    check_open(case)
    if case.image.suffix in HDF5:
        volume = load_la(_of_file(case), with_label=False)
        spacing = volume.spacing_mm
        affine = np.diag([*spacing, 1.0]) if len(spacing) == 3 else None
        return Scan(volume.image, Grid(volume.image.shape[1:], spacing, affine))
    return read_scan(case.image, channels=case.channels, spacing_mm=case.spacing_mm)


def case_labels(case: Case, grid: Grid) -> NDArray[np.int32] | None:
    """Read the label map of a case whose image lies on `grid`; None if it is unlabelled."""
    check_open(case)
    if case.label is None:
        return None
    if case.label.suffix in HDF5:
        label = load_la(_of_file(case), classes=256).label
        return None if label is None else label.astype(np.int32)
    return read_labels(case.label, grid, image=case.image)


def _of_file(case: Case) -> Case:
    """HDF5 files of this kind store no spacing: 1 stands for a voxel where nobody said better."""
    if case.spacing_mm:
        return case
    h5py = require("h5py", extra="medical", purpose="reading HDF5 volumes")
    try:
        with h5py.File(case.image, "r") as file:
            linked = hasattr(file.get("image", getlink=True), "path")  # refused when it is read
            dims = 3 if linked else file["image"].ndim
    except Exception as error:  # h5py raises whatever the damage brings about
        raise DataError(f"{case.image}: cannot be read as HDF5, perhaps truncated ({error})") from error
    return replace(case, spacing_mm=(1.0,) * dims)


def write_map(path: Path | str, array: NDArray[Any], grid: Grid) -> Path:
    """Write a label map `(*S)` or maps `(C, *S)` in canonical orientation on the grid of the file they belong to.

    Volumes: affine, qform, sform, their codes, units and spacing are the source's, bit by bit; channels become the
    fourth axis. A grid of a format other than NIfTI gets a NIfTI header with its affine. Pictures: integers of at most
    8 or 16 bit, one channel.

    Returns:
        The path, with ".nii.gz" or ".png" added if it has no suffix that can be written.
    """
    path = Path(path)
    lead = array.ndim - len(grid.shape)
    if grid.affine is None:
        return _write_picture(path, array)
    nib = require("nibabel", extra="medical", purpose="writing NIfTI")
    if not path.name.endswith((".nii", ".nii.gz")):
        path = path.with_name(path.name + ".nii.gz")
    restored = grid.restore(array)
    data = restored if lead == 0 else restored.transpose(*range(1, restored.ndim), 0)
    kind = nib.Nifti2Image if isinstance(grid.header, nib.Nifti2Header) else nib.Nifti1Image
    if isinstance(grid.header, nib.Nifti1Header):
        header = kind.header_class.from_header(grid.header, check=False)
        affine = None  # the header has it, and its codes
    else:
        header, affine = None, grid.affine
    image = kind(data, affine, header, dtype=data.dtype)
    image.header.set_data_dtype(data.dtype)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header["cal_min"] = image.header["cal_max"] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name.removesuffix('.gz').removesuffix('.nii')}.tmp{suffix_of(path)}")
    with replacing(path, temporary):
        nib.save(image, temporary)
    return path


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; expected a file")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file" + " behind this link" * path.is_symlink())
    if not suffix_of(path):
        known = ", ".join((*VOLUMES, *PICTURES))
        raise DataError(f"{path}: files of this kind are not read; expected one of {known}")
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty")
    return path


def _read_volume(path: Path) -> Scan:
    image = open_volume(path, _format(path))
    grid = _grid(image, path)
    channels = _channels(image.shape, path)
    try:
        values = np.asarray(image.dataobj)
    except Exception as error:  # as above
        raise DataError(f"{path}: cannot be read as {_format(path)}, perhaps truncated ({error})") from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: the voxels have type {values.dtype}; expected real numbers")
    stacked = np.moveaxis(values.reshape(*grid.shape, channels), -1, 0)
    return Scan(grid.canonical(stacked), grid)


def _grid(image: Any, path: Path) -> Grid:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 2 or min(shape) < 1:
        raise DataError(f"{path}: the image has shape {shape}; expected three axes of at least one voxel")
    space = (*shape, 1)[:3]
    try:
        affine = image.affine if image.affine is not None else np.eye(4)
        spacing = tuple(np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0).tolist())
        return Grid(space, spacing, np.asarray(affine, dtype=np.float64), image.header)
    except (ValueError, ArithmeticError) as error:
        raise DataError(f"{path}: {error}") from error


def _channels(shape: Sequence[int], path: Path) -> int:
    long = [n for n in shape[3:] if n != 1]
    if len(long) > 1:
        raise DataError(f"{path}: the image has shape {tuple(shape)}; expected three axes, or four with channels last")
    return int(long[0]) if long else 1


def _picture(path: Path) -> Any:
    pillow = require("PIL.Image", extra="medical", purpose="reading pictures")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # an error, here
            picture = pillow.open(path)
    except Exception as error:  # pillow raises whatever the damage brings about
        raise DataError(f"{path}: cannot be read as a picture ({error})") from error
    pixels, most = math.prod(picture.size), pillow.MAX_IMAGE_PIXELS
    if suffix_of(path) == ".png":
        most = min(most or pixels, 8 * DEFLATE * path.stat().st_size)  # of one bit each
    if most is not None and not 0 < pixels <= most:
        picture.close()
        raise DataError(f"{path}: the picture declares {picture.size}, {pixels} pixels; expected 1 to {most}")
    return picture


def _read_picture(path: Path, spacing_mm: Sequence[float]) -> Scan:
    with _picture(path) as picture:
        try:
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                raise DataError(f"{path}: the picture has {frames} pages; expected one, or save the stack as NIfTI")
            values = np.asarray(picture)
        except DataError:
            raise
        except Exception as error:  # as above
            raise DataError(f"{path}: cannot be read as a picture, perhaps truncated ({error})") from error
        if picture.mode in ("LA", "RGBA", "PA"):
            values = values[..., :-1]  # what is transparent has a colour all the same
    if values.ndim == 3 and values.shape[2] == 3 and (values == values[..., :1]).all():
        values = values[..., :1]
    values = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    if values.ndim != 3 or not values.size or values.dtype.kind not in "biuf":
        raise DataError(f"{path}: the picture is {values.dtype} of shape {values.shape}; expected real numbers (H, W)")
    return Scan(values, Grid(values.shape[1:], tuple(spacing_mm) or (1.0, 1.0)))


def _write_picture(path: Path, array: NDArray[Any]) -> Path:
    pillow = require("PIL.Image", extra="medical", purpose="writing pictures")
    if array.ndim != 2 or array.dtype.kind not in "ub":
        raise ValueError(f"array is {array.dtype} of shape {array.shape}; expected unsigned integers (H, W) for a PNG")
    if suffix_of(path) not in (".png", ".tif", ".tiff"):
        path = path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    wide = array.dtype.itemsize > 1
    picture = pillow.fromarray(np.ascontiguousarray(array, dtype=np.uint16 if wide else np.uint8))
    with replacing(path, path.with_name(f".{path.stem}.tmp{suffix_of(path)}")) as temporary:
        picture.save(temporary)
    return path


def _format(path: Path) -> str:
    return {".nii": "NIfTI", ".nii.gz": "NIfTI"}.get(suffix_of(path), suffix_of(path).lstrip("."))
