# SPDX-License-Identifier: Apache-2.0
"""Left Atrium 2018 in the UA-MT layout: one `mri_norm2.h5` a case, and list files that name the cases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssmis._optional import require
from ssmis.data.cases import Case, DataError, Split, Volume, check_name, check_no_overlap, check_size, check_volume
from ssmis.data.headers import DEFLATE
from ssmis.data.held_out import check_open
from ssmis.data.whole import replacing

FOLDER = "2018LA_Seg_Training Set"
FILE = "mri_norm2.h5"
SPACING_MM = (0.625, 0.625, 0.625)

LIST_BYTES = 2**24

# What h5py raises for damaged files, by what is damaged: a header, a link, a type, a size.
_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError)


def read_list(path: Path | str) -> list[str]:
    """Names in a list file, one a line; blanks around names and blank lines are dropped.

    Raises:
        DataError: the file is missing, empty or no text, a name comes twice, or leads out of the data folder.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such list file")
    if path.stat().st_size > LIST_BYTES:
        raise DataError(f"{path}: it has {path.stat().st_size} bytes; expected a list of names, at most {LIST_BYTES}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: it is no text in UTF-8 ({error})") from error
    first: dict[str, int] = {}
    for line, text in enumerate(lines, start=1):
        name = text.strip()
        if name:
            check_name(name, f"{path}, line {line}")
        if name in first:
            raise DataError(f"{path}, line {line}: case {name!r} was already named in line {first[name]}")
        if name:
            first[name] = line
    if not first:
        raise DataError(f"{path}: the list names no case")
    return list(first)


def find_la(root: Path | str) -> Path:
    """Folder with the list files and `2018LA_Seg_Training Set`: `root` itself, its `la` folder, or its parent.

    Raises:
        DataError: none of them has that folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; expected the folder that holds {FOLDER!r}")
    for folder in (root, root / "la", *([root.parent] if root.name == FOLDER else [])):
        if (folder / FOLDER).is_dir():
            return folder
    raise DataError(f"{root}: neither it nor its folder 'la' holds {FOLDER!r}")


def la_cases(root: Path | str, names: Sequence[str], *, labelled: bool = True) -> list[Case]:
    """Cases called `names`; with `labelled=False` their labels will never be read.

    Raises:
        DataError: no such data set, a name without a file, or a name that comes twice.
    """
    root = find_la(root)
    check_no_overlap(names=names)
    cases = []
    for name in names:
        path = root / FOLDER / check_name(name, root) / FILE
        if not path.is_file():
            raise DataError(f"{path}: case {name!r} has no such file")
        cases.append(Case(name, path, path if labelled else None, SPACING_MM))
    return cases


def load_la(case: Case, *, with_label: bool = True, classes: int = 2) -> Volume:
    """Read and check one case.

    Args:
        case: from `la_cases`.
        with_label: read the label, if the case is a labelled one; otherwise the data set `label` is not touched.
        classes: number of classes; labels must lie in 0..classes-1.

    Returns:
        Image float32 `(1, *S)`, label uint8 `(*S)` or None, spacing in mm.

    Raises:
        DataError: unreadable file (the cause is chained), a data set that is missing, empty or not of numbers, NaN,
            shapes or label values that do not fit.
        HeldOutError: the case is held out of a training that runs.
    """
    check_open(case)
    h5py = require("h5py", extra="medical", purpose="reading LA volumes")
    label = None
    try:
        with h5py.File(case.image, "r") as file:
            image = _numbers(file, "image", case.image, kind=h5py.Dataset)
            if with_label and case.label is not None:
                label = _whole(_numbers(file, "label", case.image, kind=h5py.Dataset), case.image)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{case.image}: cannot be read as HDF5, perhaps truncated ({error})") from error
    if image.ndim != len(case.spacing_mm):
        raise DataError(f"{case.image}: the image has shape {image.shape}; expected {len(case.spacing_mm)} axes")
    with np.errstate(all="ignore"):  # what overflows is found below, as infinity
        image = np.ascontiguousarray(image[None], dtype=np.float32)
    volume = Volume(image, label, case.spacing_mm)
    check_volume(volume, case.image, classes=classes)
    return volume


def write_la(root: Path | str, name: str, image: NDArray[Any], label: NDArray[Any] | None) -> Path:
    """Write one case in this layout, `image` and `label` of shape `(*S)`; without a label there is no such data set."""
    h5py = require("h5py", extra="medical", purpose="writing LA volumes")
    path = Path(root) / FOLDER / name / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, path.with_suffix(".tmp")) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("image", data=np.asarray(image, dtype=np.float32), compression="gzip")
        if label is not None:
            file.create_dataset("label", data=np.asarray(label, dtype=np.uint8), compression="gzip")
    return path


def la_split(
    root: Path | str,
    *,
    labelled: int | Literal["all"] = 8,
    val: Path | str | None = None,
    test: Path | str | None = None,
) -> Split:
    """Split `train.list`: validation cases leave it altogether, then the first `labelled` are labelled, the rest not.

    Args:
        root: folder of the data set, as for `find_la`.
        labelled: number of labelled cases; `"all"` leaves no unlabelled ones.
        val: list file of validation cases, a name in the data set's folder or, if there is none, a path.
        test: list file of test cases, likewise; none of them may be a training case.

    Raises:
        DataError: missing files, a case in two roles, or fewer training cases than `labelled`.
    """
    root = find_la(root)
    groups = {
        role: [] if name is None else read_list(_list_file(root, name)) for role, name in (("val", val), ("test", test))
    }
    train = [name for name in read_list(root / "train.list") if name not in set(groups["val"])]
    check_no_overlap(**{"train.list": train}, val=groups["val"], test=groups["test"])
    count = len(train) if labelled == "all" else labelled
    if not 1 <= count <= len(train):
        raise DataError(
            f"{root / 'train.list'}: {labelled} labelled cases asked for; expected 1 to {len(train)}, "
            "the training cases that are left without validation"
        )
    return Split(
        labelled=tuple(la_cases(root, train[:count])),
        unlabelled=tuple(la_cases(root, train[count:], labelled=False)),
        val=tuple(la_cases(root, groups["val"])),
        test=tuple(la_cases(root, groups["test"])),
    )


def _list_file(root: Path, name: Path | str) -> Path:
    path = root / name
    return Path(name) if not path.is_file() and Path(name).is_file() else path


def _numbers(file: Any, key: str, path: Path, *, kind: type[Any]) -> NDArray[Any]:
    """Read a data set, and nothing that it only refers to: a file may ask for others, as it may claim any size."""
    link = file.get(key, getlink=True)
    if link is None:
        raise DataError(f"{path}: there is no data set {key!r}; it has {', '.join(map(repr, file)) or 'none'}")
    if hasattr(link, "path") and not hasattr(link, "filename"):  # to follow it could open any file
        raise DataError(f"{path}: the {key} is a link to {link.path!r}; expected the data set itself")
    found = None if hasattr(link, "filename") else file[key]
    if found is not None and not isinstance(found, kind):
        raise DataError(f"{path}: {key!r} is a {type(found).__name__}; expected a data set")
    if found is None or found.file.filename != file.filename or found.is_virtual or found.external:
        raise DataError(f"{path}: the {key} lies in another file; expected it in this one")
    if not found.size:
        raise DataError(f"{path}: the {key} has shape {found.shape}; expected at least one voxel")
    if found.dtype.kind not in "biuf":
        raise DataError(f"{path}: the {key} has dtype {found.dtype}; expected real numbers")
    check_size(found.shape, f"{path}: the {key}")
    if found.chunks is not None:
        check_size(found.chunks, f"{path}: a chunk of the {key}")
    if not found.id.get_storage_size():
        raise DataError(f"{path}: the {key} has shape {found.shape} and no data")
    if found.size * found.dtype.itemsize > found.id.get_storage_size() * (DEFLATE if found.chunks else 1):
        raise DataError(
            f"{path}: the {key} declares {found.shape} voxels of {found.dtype} and has "
            f"{found.id.get_storage_size()} bytes of them; expected a whole one"
        )
    return found[()]


def _whole(label: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):  # NaN and what is out of range are found below
        whole = label.astype(np.uint8)
    if not np.array_equal(whole, label):
        wrong = np.unique(label[whole != label])
        raise DataError(f"{path}: the label has values {wrong[:8].tolist()}; expected whole numbers from 0 to 255")
    return whole
