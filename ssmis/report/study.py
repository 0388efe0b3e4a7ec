# SPDX-License-Identifier: Apache-2.0
"""A study as a table: rows and seeds from run folders, unfinished ones marked, differences against the seed spread."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from pathlib import Path
from typing import Any

from ssmis.data.cases import check_name
from ssmis.data.texts import read_json
from ssmis.data.whole import replacing
from ssmis.metrics import CaseScore, SeedSummary, compare_methods, summarise_seeds
from ssmis.report._differences import RowDifference
from ssmis.report.compare import Run, check_comparable, read_run
from ssmis.report.runs import read_log, read_result
from ssmis.report.tables import format_table

Scores = Sequence[CaseScore]


@dataclass(frozen=True)
class Cell:
    """One training of a study: its row, seed and folder, and its scores once it is finished.

    Attributes:
        row: name of the row.
        seed: of the training.
        folder: run folder, which need not exist yet.
        steps: that the training has.
    """

    row: str
    seed: int
    folder: Path
    steps: int

    @cached_property
    def result(self) -> Mapping[str, Any]:
        """What `result.json` holds: minutes, peak memory, best step; empty while the cell is not finished."""
        return read_result(self.folder)

    @cached_property
    def runs(self) -> Mapping[str, Run]:
        """Checkpoint ("last", "last, NET alone", "best") -> scored run; empty while the cell is not finished."""
        return {name: read_run(folder) for name, folder in self.folders.items()} if self.result else {}

    @property
    def folders(self) -> Mapping[str, Path]:
        """Checkpoint -> folder of its scores, as far as there are any."""
        alone = {f"last, {path.name} alone": path for path in sorted(self.folder.glob("alone/*"))}
        found = {"last": self.folder, **alone, "best": self.folder / "best"}
        return {name: folder for name, folder in found.items() if folder.is_dir()}

    def __str__(self) -> str:
        if self.result:
            return "finished"
        if not (self.folder / "metrics.csv").is_file():
            return "not begun"
        done = len(read_log(self.folder / "metrics.csv").get("step", ()))
        return f"step {done} of {self.steps}" if done < self.steps else "trained, not scored"


@dataclass(frozen=True)
class Study:
    """Rows by seeds, as `ssmis.study.run` leaves them in a folder.

    Attributes:
        folder: of the study.
        facts: what `study.json` holds.
    """

    folder: Path
    facts: Mapping[str, Any]

    @cached_property
    def cells(self) -> Mapping[str, Sequence[Cell]]:
        """Row -> its cells, a seed each."""
        steps, seeds = self.facts["steps"], self.facts["seeds"]
        return {
            row: [Cell(row, seed, self.folder / row / f"seed{seed}", steps[row]) for seed in seeds] for row in steps
        }

    @property
    def finished(self) -> bool:
        """Whether every cell is."""
        return len(self._finished()) == sum(map(len, self.cells.values()))

    def scores(self, row: str, *, checkpoint: str = "last", post_processing: str = "none") -> list[Scores]:
        """Scores of the finished cells of a row, a seed each."""
        runs = [cell.runs[checkpoint] for cell in self.cells[row] if checkpoint in cell.runs]
        return [run.scores[post_processing] for run in runs if post_processing in run.scores]

    def __str__(self) -> str:
        """The table of scores, the cells that are not finished, and the differences between rows."""
        return self.table()

    def table(self, *, against: Sequence[str] | None = None) -> str:
        """The same as `print` shows, with differences to rows of one's own choice.

        Raises:
            ValueError: there is no such row.
        """
        runs = [run for cells in self.cells.values() for cell in cells for run in cell.runs.values()]
        check_comparable(runs, checkpoints=True)
        parts = [f"{self._about()}\n"]
        if runs:
            parts.append(self._scores(runs[0]) + "\n")
        if not self.finished:
            heads = ["row", *(f"seed {seed}" for seed in self.facts["seeds"])]
            rows = [[row, *map(str, cells)] for row, cells in self.cells.items()]
            parts.append("Not finished; the same command continues:\n\n" + format_table(heads, rows) + "\n")
        if found := self.differences(against=against):
            heads = ["row", "against", "seeds", "Dice points", "95 % over seeds", "over cases", "p", "over both"]
            parts.append(format_table(heads, [one.cells() for one in found]) + "\n")
        return "\n".join(parts)

    def differences(self, *, metric: str = "dice", against: Sequence[str] | None = None) -> list[RowDifference]:
        """Each row minus each row it is held against, over the seeds that are finished in both.

        Args:
            metric: as in `summarise`.
            against: rows; default: those of the study.

        Raises:
            ValueError: there is no such row.
        """
        against = self.facts["against"] if against is None else against
        if unknown := [row for row in against if row not in self.cells]:
            raise ValueError(f"against names {unknown}; expected some of {list(self.cells)}")
        found: list[RowDifference] = []
        told_of: set[frozenset[str]] = set()
        for base in against:
            for row in self.cells:
                pairs = list(zip(self.cells[row], self.cells[base]))  # seed by seed
                both = [(one.runs["last"], other.runs["last"]) for one, other in pairs if one.result and other.result]
                if row == base or {row, base} in told_of or not both:
                    continue
                told_of.add(frozenset({row, base}))
                ours, theirs = zip(*[[run.scores["none"] for run in pair] for pair in both])
                seeds = tuple(one.seed for one, other in pairs if one.result and other.result)
                found.append(RowDifference(row, base, seeds, metric, compare_methods(ours, theirs, metric=metric)))
        return found

    def keep(self, folder: Path | str) -> list[Path]:
        """Copy what the table needs of every finished cell, a few kilobytes each, into another folder.

        `read_study` reads it there, and `ssmis.study.run` skips these cells there: enough to publish a table with its
        scores, or to go on with a study on another machine. Checkpoints, logs and the cache stay where they are. What
        was kept of this study before stays, and is replaced where there is something newer.

        Raises:
            ValueError: the folder is the study's own or in it, no folder, or holds another study.
        """
        folder = Path(folder)
        inside = self.folder.resolve() in (folder.resolve(), *folder.resolve().parents)
        if inside or (folder.exists() and (not folder.is_dir() or folder.samefile(self.folder))):
            raise ValueError(
                f"folder is {folder}; expected another one than the study's and outside of it, or a new one"
            )
        files = []
        for cell in self._finished():
            files += [file for place in reversed([*cell.folders.values()]) for file in kept_files(place)]
        targets = [folder / path.relative_to(self.folder) for path in files]
        facts = self._with_facts_of(folder)
        for path, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        listed = folder / "study.json"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(listed, listed.with_name("study.json.tmp")) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return [listed, *targets]

    def _with_facts_of(self, folder: Path) -> Mapping[str, Any]:
        """The facts of this study, with the rows and seeds of what was kept in `folder` before."""
        if not (folder / "study.json").is_file():
            return self.facts
        old = read_study(folder).facts
        may_differ = ("seeds", "steps", "against", "seconds_per_step", "all_labels", "all_labels_sha256")
        other = [
            name for name in {**old, **self.facts} if name not in may_differ and old.get(name) != self.facts.get(name)
        ]
        other += [row for row in old["steps"] if old["steps"][row] != self.facts["steps"].get(row, old["steps"][row])]
        if other:
            raise ValueError(
                f"{folder} holds another study: {', '.join(other)} differ; expected this one, or a new folder"
            )
        merged = {
            "seeds": list(dict.fromkeys([*old["seeds"], *self.facts["seeds"]])),
            "steps": {**old["steps"], **self.facts["steps"]},
        }
        ceiling = {name: self.facts.get(name) or old.get(name) for name in ("all_labels", "all_labels_sha256")}
        return {**self.facts, **merged, **ceiling}

    def _finished(self) -> list[Cell]:
        return [cell for cells in self.cells.values() for cell in cells if cell.result]

    def _about(self) -> str:
        facts = self.facts
        text = (
            f"Protocol {facts['protocol']}, {facts['labelled']} labelled and {facts['unlabelled']} unlabelled cases, "
        )
        text += f"{facts['cases']} {facts['scored']} cases scored, {len(facts['seeds'])} seeds"
        if ceiling := facts.get("all_labels"):
            text += f", all_labels on {ceiling} labelled ones"
        if facts["minutes"] is not None:
            text += f", {facts['minutes']:g} minutes of training steps a run"
        text += ". Mean ± standard deviation over seeds; the interval is over seeds and cases."
        if facts["scored"] == "validation" and facts["best"]:
            text += " The best checkpoint is chosen on the very cases that are scored: its row flatters."
        return text

    def _scores(self, first: Run) -> str:
        unit = first.fact("evaluation.unit")
        distance = "asd" if first.fact("evaluation.convention") == "medpy" else "assd"
        heads = ["row", "seeds", "checkpoint", "post-processing", "Dice %", "95 % interval", "worst", "Jaccard %"]
        heads += [f"HD95 {unit}", f"{distance.upper()} {unit}", "missed", "steps", "minutes", "peak MB"]
        rows: list[list[object]] = []
        for row, cells in self.cells.items():
            done = [cell for cell in cells if cell.result]
            if not done:
                rows.append([row, f"0 of {len(cells)}", *("unfinished",) * 2, *("n/a",) * (len(heads) - 4)])
                continue
            minutes = sum(cell.result["minutes"] for cell in done) / len(done)
            peak = max(cell.result["peak_memory_mb"] for cell in done)
            for checkpoint, post in _kinds(done):
                scores = self.scores(row, checkpoint=checkpoint, post_processing=post)
                seeds = str(len(scores)) if len(scores) == len(cells) else f"{len(scores)} of {len(cells)}"
                seeds += ", unfinished" if len(done) < len(cells) else ""
                names: list[object] = [row, seeds, checkpoint, post.replace("_", " ")]
                rows.append([*names, *_numbers(scores, distance), cells[0].steps, f"{minutes:.1f}", f"{peak:.0f}"])
        return format_table(heads, rows)


def _kinds(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Checkpoints with post-processing that some of the cells were scored with: the last one, its nets, the best."""
    found = dict.fromkeys((name, post) for cell in cells for name, run in cell.runs.items() for post in run.scores)
    return sorted(found, key=lambda kind: (kind[0] != "last", kind[0] == "best"))


def kept_files(folder: Path) -> list[Path]:
    """What tells about a scored run, except how it was trained; what says that it is finished comes last."""
    names = ("protocol.json", "env.json", "cases.csv", "cases_largest.csv", "calibration.csv", "reliability.csv",
             "quality.csv")  # fmt: skip
    return [path for name in (*names, "result.json") if (path := folder / name).is_file()]


def read_study(folder: Path | str) -> Study:
    """Read a study from its folder, finished or not; `print` it for the table.

    Raises:
        ValueError: there is no `study.json`, or it is not what `ssmis.study.run` writes.
    """
    path = Path(folder) / "study.json"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected the folder of a study")
    facts = read_json(path)
    steps, seeds, against = (facts.get(name) for name in ("steps", "seeds", "against"))
    rows = list(steps) if isinstance(steps, dict) else []
    whole = {name: type(facts.get(name)) is int for name in ("labelled", "unlabelled", "cases")}
    sound = {
        "steps": isinstance(steps, dict) and all(type(value) is int for value in steps.values()),
        "seeds": isinstance(seeds, list) and all(type(value) is int for value in seeds),
        "against": isinstance(against, list) and all(value in rows for value in against),
        "protocol": isinstance(facts.get("protocol"), str),
        "scored": isinstance(facts.get("scored"), str),
        "best": isinstance(facts.get("best"), bool),
        "minutes": "minutes" in facts and (facts["minutes"] is None or type(facts["minutes"]) in (int, float)),
        **whole,
        "all_labels": facts.get("all_labels") is None or type(facts["all_labels"]) is int,
    }
    for name, fine in sound.items():
        if not fine:
            raise ValueError(f"{path}: {name} is {str(facts.get(name))[:200]!r}, which is none of a study")
    for row in facts["steps"]:
        check_name(row, path)
    return Study(path.parent, facts)


def _numbers(runs: Sequence[Scores], distance: str) -> list[object]:
    dice, jaccard, hd95, mean = (summarise_seeds(runs, metric=m) for m in ("dice", "jaccard", "hd95", distance))
    worst = min((score.dice for run in runs for score in run if score.status != "na"), default=nan)
    return [
        _spread(dice, 100),
        f"{100 * dice.low:.1f} to {100 * dice.high:.1f}",
        f"{100 * worst:.1f}",
        _spread(jaccard, 100),
        _spread(hd95),
        _spread(mean),
        dice.n_miss,
    ]


def _spread(found: SeedSummary, factor: float = 1) -> str:
    sd = "" if isnan(found.sd) else f" ± {factor * found.sd:.2f}"
    return f"{factor * found.mean:.2f}{sd}"
