# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, temporary: Path) -> Iterator[Path]:
    """Context in which `temporary` is written, a file beside `path`; then it gets that name.

    Raises:
        OSError: it could not be written (a full disk); the message names `path`, which is as it was before.
    """
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:  # numpy, nibabel and pillow tell no name
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
