# SPDX-License-Identifier: Apache-2.0
"""Held-out cases stay closed while a training runs: to open one is an error, not a habit to remember."""

from collections.abc import Iterable
from pathlib import Path

from ssmis.data.cases import Case, DataError


class HeldOutError(DataError):
    """A training opened a case that is held out of it."""


class HeldOut:
    """Context in which the readers of this package refuse `cases`: `load_la`, `Cache.build` and entries of a `Cache`.

    It holds for the whole process, in every thread, since batches are made in another one; a process that was forked
    inside has it too. Code that opens the files with h5py itself is not stopped.

    Args:
        cases: what nothing may read inside; both image and label are closed.
    """

    def __init__(self, cases: Iterable[Case]) -> None:
        cases = list(cases)
        self.ids = frozenset(case.id for case in cases)
        self.files = frozenset(_real(path) for case in cases for path in (case.image, case.label) if path is not None)

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
    for held in tuple(_active):  # empty but for the time of a training
        for path in (case.image, case.label):
            if path is not None and _real(path) in held.files:
                raise HeldOutError(f"{path}: case {case.id!r} is held out of this training; read it before or after")


_active: list[HeldOut] = []  # of the process on purpose: a context variable would not reach the thread of the batches


def _real(path: Path) -> Path:
    return Path(path).resolve()
