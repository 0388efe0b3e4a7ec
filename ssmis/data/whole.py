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
    except Exception as error:  # numpy, nibabel and pillow tell no name
        full = next((cause for cause in _causes(error) if isinstance(cause, OSError)), None)
        if full is None:
            raise
        told = f"{full.strerror or full}; it keeps what it held before"
        raise OSError(full.errno, told, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: `torch.save` makes a RuntimeError of a disk that is full."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
