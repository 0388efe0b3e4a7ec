# SPDX-License-Identifier: Apache-2.0
"""Words of a command line, and files of options, into the dataclasses of `ssmis.options`."""

import difflib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from ssmis._optional import require

POSITIONAL = {"data": None, "protocol": None, "run": None, "runs": "+", "inputs": "+"}
SHORT = {"out": "-o"}
CONFIG_BYTES = 2**16  # of a file of options
_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0")


def parse(command: str, kind: type[Any], words: Sequence[str]) -> Any:
    """Read options of a dataclass from the command line, `--config` files and defaults."""
    import jsonargparse

    about = inspect.getdoc(kind) or ""
    positional = [field.name for field in fields(kind) if field.name in POSITIONAL]
    shown = " ".join(f"{name.upper()}..." if POSITIONAL[name] else name.upper() for name in positional)

    class Parser(jsonargparse.ArgumentParser):
        def format_help(self, *given: Any, **named: Any) -> str:
            return str(super().format_help(*given, **named)).replace("%%", "%")  # some versions leave them so

    parser = Parser(
        prog=f"ssmis {command}",
        usage=f"ssmis {command} {shown} [options]",
        description=about.split("\n")[0],
        allow_abbrev=False,
        exit_on_error=False,
    )
    helps = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", about, flags=re.MULTILINE))
    hints = get_type_hints(kind)
    parser.add_argument("--config", action="config", help="YAML file of options, such as config.yaml of a run")
    for field in fields(kind):
        text = re.sub(r"\s+", " ", helps.get(field.name, "")).replace("%", "%%")
        flags = [f"--{field.name}"]
        default = None if field.default is MISSING else field.default
        if field.name in POSITIONAL:
            extra: dict[str, Any] = {"nargs": "+"} if POSITIONAL[field.name] else {}
            parser.add_argument(*flags, type=str, default=default, help=text, **extra)
        elif hints[field.name] is bool:
            parser.add_argument(*flags, nargs="?", const=True, type=bool, default=default, help=text)
        elif "list" in str(hints[field.name]):
            item = next(kind for kind in (int, float, str) if kind.__name__ in str(hints[field.name]))
            parser.add_argument(*flags, nargs="+", type=item, default=default, help=text)
        else:
            short = [SHORT[field.name]] if field.name in SHORT else []
            parser.add_argument(*short, *flags, type=hints[field.name], default=default, help=text)
    configs = [path for path in config_files(words) if path.exists()]
    for path in configs:
        check_config(path, [field.name for field in fields(kind)])
    try:
        found = vars(parser.parse_args(_named(words, positional, hints)))
    except jsonargparse.ArgumentError as error:
        told = " ".join(str(error).split())
        if wrong := re.search(r'Parser key "(\w+)".* Given value: (.*)$', told):
            kind_of = str(hints.get(wrong[1], "another type")).replace("<class '", "").replace("'>", "")
            told = f"{wrong[1]} is {wrong[2]!r}; expected {kind_of}"
        elif wrong := re.search(r"[Uu]nrecognized arguments: --([\w-]+)", told):
            near = difflib.get_close_matches(wrong[1].replace("-", "_"), [*hints, "config"], n=1)
            told += f"; did you mean --{near[0]}?" if near else f"; see ssmis {command} --help"
        if configs:
            told += f" (on the command line or in {', '.join(map(str, configs))})"
        raise ValueError(f"{command}: {told}") from error
    values = {field.name: found[field.name] for field in fields(kind)}
    for name in POSITIONAL:
        if name in values and not values[name]:
            raise ValueError(f"{command} needs {name.upper()}; see ssmis {command} --help")
    return kind(**values)


def config_files(words: Sequence[str]) -> Iterator[Path]:
    """The files that `--config` names among the words of a command."""
    for index, word in enumerate(words):
        if word == "--config" and index + 1 < len(words):
            yield Path(words[index + 1])
        elif word.startswith("--config="):
            yield Path(word.partition("=")[2])


def check_config(path: Path | str, known: Collection[str]) -> None:
    """Raise ValueError, naming the file, unless it is a mapping from `known` options to scalars and lists of them.

    Anchors, tags and further depth are refused before anything is built: a few hundred bytes of them can stand for
    more than there is memory.
    """
    yaml = require("yaml", extra="medical", purpose="files of options")
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > CONFIG_BYTES:
            raise ValueError(f"it has {size} bytes; expected at most {CONFIG_BYTES}")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, "anchor", None) is not None:
                raise ValueError(f"line {event.start_mark.line + 1} has an anchor or an alias; expected plain values")
            if getattr(event, "tag", None) is not None:
                raise ValueError(f"line {event.start_mark.line + 1} has the tag {event.tag!r}; expected plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 2 or (depth == 2 and isinstance(event, yaml.MappingStartEvent)):
                raise ValueError(f"line {event.start_mark.line + 1} is nested; expected options, one a line")
        found = yaml.safe_load(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}; expected options, one a line, such as 'steps: 600'")
        if wrong := [name for name in found if not isinstance(name, str) or name not in known]:
            raise ValueError(f"there is no option {wrong[0]!r}; expected some of {', '.join(known)}")
        for name, value in found.items():
            numbers = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)]
            if any(number.bit_length() > 64 for number in numbers):  # too long to be written out
                raise ValueError(f"{name} has more than 64 bits; expected a number")
    except Exception as error:  # the parser raises whatever the text brings about
        raise ValueError(f"{path}: cannot be read as options: {' '.join(str(error).split())}") from error


def _is_option(word: str) -> bool:
    """Whether a word names an option; a negative number is a value."""
    return word.startswith("-") and not re.match(r"-\.?\d", word)


def _named(words: Sequence[str], positional: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Turn words that are no option's into options, so that a file of options may hold them too."""
    first: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not _is_option(word):
            first.append(word)
            continue
        if word.startswith("--"):  # --equal-time is --equal_time
            flag, given, value = word.partition("=")
            if (option := flag[2:].replace("-", "_")) in (*hints, "print_config"):
                word = f"--{option}{given}{value}"
        rest.append(word)
        name = next((long for long, short in SHORT.items() if short == word), word.lstrip("-"))
        if name in ("h", "help", "print_config") or "=" in word:
            continue
        hint = hints.get(name, str)
        while left and not _is_option(left[0]) and (hint is not bool or left[0].lower() in _TRUTHS):
            rest.append(left.pop(0))
            if "list" not in str(hint):
                break
    named: list[str] = []
    for name in positional:
        own = [first.pop(0) for _ in range(len(first) if POSITIONAL[name] else min(1, len(first)))]
        named += [f"--{name}", *own] if own else []
    return [*first, *rest, *named]
