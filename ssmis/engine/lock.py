# SPDX-License-Identifier: Apache-2.0
"""One run folder, one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none; there the folder is not locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, *, when: bool = True) -> Iterator[None]:
    """Hold `folder` for this process; the lock ends with the process, however that ends.

    Args:
        folder: made if missing.
        when: false does nothing.

    Raises:
        FileExistsError: another process holds it.
    """
    if not when:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FileExistsError(f"{folder} is in use: another process trains there") from error
        yield
