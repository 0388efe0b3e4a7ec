# SPDX-License-Identifier: Apache-2.0
"""Held-out cases stay closed while a training runs: to open one is an error, not a habit to remember."""

import os
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path

from ssmis.data.cases import Case


class HeldOutError(RuntimeError):
    """A training opened a case that is held out of it.

    It is no `DataError`: the data are as they should be, and what goes on after a file that cannot be read must not go
    on after this.
    """


class HeldOut:
    """Context in which the readers of this package refuse `cases`: `load_la`, `read_scan`, `read_labels`, `Cache`.

    It holds for the whole process, in every thread, since batches are made in another one; a process that was forked
    inside has it too, such as a worker of a torch `DataLoader` on Linux. Files are known by where they are and by what
    the file system calls them, so links lead to the same refusal.

    What stays open: code that opens files by other means (h5py, nibabel, numpy), a copy of a file, what was read
    before, and a process that begins anew, by `subprocess` or the start methods "spawn" and "forkserver" (workers on
    macOS and Windows, and on Linux from Python 3.14 on), unless it enters a `HeldOut` of its own.

    Args:
        cases: what nothing may read inside; image, further channels and label are closed.
    """

    def __init__(self, cases: Iterable[Case]) -> None:
        cases = list(cases)
        self.ids = frozenset(case.id for case in cases)
        self.files = frozenset(name for case in cases for path in _files(case) for name in _names(path))

    def __enter__(self) -> "HeldOut":
        _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _active.remove(self)

    def check_ids(self, ids: Iterable[str]) -> None:
        """Raise HeldOutError if one of the ids is held out."""
        for case in ids:
            if case in self.ids:
                raise HeldOutError(f"case {case!r} is held out of this training, and a batch holds it")


def check_open(case: Case) -> None:
    """Raise HeldOutError if a `HeldOut` context is active that holds this case, or another one of the same file."""
    for path in _files(case) if _active else ():
        check_file(path, f"case {case.id!r}")


def check_file(path: Path | str, what: str = "it") -> None:
    """Raise HeldOutError if a `HeldOut` context is active that holds this file."""
    for held in tuple(_active):  # empty but for the time of a training
        if held.files & _names(Path(path)):
            raise HeldOutError(f"{path}: {what} is held out of this training; read it before or after")


_active: list[HeldOut] = []  # of the process on purpose: a context variable would not reach the thread of the batches


def _files(case: Case) -> tuple[Path, ...]:
    return tuple(path for path in (case.image, *case.channels, case.label) if path is not None)


def _names(path: Path) -> set[Hashable]:
    """Where a file is, links followed, and its number in its file system, which a hard link has too."""
    found: set[Hashable] = {Path(path).resolve()}
    with suppress(OSError):
        status = os.stat(path)
        found |= {(status.st_dev, status.st_ino)} if status.st_ino else set()
    return found
