# SPDX-License-Identifier: Apache-2.0
"""MkDocs hook: fills `{{ table LOSSES }}`, `{{ formulas LOSSES }}` and `{{ api ssmis.losses }}` from the package."""

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import griffe

import ssmis
from ssmis.registry import Registry

MARKER = re.compile(r"^\{\{ (table|formulas|api) ([\w.]+) \}\}$", re.MULTILINE)
SECTION = re.compile(r"\n*^(Gradient|Empty case|Paper):\s*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
DOCTEST = re.compile(r"^>>> .*(?:\n.*\S.*)*", re.MULTILINE)


class Sections(griffe.Extension):
    """Sets the house sections of a docstring (gradient, empty case, paper) as paragraphs, and doctests as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite a docstring before it is parsed; griffe calls this for every object it collects."""
        if obj.docstring is not None:
            text = SECTION.sub(section, obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", text)


def section(found: re.Match[str]) -> str:
    """Return a bold title and the text without the indentation of its continuation lines."""
    text = re.sub(r"\n[ \t]+", " ", found[2])
    return f"\n\n**{found[1]}:** {text}\n"


def component_table(registry: Registry) -> str:
    """Return a Markdown table: name, link to the reference, dimensions and summary of every component."""
    lines = ["| name | in code | dimensions | what it is |", "|---|---|---|---|"]
    for name in registry:
        entry = registry[name]
        code = f"`{entry.factory.__name__}`"
        if entry.factory.__module__.startswith("ssmis."):
            code = f"[{code}][{path_of(entry.factory)}]"
        dims = ", ".join(f"{dims}-D" for dims in entry.example.dims)
        summary = re.sub(r"; see `\w+`\.$", ".", entry.summary)
        lines.append(f"| `{name}` | {code} | {dims} | {summary} |")
    return "\n".join(lines)


def formulas(registry: Registry) -> str:
    """Return for every component its name, summary, formula, gradient, empty case and paper, from its docstring."""
    parts = []
    for name in registry:
        entry = registry[name]
        module = sys.modules[entry.factory.__module__]
        pointer = re.search(r"\bsee `(?:[\w.]+\.)?(\w+)`", inspect.getdoc(entry.factory) or "", re.IGNORECASE)
        source = getattr(module, pointer[1]) if pointer else entry.factory
        text = inspect.getdoc(source) or ""
        about = re.split(r"\n(?:Args|Returns|Raises|Gradient|Empty case|Paper):", text)[0].strip()
        target = source if source.__module__ == entry.factory.__module__ else entry.factory  # a kernel is on two pages
        link = f"[`{source.__name__}`][{path_of(target)}]" if source.__module__.startswith("ssmis.") else ""
        lines = [f"## {name}", about, f"In code: {link}."] if link else [f"## {name}", about]
        lines += [f"**{found[1]}:** " + re.sub(r"\n[ \t]+", " ", found[2]) for found in SECTION.finditer(text)]
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def api(module_name: str) -> str:
    """Return mkdocstrings directives for the functions and classes a module exports, file by file, functions first.

    They are named by the file they live in: `ssmis.losses.dice_ce` is a file and a function, and a reader of the
    source alone finds the file.
    """
    things = sorted(exported(module_name), key=lambda thing: (thing.__module__, inspect.isclass(thing), thing.__name__))
    intro = (import_module(module_name).__doc__ or "").strip()
    return "\n\n".join([intro, *(f"::: {path_of(thing)}" for thing in things)])


def exported(module_name: str) -> Iterator[Any]:
    """Yield functions and classes in `__all__`, or without one the public ones that the module defines."""
    module = import_module(module_name)
    names = getattr(module, "__all__", None)
    for name in names or [name for name in vars(module) if not name.startswith("_")]:
        thing = getattr(module, name)
        own = names is not None or getattr(thing, "__module__", None) == module_name
        if own and (inspect.isclass(thing) or inspect.isfunction(thing)):
            yield thing


def path_of(thing: Any) -> str:
    """Return where a function or class is defined."""
    return f"{thing.__module__}.{thing.__qualname__}"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Fill the markers of a page; MkDocs calls this for every page."""

    def fill(found: re.Match[str]) -> str:
        if found[1] == "api":
            return api(found[2])
        return (component_table if found[1] == "table" else formulas)(getattr(ssmis, found[2]))

    return MARKER.sub(fill, markdown)
