# SPDX-License-Identifier: Apache-2.0
"""Optional packages: imported where they are needed, and named with their pip line where they are missing."""

from importlib import import_module
from typing import Any


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import and return `module`.

    Args:
        module: import name, for example `"timm"`.
        extra: the extra of ssmis that brings it.
        purpose: what it is needed for, for the message.

    Raises:
        ImportError: it is not installed (the message has the pip line), or it is there but fails to import
            (the cause is chained).
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise ImportError(f'{purpose} needs {module}: pip install "ssmis[{extra}]"') from error
        lacks = repr(error.name) if error.name else error
        raise ImportError(f"{purpose} needs {module}, which is installed but lacks {lacks}") from error
    except Exception as error:
        raise ImportError(f"{purpose} needs {module}, which is installed but fails to import: {error}") from error
