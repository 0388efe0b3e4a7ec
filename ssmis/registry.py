# SPDX-License-Identifier: Apache-2.0
"""Tables of components by name: for configurations, plugins, docs and the contract tests.

Inside the library, import classes and functions directly; a table serves the edges. Registering a component also
puts it under its kind's contract tests, which build and call it as its `Example` says.
"""

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Example:
    """How a contract test builds and calls a component.

    Args:
        create: arguments of the factory.
        call: argument of the call -> kind of tensor (`"logits"`, `"probs"`, `"labels"`, `"mask"`, `"features"`,
            `"keys"`, `"key_labels"`, `"images"`), in the order of the call.
        student: arguments that must receive gradient.
        teacher: floating-point arguments that must not.
        dims: numbers of spatial dimensions it works in.
    """

    create: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, str] = field(default_factory=dict)
    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    dims: tuple[int, ...] = (2, 3)


@dataclass(frozen=True)
class Entry:
    """A registered component: its name, the factory that makes it and its example for the contract tests."""

    name: str
    factory: Callable[..., Any]
    example: Example

    @property
    def summary(self) -> str:
        """First line of the factory's docstring; where that is "See `function`.", the function's first line."""
        line = _first_line(self.factory)
        pointer = re.match(r"See `(\w+)`[.;]", line)
        if pointer is None:
            return line
        return _first_line(getattr(sys.modules.get(self.factory.__module__), pointer[1], None)) or line


class Registry:
    """A table from name to factory; built-in and plugin components are loaded on first use.

    Args:
        kind: what the table holds, for messages ("loss").
        package: built-in package whose import registers its components, also the entry-point group of plugins. A
            plugin's entry point names a module (importing it registers) or any object inside one.

    >>> table = Registry("loss")
    >>> @table.register("zero")
    ... def zero(scale=1.0):
    ...     return 0.0 * scale
    >>> list(table), table.create("zero", scale=2.0)
    (['zero'], 0.0)
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._loaded = package is None

    def register(self, name: str, *, example: Example | None = None) -> Callable[[F], F]:
        """Return a decorator that stores a factory under `name`; a reloaded module may register its names again.

        Raises:
            ValueError: another component has this name.
        """

        def store(factory: F) -> F:
            known = self._entries.get(name)
            if known is not None and _origin(known.factory) != _origin(factory):
                raise ValueError(
                    f"{self.kind} {name!r} is already registered by {_origin(known.factory)}; "
                    f"{_origin(factory)} needs another name"
                )
            self._entries[name] = Entry(name, factory, example or Example())
            return factory

        return store

    def create(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call the factory registered under `name`; arguments pass through untouched."""
        return self[name].factory(*args, **kwargs)

    def __getitem__(self, name: str) -> Entry:
        self._load()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"unknown {self.kind} {name!r}{hint} (registered: {', '.join(sorted(self._entries))})")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        if self._loaded or self.package is None:
            return
        self._loaded = True  # before the imports: they may look into the table themselves
        try:
            import_module(self.package)
        except BaseException:
            self._loaded = False
            raise
        failed = []
        for point in entry_points(group=self.package):
            try:
                point.load()
            except Exception as error:
                failed.append(f"{self.kind} plugin {point.name!r} ({point.value}) failed to load: {error!r}")
        for message in failed:  # after the loop: where warnings are errors the other plugins are there all the same
            warnings.warn(message, stacklevel=3)


def _first_line(thing: object) -> str:
    return (getattr(thing, "__doc__", None) or "").strip().split("\n")[0].strip()


def _origin(factory: Callable[..., Any]) -> str:
    return f"{getattr(factory, '__module__', '?')}.{getattr(factory, '__qualname__', type(factory).__qualname__)}"


NETS = Registry("net", "ssmis.nets")
LOSSES = Registry("loss", "ssmis.losses")
UNCERTAINTY = Registry("uncertainty", "ssmis.uncertainty")
BANKS = Registry("bank", "ssmis.memory")
RECIPES = Registry("recipe", "ssmis.recipes")
