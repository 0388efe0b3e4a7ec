# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whenever a process dies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssmis.data.whole import replacing


def replace_file(path: Path, write: Callable[[Any], Any]) -> None:
    """Call `write` on a new file beside `path`, flush that to disk, and give it the name `path`.

    Raises:
        OSError: it could not be written (a full disk); the message names `path`, which is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with replacing(path, temporary), temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    if os.name == "posix":  # the rename itself lasts only once the folder is on disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, see `replace_file`."""
    replace_file(path, lambda file: file.write(text.encode()))


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left in `folder`; the caller must hold the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
