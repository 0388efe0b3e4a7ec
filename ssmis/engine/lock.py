# SPDX-License-Identifier: Apache-2.0
"""One run folder, one process."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has none; there the folder is not locked
    fcntl = None  # type: ignore[assignment]

_held: dict[Path, tuple[int | None, IO[str]]] = {}  # folder -> thread that may enter again, and the open lock


@contextmanager
def locked(folder: Path, *, when: bool = True, again: bool = False) -> Iterator[None]:
    """Hold `folder` for this process; the lock ends with the process, however that ends.

    A folder that was made for this and in which nothing was written is removed at the end.

    Args:
        folder: made if missing.
        when: false does nothing.
        again: whether this thread may enter once more, as `train` lets `fit`.

    Raises:
        FileExistsError: another process, another thread, or a holder without `again`, has it.
    """
    key = folder.resolve()
    if not when or (key in _held and _held[key][0] == threading.get_ident()):
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    file = _hold(folder)
    _held[key] = threading.get_ident() if again else None, file
    try:
        yield
    finally:
        _held.pop(key, None)
        if folder in new and [path.name for path in folder.glob("*")] == [_NAME]:
            with suppress(OSError):
                (folder / _NAME).unlink()
                for path in new:
                    path.rmdir()
        file.close()


def check_held(folder: Path) -> None:
    """Raise FileNotFoundError if a folder that is locked was removed, or made anew, since: what was written is gone."""
    held = _held.get(folder.resolve())
    if held is not None and not _is(folder, held[1]):
        raise FileNotFoundError(errno.ENOENT, "the run folder was removed while the run was on", str(folder))


_NAME = ".lock"


def _hold(folder: Path) -> IO[str]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _NAME).open("a")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                raise FileExistsError(f"{folder} is in use: another process trains there") from error
        if _is(folder, file):
            return file
        file.close()  # it was removed between the two lines above


def _is(folder: Path, file: IO[str]) -> bool:
    """Whether the lock of the folder is this open file."""
    try:
        return os.path.samestat((folder / _NAME).stat(), os.fstat(file.fileno()))
    except OSError:
        return False
