# SPDX-License-Identifier: Apache-2.0
"""Options out of what a JSON file holds."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def checked(kind: type[T], values: object) -> T:
    """Build options from what a JSON file holds.

    Raises:
        ValueError: it is no object, or an entry is missing, unknown, or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}; expected an object")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"there is no option {name!r}")
        if not fits(value, hints[name]):
            raise ValueError(f"{name} is {str(value)[:200]!r}; expected {hints[name]}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error


def fits(value: object, hint: Any) -> bool:
    """Whether a value that JSON can hold is one of a type: no bool is a number, and 1 is a float too."""
    if hint is Any:
        return True
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    return type(value) is hint or (hint is float and type(value) is int) or (value is None and hint is type(None))
