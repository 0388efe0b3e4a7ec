# SPDX-License-Identifier: Apache-2.0
"""The command `ssmis`: parses, calls the function that a script would call, and prints the next useful command."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from ssmis import options as o
from ssmis._arguments import parse

USAGE = """usage: ssmis COMMAND ... (ssmis COMMAND --help has the options)

Segment medical images from a few labels and many unlabelled scans.

  ssmis demo                         make scans of a made-up organ and run all of it on them
  ssmis inspect DATA                 look a folder of scans through, name every problem by its file
  ssmis verify DATA PROTOCOL         hold a public data set against its lists, digests and split
  ssmis train DATA                   train; writes a run folder
  ssmis evaluate RUN                 score the held-out cases
  ssmis predict RUN IN... -o OUT     segment files, each on its own grid
  ssmis compare DATA                 train several methods with several seeds, score and report them
  ssmis report RUN...                compare runs in one HTML file
  ssmis export RUN                   weights, ONNX or a MONAI bundle
  ssmis list                         recipes, nets and losses there are
  ssmis doctor                       what this machine has, and lacks

Each command is one Python function with the same options, such as ssmis.train(DATA, labelled="10%").
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    It is 0, 1 for what is wrong with data or options, 130 after Ctrl-C, and 141 where nobody reads the output any more.
    """
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
    except _ClosedError:  # whoever read what is printed has had enough; nothing is left to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        return fail(f"there is not enough memory: {str(error) or 'smaller patches, widths and batches need less'}")
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) or not str(error):
            raise
        return fail(str(error))


class _ClosedError(Exception):
    """Nobody reads standard output any more."""


def say(text: str) -> None:
    """Print a line to standard output."""
    try:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise _ClosedError from error


def fail(text: str, *, status: int = 1) -> int:
    """Print a message to standard error; returns the status."""
    sys.stderr.write(f"ssmis: {text}\n")
    return status


def suggest(*words: str) -> None:
    """Print the next useful command."""
    say(f"next: ssmis {shlex.join(words)}")


def _inspect(words: Sequence[str]) -> int:
    from ssmis.data.inspect import inspect_data

    chosen = parse("inspect", o.InspectOptions, words)
    found = inspect_data(chosen)
    say(str(found))
    if found.ok:
        suggest("train", chosen.data)
    return 0 if found.ok else 1


def _verify(words: Sequence[str]) -> int:
    from ssmis.data.verify import verify

    chosen = parse("verify", o.VerifyOptions, words)
    if wrong := [word for word in chosen.lists or [] if not all(word.partition("="))]:
        raise ValueError(f"lists has {wrong[0]!r}; expected ROLE=FILE, such as val=dev_val.list")
    roles = [word.partition("=")[0] for word in chosen.lists or []]
    if twice := [role for role in roles if roles.count(role) > 1]:
        raise ValueError(f"lists names {twice[0]!r} twice; expected one file a role")
    lists = dict(word.split("=", 1) for word in chosen.lists) if chosen.lists else None
    found = verify(chosen.data, chosen.protocol, lists=lists, near=chosen.near, progress=chosen.progress)
    say(str(found))
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
    try:
        written = predict_files(chosen, tell=say)
    except KeyboardInterrupt:
        if chosen.overwrite:
            raise  # which results are old ones nobody knows
        again = shlex.join(["ssmis", "predict", *words, *([] if chosen.resume else ["--resume"])])
        return fail(f"interrupted; continue with: {again}", status=130)
    say(f"{len(written)} image{'' if len(written) == 1 else 's'} segmented into {chosen.out}")
    if not chosen.uncertainty:
        another = ["-o", f"{chosen.out}_uncertainty", "--uncertainty", *_as_before(chosen)]
        suggest("predict", chosen.run, *chosen.inputs, *another)
    else:
        suggest("export", chosen.run)
    return 0


def _as_before(chosen: o.PredictOptions) -> list[str]:
    """The options that decide what the label maps are, where they are not the default."""
    found: list[str] = []
    for field in fields(chosen):
        value = getattr(chosen, field.name)
        if field.name in _DECIDES and value != field.default:
            given = [] if value is True else value if isinstance(value, list) else [value]
            found += [f"--{field.name}", *map(str, given)]
    return found


def _compare(words: Sequence[str]) -> int:
    from ssmis.compare import compare_methods

    chosen = parse("compare", o.CompareOptions, words)
    try:
        done = compare_methods(chosen, say)
    except KeyboardInterrupt:
        return fail(f"interrupted; continue with: {shlex.join(['ssmis', 'compare', *words])}", status=130)
    say(f"report: {done.report.resolve()}")
    first, *others = map(str, list(done.runs.values())[-1])
    suggest("predict", first, "IMAGE", "-o", "predictions", *(["--ensemble", *others] if others else []))
    return 0


def _report(words: Sequence[str]) -> int:
    from ssmis.report.folders import report_runs

    chosen = parse("report", o.ReportOptions, words)
    path = report_runs(chosen, say)
    say(f"report: {path.resolve()}")
    last = Path(chosen.runs[-1])
    if (last / "options.json").is_file() or any(last.glob("*/options.json")):  # no scores that were kept, no study
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

    if {"-h", "--help"} & set(words):
        say("usage: ssmis list [KIND...]\n\nWhat is registered: recipes, nets, losses, uncertainty, banks.")
        return 0
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

    if {"-h", "--help"} & set(words):
        say("usage: ssmis doctor\n\nWhat this machine has, and lacks; status 1 if a training could not run.")
        return 0
    if words:
        raise ValueError(f"doctor takes no options; got {words[0]!r}")
    lines, ok = examine()
    for line in lines:
        say(line)
    suggest("demo")
    return 0 if ok else 1


_DECIDES = ("ensemble", "largest", "flips", "overlap", "memory_gb", "spacing_mm", "device")
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    "inspect": _inspect,
    "verify": _verify,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "compare": _compare,
    "report": _report,
    "export": _export,
    "list": _list,
    "doctor": _doctor,
}
