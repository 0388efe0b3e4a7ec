# SPDX-License-Identifier: Apache-2.0
"""Several seeds as the unit of work: rows by seeds, trained, scored and written as one table; resumable throughout."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch

from ssmis._checks import check_choice
from ssmis._study_rows import ALL_LABELS, SUPERVISED, Build, check_everything, rows_of
from ssmis.data import Batch, Case, Split
from ssmis.data.texts import read_json
from ssmis.engine import PROTOCOLS, BestOnValidation, FitResult, Protocol, fit
from ssmis.engine.atomic import replace_text
from ssmis.engine.budget import seconds_per_step, steps_for
from ssmis.engine.lock import locked
from ssmis.engine.record import changed_settings, list_facts, method_of
from ssmis.engine.run import Callback
from ssmis.recipes import Recipe, Supervised
from ssmis.report.study import Cell, Study, read_study

__all__ = ["run"]


def run(
    protocol: Protocol | str,
    recipe: str | Build | Mapping[str, Build],
    *,
    split: Split,
    out: Path | str,
    seeds: int | Sequence[int] = 3,
    minutes: float | None = None,
    steps: Mapping[str, int] | None = None,
    validations: int = 10,
    everything: Sequence[Case] = (),
    callbacks: Sequence[Callback] = (),
    nets_alone: bool = False,
    against: Sequence[str] = (SUPERVISED,),
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Study:
    """Train and score every row with every seed, and return the study; `print` it for the table.

    A row is a method, a cell is one training of it with one seed, and `out/<row>/seed<seed>` is its run folder. Within
    a seed all rows begin with the same random state. A row `supervised`, labelled cases only, comes first: the nets of
    the first method, as many steps or minutes. With `everything` a row `all_labels` comes last, which is the same on
    these cases: what further labels would bring.

    Test cases are scored, or the validation cases where there are no test cases. The last checkpoint is always scored;
    with validation cases also the best of `validations` looks at them, by mean Dice. Where these cases are the scored
    ones, the best is chosen on what it is scored on, and the table says so. Test cases are closed while anything
    trains, and validation cases too where nothing looks at them.

    Each finished cell is written down at once, and `out/table.md` with it. The same call again continues: it skips
    finished cells, resumes a begun one at its checkpoint, and leaves out what another process works on. More seeds or
    rows may be added; other settings are an error.

    Args:
        protocol: or its name in `PROTOCOLS`.
        recipe: name in `RECIPES` of a method of two nets, with the protocol's `preset` if it is `dual_uncertainty`; or
            protocol -> `Recipe`; or name of the row -> such a call, for several rows.
        split: cases by their role.
        out: folder of the study.
        seeds: how many, from 0 on, or which.
        minutes: of training steps a run, instead of the protocol's `fit.steps`: the speed of all rows is measured side
            by side first (`seconds_per_step`), and kept in `study.json`, so every seed has as many steps and a schedule
            that depends on nothing else. Validation and scoring take their time on top.
        steps: row -> its steps, of rows that have others than the protocol's or the budget's; such as a supervised row
            that takes as long as the method. A row `all_labels` may be named, too.
        validations: looks at the validation cases in a run, evenly spaced; 0: none, the last checkpoint alone.
        everything: labelled cases of the row `all_labels`, usually those of the split and the hidden labels of its
            unlabelled ones.
        callbacks: called in every training as those of `fit` are, such as `PseudoLabelQuality`; without looks at
            validation cases every `fit.callback_every` steps.
        nets_alone: score each net of the last checkpoint by itself, too, where a row has several.
        against: rows that all others are held against (`compare_methods`), those of earlier calls too.
        progress: show bars.
        tell: called with a line about what begins, such as `print`.

    Raises:
        ValueError: unknown names, nothing to score, or a study in `out` with other settings.
        FileExistsError: another process measures speeds in `out`.
        DataError: from reading cases.
    """
    if isinstance(protocol, str):
        check_choice(protocol, PROTOCOLS, name="protocol")
        protocol = PROTOCOLS[protocol]
    everything = tuple(everything)
    rows = rows_of(recipe, ceiling=bool(everything))
    if isinstance(seeds, bool) or not isinstance(seeds, int | Iterable):
        raise ValueError(f"seeds is {seeds!r}; expected how many, or whole numbers below 2**63, each once")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and abs(seed) < 2**63 for seed in seeds):
        raise ValueError(f"seeds is {seeds}; expected at least one whole number below 2**63, each once")
    if minutes is not None and (isinstance(minutes, bool) or not 0 < minutes < inf):
        raise ValueError(f"minutes is {minutes!r}; expected a finite number above 0")
    if unknown := [name for name in against if name not in rows]:
        raise ValueError(f"against names {unknown}; expected some of {list(rows)}")
    scored = split.test or split.val
    if not scored:
        raise ValueError("split has neither test nor validation cases; expected some to score")
    if type(validations) is not int or validations < 0:
        raise ValueError(f"validations is {validations!r}; expected a whole number of at least 0")
    check_everything(everything, split)
    own = dict(steps or {})
    if unknown := [name for name in own if name not in rows]:
        raise ValueError(f"steps names {unknown}; expected some of {list(rows)}")
    for name, count in own.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"steps of {name} is {count!r}; expected a whole number of at least 1")
    out = Path(out)
    plan = _Plan(protocol, rows, split, scored, out, minutes, own, validations, everything, callbacks,
                 nets_alone, progress, tell or (lambda line: None))  # fmt: skip
    with locked(out):
        replace_text(out / "study.json", json.dumps(plan.facts(seeds, against), indent=1))
    cells = read_study(out).cells
    for seed in seeds:  # seed by seed, so that an unfinished study compares what it has
        for cell in (cell for name in rows for cell in cells[name] if cell.seed == seed):
            try:
                plan.finish(cell)
            except FileExistsError:
                plan.tell(f"{cell.row}, seed {seed}: another process trains it")
                continue
            (out / "table.md").write_text(f"{read_study(out)}", encoding="utf-8")
    return read_study(out)


@dataclass(frozen=True)
class _Plan:
    protocol: Protocol
    rows: Mapping[str, Build]
    split: Split
    scored: Sequence[Case]
    out: Path
    minutes: float | None
    own_steps: Mapping[str, int]
    validations: int
    everything: Sequence[Case]
    callbacks: Sequence[Callback]
    nets_alone: bool
    progress: bool
    tell: Callable[[str], None]

    def facts(self, seeds: Sequence[int], against: Sequence[str]) -> dict[str, Any]:
        """What `study.json` holds; steps that it has already are kept."""
        old = read_json(path) if (path := self.out / "study.json").is_file() else {}
        fixed = {
            "protocol": self.protocol.name or "of its own",
            "labelled": len(self.split.labelled),
            "unlabelled": len(self.split.unlabelled),
            "scored": "test" if self.split.test else "validation",
            "cases": len(self.scored),
            "cases_sha256": list_facts(self.scored)["sha256"],
            "best": bool(self.looks_at),
            "minutes": self.minutes,
            "protocol_steps": self.protocol.fit.steps if self.minutes is None else None,
        }
        if old and (changed := changed_settings({name: old.get(name) for name in fixed}, fixed)):
            raise ValueError(f"{path} is of other settings: {changed}; choose another folder")
        ceiling = {name: old.get(name) for name in ("all_labels", "all_labels_sha256")}
        if self.everything:  # a row that may be added later, and left out again
            found = {"all_labels": len(self.everything), "all_labels_sha256": list_facts(self.everything)["sha256"]}
            if ceiling["all_labels"] and ceiling != found:
                raise ValueError(
                    f"{path} is of other settings: {changed_settings(ceiling, found)}; choose another folder"
                )
            ceiling = found
        seconds, steps = old.get("seconds_per_step", {}), old.get("steps", {})
        if changed := changed_settings(steps, {**steps, **{n: k for n, k in self.own_steps.items() if n in steps}}):
            raise ValueError(f"{path} is of other settings: steps of {changed}; choose another folder")
        steps |= {name: count for name, count in self.own_steps.items() if name not in steps}
        new = [name for name in self.rows if name not in steps]
        if self.minutes is None:
            steps |= dict.fromkeys(new, self.protocol.fit.steps)
        elif new:
            self.tell(f"measuring the speed of {', '.join(new)}")
            known = next((name for name in seconds if name in self.rows), None)  # later rows get the time it takes now
            makes = {name: partial(self.make, name, 0) for name in (*([known] if known else []), *new)}
            measured = seconds_per_step(makes, self.protocol.fit, held_out=self.closed)
            slower = measured.pop(known) / seconds[known] if known else 1.0
            measured = {name: own / slower for name, own in measured.items()}
            seconds |= measured
            steps |= {name: steps_for(self.minutes, own) for name, own in measured.items()}
        fixed["seeds"] = list(dict.fromkeys([*old.get("seeds", []), *seeds]))
        order = [name for name in {**old.get("steps", {}), **self.rows} if name != ALL_LABELS]
        steps = {name: steps[name] for name in (*order, ALL_LABELS) if name in steps}  # in the order of the table
        against = list(dict.fromkeys([*old.get("against", []), *against]))
        return {**fixed, **ceiling, "against": against, "steps": steps, "seconds_per_step": seconds}

    @property
    def closed(self) -> Sequence[Case]:
        """Cases that no training may open."""
        return self.split.test if self.looks_at else (*self.split.test, *self.split.val)

    @property
    def looks_at(self) -> Sequence[Case]:
        """The validation cases, if a training may see them."""
        return self.split.val if self.validations else ()

    def cases(self, row: str, recipe: Recipe) -> tuple[Sequence[Case], Sequence[Case]]:
        """Labelled and unlabelled cases of a row."""
        if row == ALL_LABELS:
            return self.everything, ()
        return self.split.labelled, () if isinstance(recipe, Supervised) else self.split.unlabelled

    def make(self, row: str, seed: int) -> tuple[Recipe, Callable[[int], Batch]]:
        """A fresh recipe of a row and its batches."""
        recipe = self.recipe(row, seed)
        return recipe, self.batches(row, seed, recipe)

    def recipe(self, row: str, seed: int) -> Recipe:
        """A fresh recipe of a row."""
        torch.manual_seed(seed)
        return self.rows[row](self.seeded(seed))

    def batches(self, row: str, seed: int, recipe: Recipe) -> Callable[[int], Batch]:
        """The batches of a row; its cases are cached."""
        labelled, unlabelled = self.cases(row, recipe)
        cache = self.protocol.cache([*labelled, *unlabelled], self.out / "cache")
        return self.seeded(seed).batches(cache, labelled, unlabelled)

    def seeded(self, seed: int) -> Protocol:
        """The protocol with a seed."""
        return replace(self.protocol, fit=replace(self.protocol.fit, seed=seed))

    def finish(self, cell: Cell) -> None:
        """Train and score a cell, or what is left of it.

        Raises:
            FileExistsError: another process trains it.
            ValueError: it was made with other settings.
        """
        recipe = self.recipe(cell.row, cell.seed)
        every = self.protocol.fit.callback_every if self.callbacks else cell.steps
        if self.looks_at:
            every = max(1, -(-cell.steps // self.validations))
        config = replace(self.protocol.fit, seed=cell.seed, steps=cell.steps, callback_every=every)
        protocol = replace(self.protocol, fit=config)
        labelled, unlabelled = self.cases(cell.row, recipe)
        facts = protocol.facts(labelled=labelled, unlabelled=unlabelled, validation=self.looks_at)
        facts |= {"row": cell.row}
        if cell.result:
            record = read_json(cell.folder / "protocol.json")
            settings = json.loads(json.dumps({"fit": asdict(config), "method": method_of(recipe), **facts}))
            if changed := changed_settings({name: record.get(name) for name in settings}, settings):
                raise ValueError(f"{cell.folder} was made with other settings: {changed}")
            return
        with locked(cell.folder, again=True):  # until it is scored: two processes would write one record
            if replace(cell).result:
                return  # another process has finished it since
            batches = self.batches(cell.row, cell.seed, recipe)
            best = BestOnValidation(protocol, self.looks_at, cell.folder) if self.looks_at else None
            self.tell(f"{cell.row}, seed {cell.seed}: {cell.steps} steps, {cell}")
            done = fit(
                recipe,
                batches,
                config,
                out=cell.folder,
                resume=True,
                facts=facts,
                held_out=self.closed,
                callbacks=[*self.callbacks, *([best] if best else [])],
                progress=self.progress,
            )
            self.score(cell, protocol, done, best)

    def score(self, cell: Cell, protocol: Protocol, done: FitResult, best: BestOnValidation | None) -> None:
        """Score the last checkpoint, its nets and the best one, then write that the cell is finished."""
        protocol.score(done.recipe, self.scored, cell.folder)
        result = {"minutes": done.minutes, "peak_memory_mb": done.peak_memory_mb}
        record = read_json(cell.folder / "protocol.json")
        del record["evaluation"]

        def also(name: str, recipe: Recipe, **facts: object) -> None:
            folder = cell.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / "protocol.json", json.dumps(record | facts, indent=1))
            protocol.score(recipe, self.scored, folder)

        nets = done.recipe.nets() if self.nets_alone else {}
        for name, net in nets.items() if len(nets) > 1 else ():
            also(f"alone/{name}", Supervised({name: net}))
        if best is not None:
            rule = "best_on_validation" if self.split.test else "best_on_scored"
            also("best", best.restore(done.recipe), checkpoint=rule, step=best.step)
            result |= {"best_step": best.step, "best_validation_dice": best.dice}
        replace_text(cell.folder / "result.json", json.dumps(result, indent=1))
