# SPDX-License-Identifier: Apache-2.0
"""Decode every case once into memory-mapped arrays, so that a random crop reads only its own pages."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssmis.data.cases import Case, DataError, Volume
from ssmis.data.held_out import check_open
from ssmis.data.la import load_la
from ssmis.data.resample import area_downsample, majority_downsample, scaled_size
from ssmis.data.whole import replacing

VERSION = 1

Load = Callable[..., Volume]
Progress = Callable[[Iterable[Case]], Iterable[Case]]


class Entry(NamedTuple):
    """A cached case: image `(C, *S)` and label `(*S)` as memory maps; label None for unlabelled cases."""

    image: NDArray[np.float32]
    label: NDArray[Any] | None


class Cache(Mapping[str, Entry]):
    """Case id -> `Entry`; made by `Cache.build`.

    Args:
        cases: the cases, in order.
        entries: their memory maps.
        spacings_mm: their voxel sizes on the cached grid.
    """

    def __init__(
        self, cases: Mapping[str, Case], entries: Mapping[str, Entry], spacings_mm: Mapping[str, tuple[float, ...]]
    ) -> None:
        self.cases = dict(cases)
        self.spacings_mm = dict(spacings_mm)
        self._entries = dict(entries)

    @classmethod
    def build(
        cls,
        cases: Iterable[Case],
        folder: Path | str,
        *,
        scale: float = 1.0,
        load: Load = load_la,
        progress: Progress | None = None,
    ) -> "Cache":
        """Decode what is not yet in `folder`, and map everything.

        A file is reused while path, size and modification time of its source and `scale` are the same. Labels of
        unlabelled cases are neither read nor stored.

        Args:
            cases: cases with different ids.
            folder: made if missing.
            scale: grid in relation to the source, in (0, 1]; images by area averaging, labels by majority.
            load: `load(case, with_label=...) -> Volume`.
            progress: wraps the iterable of cases, for example `tqdm`.

        Raises:
            DataError: from `load`, two cases have one id, or a case is held out of a training that runs.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        known: dict[str, Case] = {}
        entries: dict[str, Entry] = {}
        spacings: dict[str, tuple[float, ...]] = {}
        cases = list(cases)
        for case in cases if progress is None else progress(cases):
            if case.id in known:
                raise DataError(f"{case.image}: case {case.id!r} is already cached from {known[case.id].image}")
            check_open(case)
            known[case.id] = case
            stem = folder / _stem(case, scale)
            entry = _open(stem, labelled=case.labelled)
            if entry is None:
                _write(stem, case, load(case, with_label=case.labelled), scale)
                entry = _open(stem, labelled=case.labelled)
            if entry is None:
                raise DataError(f"{stem}: the cached case cannot be read back")
            entries[case.id], spacings[case.id] = entry
        return cls(known, entries, spacings)

    def __getitem__(self, case: str) -> Entry:
        if case not in self._entries:
            raise KeyError(f"case {case!r} is not in the cache of {len(self)} cases")
        check_open(self.cases[case])
        return self._entries[case]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _stem(case: Case, scale: float) -> str:
    source = case.image.stat()
    parts: list[Any] = [VERSION, case.id, str(case.image.resolve()), source.st_size, source.st_mtime_ns, scale]
    if case.label is not None and case.label != case.image:
        label = case.label.stat()
        parts += [str(case.label.resolve()), label.st_size, label.st_mtime_ns]
    for path in case.channels:
        further = path.stat()
        parts += [str(path.resolve()), further.st_size, further.st_mtime_ns]
    parts += [case.spacing_mm, case.labelled]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', case.id)}-{digest}"


def _write(stem: Path, case: Case, volume: Volume, scale: float) -> None:
    image, label = volume.image, volume.label if case.labelled else None
    size = image.shape[1:]
    coarse = scaled_size(size, scale)
    if coarse != size:
        image = area_downsample(torch.from_numpy(image)[None], coarse)[0].numpy()
        if label is not None:
            label = majority_downsample(torch.from_numpy(label)[None], coarse)[0].numpy()
    _replace(stem.with_name(stem.name + ".image.npy"), lambda file: np.save(file, image))
    if label is not None:
        stored = label
        _replace(stem.with_name(stem.name + ".label.npy"), lambda file: np.save(file, stored))
    spacing = [mm * fine / few for mm, fine, few in zip(volume.spacing_mm, size, coarse)]
    # Written last: a case without it is not complete.
    _replace(stem.with_name(stem.name + ".json"), lambda file: file.write(json.dumps({"spacing_mm": spacing}).encode()))


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    with replacing(path, path.with_name(f"{path.name}.{os.getpid()}.tmp")) as temporary, temporary.open("wb") as file:
        write(file)


def _open(stem: Path, *, labelled: bool) -> tuple[Entry, tuple[float, ...]] | None:
    """Map a cached case; None if it is absent, incomplete or damaged."""
    try:
        spacing = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))["spacing_mm"]
        image = np.load(stem.with_name(stem.name + ".image.npy"), mmap_mode="r")
        label = np.load(stem.with_name(stem.name + ".label.npy"), mmap_mode="r") if labelled else None
        spacing_mm = tuple(float(mm) for mm in spacing)
    except Exception:  # numpy's header parser raises whatever the damage brings about
        return None
    fits = image.dtype == np.float32 and image.ndim == len(spacing_mm) + 1 and image.flags.c_contiguous
    if not fits or (label is not None and (label.shape != image.shape[1:] or label.dtype.kind not in "iu")):
        return None
    return Entry(image, label), spacing_mm
