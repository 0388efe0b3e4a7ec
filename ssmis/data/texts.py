# SPDX-License-Identifier: Apache-2.0
"""Text and JSON that a person or another program wrote: of bounded size, or refused by the name of the file."""

import json
from pathlib import Path
from typing import Any

from ssmis.data.cases import DataError

TEXT_BYTES = 2**24
DEPTH = 64  # of nested objects and lists


def read_text(path: Path | str, *, limit: int = TEXT_BYTES, kind: str = "text") -> str:
    """Read a text file in UTF-8, with or without a byte order mark; `kind` is for messages.

    Raises:
        DataError: there is no such file, it has more than `limit` bytes, or is no text.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: it has {size} bytes; expected a text of at most {limit}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as {kind} ({error})") from error


def read_json(path: Path | str, kind: type[Any] | tuple[type[Any], ...] = dict) -> Any:
    """Read a JSON file that holds an object, or another `kind`.

    Raises:
        DataError: as `read_text`; it is no JSON, is nested too deeply, or holds another kind.
    """
    text = read_text(path, kind="JSON")
    try:
        found = json.loads(text)
        _check_depth(found)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, kind):
        expected = " or ".join(own.__name__ for own in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{path}: cannot be read as JSON (it holds a {type(found).__name__}; expected {expected})")
    return found


def _check_depth(tree: Any) -> None:
    level = [tree]
    for _ in range(DEPTH):
        inner = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list))
        level = [child for children in inner for child in children]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} deep")
