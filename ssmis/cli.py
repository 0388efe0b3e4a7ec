# SPDX-License-Identifier: Apache-2.0
"""The command `ssmis`: parses, calls the function that a script would call, and prints the next useful command."""

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from ssmis import options as o
from ssmis._optional import require

USAGE = """usage: ssmis COMMAND ... (ssmis COMMAND --help has the options)

Segment medical images from a few labels and many unlabelled scans.

  ssmis demo                         make scans of a made-up organ and run all of it on them
  ssmis inspect DATA                 look a folder of scans through, name every problem by its file
  ssmis train DATA                   train; writes a run folder
  ssmis evaluate RUN                 score the held-out cases
  ssmis predict RUN IN... -o OUT     segment files, each on its own grid
  ssmis report RUN...                compare runs in one HTML file
  ssmis export RUN                   weights, ONNX or a MONAI bundle
  ssmis list                         recipes, nets and losses there are
  ssmis doctor                       what this machine has, and lacks

Each command is one Python function with the same options, such as ssmis.train(DATA, labelled="10%").
"""

POSITIONAL = {"data": None, "run": None, "runs": "+", "inputs": "+"}
SHORT = {"out": "-o"}
CONFIG_BYTES = 2**16  # of a file of options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for what is wrong with data or options, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        say(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        from ssmis import __version__

        say(__version__)
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        return fail(f"there is no command {words[0]!r}; expected one of {', '.join(COMMANDS)}")
    try:
        return command(words[1:])
    except KeyboardInterrupt:
        return fail("interrupted", status=130)
    except MemoryError as error:
        return fail(f"there is not enough memory: {str(error) or 'smaller patches, widths and batches need less'}")
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) or not str(error):
            raise
        return fail(str(error))


def say(text: str) -> None:
    """Print a line to standard output."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def fail(text: str, *, status: int = 1) -> int:
    """Print a message to standard error; returns the status."""
    sys.stderr.write(f"ssmis: {text}\n")
    return status


def suggest(*words: str) -> None:
    """Print the next useful command."""
    say(f"next: ssmis {shlex.join(words)}")


def parse(command: str, kind: type[Any], words: Sequence[str]) -> Any:
    """Read options of a dataclass from the command line, `--config` files and defaults."""
    import jsonargparse

    about = inspect.getdoc(kind) or ""
    positional = [field.name for field in fields(kind) if field.name in POSITIONAL]
    shown = " ".join(f"{name.upper()}..." if POSITIONAL[name] else name.upper() for name in positional)
    parser = jsonargparse.ArgumentParser(
        prog=f"ssmis {command}",
        usage=f"ssmis {command} {shown} [options]",
        description=about.split("\n")[0],
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


def _named(words: Sequence[str], positional: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Turn words that are no option's into options, so that a file of options may hold them too."""
    first: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            first.append(word)
            continue
        rest.append(word)
        name = next((long for long, short in SHORT.items() if short == word), word.lstrip("-"))
        if name in ("h", "help", "print_config") or "=" in word:
            continue
        hint = hints.get(name, str)
        while left and not left[0].startswith("-") and (hint is not bool or left[0].lower() in _TRUTHS):
            rest.append(left.pop(0))
            if "list" not in str(hint):
                break
    named: list[str] = []
    for name in positional:
        own = [first.pop(0) for _ in range(len(first) if POSITIONAL[name] else min(1, len(first)))]
        named += [f"--{name}", *own] if own else []
    return [*first, *rest, *named]


_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0")


def _inspect(words: Sequence[str]) -> int:
    from ssmis.data.inspect import inspect_data

    chosen = parse("inspect", o.InspectOptions, words)
    found = inspect_data(chosen)
    say(str(found))
    if found.ok:
        suggest("train", chosen.data)
    return 0 if found.ok else 1


def _train(words: Sequence[str]) -> int:
    from ssmis.engine.distributed import join
    from ssmis.engine.train import resolved, train

    chosen = resolved(parse("train", o.TrainOptions, words))
    try:
        done = train(chosen, say)
    except KeyboardInterrupt:
        again = ["ssmis", "train", "--config", f"{chosen.out}/config.yaml", "--resume"]
        if not Path(again[3]).is_file():
            raise  # nothing was begun that could be continued
        return fail(f"interrupted; continue with: {shlex.join(again)}", status=130)
    if not join().main:  # of several processes the first one tells
        return 0
    say(f"trained in {done.fit.minutes:.1f} minutes, {done.fit.peak_memory_mb:.0f} MB: {done.folder}")
    if done.split.test or done.split.val:
        suggest("evaluate", str(done.folder), *([] if done.split.test else ["--cases", "val"]))
    else:
        suggest("predict", str(done.folder), "IMAGE", "-o", "predictions")
    return 0


def _evaluate(words: Sequence[str]) -> int:
    from ssmis.engine.scoring import evaluate_run

    chosen = parse("evaluate", o.EvaluateOptions, words)
    for scores in evaluate_run(chosen, say):
        say(f"mean foreground Dice {100 * scores.dice:.1f} %: {scores.folder}")
    suggest("report", chosen.run)
    return 0


def _predict(words: Sequence[str]) -> int:
    from ssmis.engine.files import predict_files

    chosen = parse("predict", o.PredictOptions, words)
    written = predict_files(chosen, tell=say)
    say(f"{len(written)} images segmented into {chosen.out}")
    if not chosen.uncertainty:
        suggest("predict", chosen.run, *chosen.inputs, "-o", f"{chosen.out}_uncertainty", "--uncertainty")
    else:
        suggest("export", chosen.run)
    return 0


def _report(words: Sequence[str]) -> int:
    from ssmis.report.folders import report_runs

    chosen = parse("report", o.ReportOptions, words)
    path = report_runs(chosen, say)
    say(f"report: {path.resolve()}")
    suggest("predict", chosen.runs[-1], "IMAGE", "-o", "predictions")
    return 0


def _export(words: Sequence[str]) -> int:
    from ssmis.engine.export import export_run

    chosen = parse("export", o.ExportOptions, words)
    export_run(chosen, say)
    suggest("predict", chosen.run, "IMAGE", "-o", "predictions")
    return 0


def _demo(words: Sequence[str]) -> int:
    from ssmis.engine.demo import write_demo

    chosen = parse("demo", o.DemoOptions, words)
    folder = Path(chosen.out)
    data = write_demo(folder / "data")
    run, quiet = str(folder / "run"), ["--progress", str(chosen.progress).lower()]
    where = ["--device", chosen.device]
    again = ["--resume"] if (folder / "run" / "checkpoints" / "last.pt").is_file() else []
    first = sorted((data / "images").iterdir())[-1]
    steps: list[tuple[Callable[[Sequence[str]], int], str, list[str]]] = [
        (_inspect, "inspect", [str(data), *quiet]),
        (_train, "train", [str(data), "--out", run, "--steps", str(chosen.steps), *again, *where, *quiet]),
        (_evaluate, "evaluate", [run, *where, *quiet]),
        (_predict, "predict", [run, str(first), "-o", str(folder / "predictions"), "--overwrite", *where, *quiet]),
    ]
    for step, name, arguments in steps:
        say(f"\n$ ssmis {name} {shlex.join(arguments)}")
        if status := step(arguments):
            return status
    return 0


def _list(words: Sequence[str]) -> int:
    from ssmis import registry

    kinds = {"recipes": registry.RECIPES, "nets": registry.NETS, "losses": registry.LOSSES,
             "uncertainty": registry.UNCERTAINTY, "banks": registry.BANKS}  # fmt: skip
    if unknown := [word for word in words if word not in kinds]:
        raise ValueError(f"list knows no {unknown[0]!r}; expected some of {', '.join(kinds)}")
    for kind in words or kinds:
        say(f"{kind}:")
        for name in kinds[kind]:
            say(f"  {name:26} {kinds[kind][name].summary}")
    suggest("train", "DATA", "--recipe", "NAME")
    return 0


def _doctor(words: Sequence[str]) -> int:
    from ssmis.engine.doctor import examine

    if words:
        raise ValueError(f"doctor takes no options; got {words[0]!r}")
    lines, ok = examine()
    for line in lines:
        say(line)
    suggest("demo")
    return 0 if ok else 1


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    "inspect": _inspect,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "report": _report,
    "export": _export,
    "list": _list,
    "doctor": _doctor,
}
