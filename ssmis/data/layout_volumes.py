# SPDX-License-Identifier: Apache-2.0
"""Layouts that are told by folders and names: MSD, nnU-Net, BIDS, images beside labels."""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmis.data.cases import Case, DataError
from ssmis.data.layout_tables import file_of, pixel_sizes
from ssmis.data.layouts import IMAGES, LABELS, UNLABELLED, Dataset
from ssmis.data.suffixes import stem_of, suffix_of
from ssmis.data.texts import read_json

_LABEL_ENDINGS = r"[_.-](seg(mentation)?|labels?|mask|gt|annotation|dseg|roi)([_.-]?manual)?$"
_CHANNEL = re.compile(r"_(\d{4})$")


def msd(root: Path) -> Dataset | None:
    """Medical Segmentation Decathlon: `dataset.json` lists training pairs and test images."""
    info = _info(root)
    if info is None or not isinstance(info.get("training"), list):
        return None
    cases, roles = [], {}
    for entry in info["training"]:
        cases.append(_case(entry, root / "dataset.json", "training"))
    tests = info.get("test") or []
    for entry in tests if isinstance(tests, list) else [tests]:
        case = _case(entry, root / "dataset.json", "test")
        cases.append(replace(case, label=None))
        roles[case.id] = "test"
    listed = {case.image.resolve() for case in cases}
    cases += [Case(stem_of(path), path, None, ()) for path in _scans(root, UNLABELLED) if path.resolve() not in listed]
    if not cases:
        raise DataError(f"{root / 'dataset.json'}: it lists no image for training; expected some under 'training'")
    left = [path for path in _scans(root, ["imagesTr"]) if path.resolve() not in listed]
    notes = [f"{len(left)} images of imagesTr are not listed in dataset.json, such as {left[0].name}"] if left else []
    return Dataset("MSD", root, tuple(cases), roles, _names(info), _channel_names(info), tuple(notes))


def nnunet(root: Path) -> Dataset | None:
    """nnU-Net raw data, version 2: `imagesTr/CASE_0000.nii.gz` a channel, `labelsTr/CASE.nii.gz`, `imagesUn`."""
    info = _info(root)
    folder = root / "imagesTr"
    if not folder.is_dir():
        return None
    labels = _one_each(_scans(root, ["labelsTr"]), stem_of)
    if info is None and not _numbered(_files(folder), labels):
        return None
    cases, roles, notes = [], {}, []
    for name in ("imagesTr", *UNLABELLED, "imagesTs"):
        for case, files in _by_case(_scans(root, [name]), labels=labels).items():
            label = labels.pop(case, None) if name == "imagesTr" else None
            cases.append(Case(case, files[0], label, (), channels=tuple(files[1:])))
            if name == "imagesTs":
                roles[case] = "test"
    notes += [f"{path}: this label has no image" for path in labels.values()]
    info = info or {}
    return Dataset("nnU-Net", root, tuple(cases), roles, _names(info), _channel_names(info), tuple(notes))


def bids(root: Path) -> Dataset | None:
    """BIDS: `sub-*/**/*_T1w.nii.gz` and `derivatives/**/*_dseg.nii.gz`; the subject is the one of the folder."""
    subjects = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if not subjects:
        return None
    labels: dict[tuple[str, ...], Path] = {}
    left: list[str] = []
    folders = [path for path in (root / "derivatives", root / "labels") if path.is_dir()]
    for folder in [*folders, *subjects]:
        for path in _files(folder):
            if re.search(r"_(dseg|mask|seg)$", stem_of(path)) and labels.setdefault(_entities(path), path) != path:
                left.append(f"{path}: this is a further label of {labels[_entities(path)].name}'s scan")
    files = [p for s in subjects for p in _files(s) if not re.search(r"_(dseg|mask|seg|probseg)$", stem_of(p))]
    kinds = [stem_of(path).rsplit("_", 1)[-1] for path in files]
    owners = {kind: {_entities(path)[-1:] for path, own in zip(files, kinds) if own == kind} for kind in set(kinds)}
    kind = max(sorted(owners), key=lambda kind: (len(owners[kind]), kind == "T1w"), default="")
    cases = []
    for path, own in zip(files, kinds):
        if own == kind:
            entities = _entities(path)
            subject = next(part for part in path.relative_to(root).parts if part.startswith("sub-"))
            cases.append(Case(stem_of(path), path, labels.pop(entities, None), (), subject=subject))
    left += [f"{sum(k != kind for k in kinds)} images that are no {kind}"] if len(set(kinds)) > 1 else []
    left += [f"{path}: this label has no image" for path in labels.values()]
    return Dataset("BIDS", root, tuple(cases), channel_names=(kind,), notes=tuple(left))


def plain(root: Path) -> Dataset | None:
    """`images/` and `labels/` with the same names, perhaps with an ending such as `_seg`; 2-D or 3-D."""
    folder = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    if folder is None:
        return None
    images = _scans(root, [folder.name])
    return _paired("images/ and labels/", root, images, _scans(root, LABELS), _scans(root, UNLABELLED))


def beside(root: Path) -> Dataset | None:
    """One folder: `CASE.nii.gz`, and `CASE_seg.nii.gz` (or `_label`, `_mask`) beside the labelled ones."""
    files = _files(root)
    labels = [path for path in files if re.search(_LABEL_ENDINGS, stem_of(path), re.IGNORECASE)]
    images = [path for path in files if path not in set(labels)]
    if not labels or not images:
        return None
    nested = any(path.parent != root for path in images)
    return _paired("labels beside images", root, images, labels, [], by_folder=nested)


def _paired(
    layout: str, root: Path, images: Sequence[Path], labels: Sequence[Path], unlabelled: Sequence[Path],
    *, by_folder: bool = False,
) -> Dataset:  # fmt: skip
    def name_of(path: Path) -> str:
        stem = bare_stem(path) if path in known else stem_of(path)
        return f"{path.parent.relative_to(root).as_posix()}/{stem}".removeprefix("./") if by_folder else stem

    known = set(labels)
    sizes = pixel_sizes(root)
    by_case = _by_case(images, name_of, labels={name(path) for path in labels for name in (stem_of, bare_stem)})
    exact = _one_each([path for path in labels if not by_folder and stem_of(path) in by_case], stem_of)
    taken = set(exact.values())
    left = (
        _one_each([path for path in labels if path not in taken or bare_stem(path) == stem_of(path)], name_of) | exact
    )
    cases = []
    for case, files in by_case.items():
        size = _size(sizes, files[0])
        cases.append(Case(case.replace("/", "_"), files[0], left.get(case), size, channels=tuple(files[1:])))
    cases += [Case(stem_of(path), path, None, _size(sizes, path)) for path in unlabelled]
    used = {case.label for case in cases}
    notes = [f"{path}: this label has no image" for path in labels if path not in used]
    return Dataset(layout, root, tuple(cases), notes=tuple(notes))


def _case(entry: Any, source: Path, role: str) -> Case:
    pair = entry if isinstance(entry, dict) else {"image": entry}
    image, label = pair.get("image"), pair.get("label")
    if not isinstance(image, str) or not (label is None or isinstance(label, str)):
        raise DataError(f"{source}: the {role} entry {str(entry)[:200]!r} has no 'image', or names that are no text")
    files = [file_of(source, name, f"{source}, {role}") for name in (image, label) if name]
    if not image or not suffix_of(files[0]):
        raise DataError(f"{source}: the {role} entry {image!r} is no image")
    return Case(stem_of(files[0]), files[0], files[1] if label else None, ())


def bare_stem(label: Path) -> str:
    """Name of a label file without an ending such as `_seg`."""
    return re.sub(_LABEL_ENDINGS, "", stem_of(label), flags=re.IGNORECASE)


def _one_each(labels: Iterable[Path], name_of: Callable[[Path], str]) -> dict[str, Path]:
    """Case -> its label file.

    Raises:
        DataError: two files are labels of one case.
    """
    found: dict[str, Path] = {}
    for path in labels:
        case = name_of(path)
        if case in found:
            raise DataError(
                f"{path}: this is a second label of case {case!r}, beside {found[case].name}; expected one, or pairs "
                "named in a table cases.csv"
            )
        found[case] = path
    return found


def _numbered(files: Iterable[Path], labels: Container[str]) -> bool:
    """Whether `_0000`, `_0001`, ... at the end of all names are channels, and not the number of a case.

    Labels tell by having such a number or not; without one that fits, channels count from 0000 in every case.
    """
    names = {stem_of(path) for path in files}
    cases = {_CHANNEL.sub("", name) for name in names}
    if not all(map(_CHANNEL.search, names)) or any(name in labels for name in names):
        return False
    return any(case in labels for case in cases) or {f"{case}_0000" for case in cases} <= names


def _by_case(
    files: Iterable[Path], name_of: Callable[[Path], str] = stem_of, *, labels: Container[str] = ()
) -> Mapping[str, list[Path]]:
    """Case -> its channel files in order; `labels` are the names that labels have."""
    files = list(files)
    numbered = _numbered(files, labels)
    found: dict[str, list[Path]] = {}
    for path in sorted(files):
        case = _CHANNEL.sub("", name_of(path)) if numbered else name_of(path)
        if case in found and not numbered:
            raise DataError(f"{path}: case {case!r} has the name of {found[case][0]}")
        found.setdefault(case, []).append(path)
    return found


def _scans(root: Path, folders: Sequence[str]) -> list[Path]:
    return [path for name in folders if (root / name).is_dir() for path in _files(root / name)]


def _files(folder: Path) -> list[Path]:
    """Images and labels below a folder, links that lead nowhere too; not what a run folder in it holds."""
    paths = sorted(folder.rglob("*"))
    runs = {path.parent for path in paths if path.name == "options.json"} - {folder}
    found = []
    for path in paths:
        suffix = suffix_of(path)
        if suffix and not path.name.startswith(".") and (path.is_file() or path.is_symlink()):
            if runs.intersection(path.parents):
                continue
            if suffix == ".img" and path.with_suffix(".hdr").exists():
                continue  # the pair is named by its header
            found.append(path)
    return found


def _size(sizes: Mapping[str, tuple[float, float]], path: Path) -> tuple[float, ...]:
    return sizes.get(path.name, sizes.get(stem_of(path), ()))


def _entities(path: Path) -> tuple[str, ...]:
    """Subject, session and what else two files of one scan share."""
    kept = [part for part in stem_of(path).split("_") if re.match(r"(sub|ses|run|acq)-", part)]
    return tuple(sorted(kept))


def _info(root: Path) -> dict[str, Any] | None:
    path = root / "dataset.json"
    if not path.is_file():
        return None
    info: dict[str, Any] = read_json(path)
    for name in ("labels", "channel_names", "modality"):
        if not isinstance(info.get(name) or {}, dict):
            raise DataError(f"{path}: {name!r} is a {type(info[name]).__name__}; expected an object")
    if "ignore" in {str(word).lower() for pair in (info.get("labels") or {}).items() for word in pair}:
        raise DataError(
            f"{path}: a label is named 'ignore'; expected classes only: voxels that nobody annotated have the value -1 "
            "in the label files"
        )
    return info


def _names(info: Mapping[str, Any]) -> dict[int, str]:
    """Both spellings: MSD has value -> name, nnU-Net name -> value (regions are lists: left out)."""
    names: dict[int, str] = {}
    for key, value in (info.get("labels") or {}).items():
        if re.fullmatch(r"-?[0-9]{1,9}", key):
            names[int(key)] = str(value)
        elif isinstance(value, int):
            names[value] = str(key)
    return {value: names[value] for value in sorted(names)}


def _channel_names(info: Mapping[str, Any]) -> tuple[str, ...]:
    names = info.get("channel_names") or info.get("modality") or {}
    return tuple(str(names[key]) for key in sorted(names, key=str)) if isinstance(names, dict) else ()
