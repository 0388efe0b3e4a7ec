# SPDX-License-Identifier: Apache-2.0
"""The training loop: the only one in the library; a method is a `Recipe`."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ssmis.data.batch import Batch
from ssmis.data.prefetch import Prefetch
from ssmis.engine.checkpoint import load_checkpoint, save_checkpoint
from ssmis.engine.config import FitConfig
from ssmis.engine.console import interruptible, progress_bar
from ssmis.engine.guard import TermGuard
from ssmis.engine.log import CsvLog
from ssmis.engine.optim import make_optimizer, set_learning_rate
from ssmis.engine.runtime import (
    apply_memory_format,
    environment,
    memory_format_for,
    peak_memory_mb,
    pick_device,
    pick_precision,
    seed_everything,
)
from ssmis.nets.ema import EMA
from ssmis.recipes.base import Recipe, StageContext, Terms

Callback = Callable[[int, Recipe], Mapping[str, float] | None]


@dataclass(frozen=True)
class FitResult:
    """A finished run: its recipe (students averaged if `ema_decay` was set), training minutes, peak memory in MB."""

    recipe: Recipe
    minutes: float
    peak_memory_mb: float


def fit(
    recipe: Recipe,
    batches: Callable[[int], Batch],
    config: FitConfig,
    *,
    out: Path | str,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> FitResult:
    """Train a recipe.

    Writes into `out`: `metrics.csv` (a row a step: loss, terms, weights, learning rate, gradient norm), `quality.csv`
    (what the callbacks return), `fit.json` (settings), `env.json` and `checkpoints/last.pt` (everything, atomic).
    Ctrl-C finishes the step, writes the checkpoint and raises KeyboardInterrupt; a second Ctrl-C stops at once.

    Args:
        recipe: the method, on any device.
        batches: step -> `Batch`, a pure function; it is called in a background thread, one step ahead.
        config: settings of the run.
        out: run folder.
        resume: continue from `checkpoints/last.pt` if it is there; else a folder that holds one is refused.
        callbacks: called as `callback(step, recipe)` every `callback_every` steps and at the end, in eval mode and
            with the averaged students if there are any; their numbers go to `quality.csv`.
        progress: show a bar with losses and time left.

    Raises:
        FileExistsError: `out` holds a checkpoint and `resume` is false.
        ValueError: the checkpoint was made with other settings.
        DeadTermError: a term does not train what it should.
        FloatingPointError: `max_skipped` steps in a row had a loss or gradient that was not finite.
    """
    run = _Run(recipe, config, Path(out), resume=resume)
    try:
        with (
            interruptible() as interrupted,
            progress_bar(config.steps, run.step, show=progress) as bar,
            Prefetch(batches, run.step, config.steps) as stream,
        ):
            for batch in stream:
                run.enter_stage()
                terms = run.train_step(batch)
                bar(run.step, terms)
                if run.step % config.callback_every == 0 or run.step == config.steps:
                    run.call(callbacks)
                if run.step % config.checkpoint_every == 0 or run.step == config.steps or interrupted():
                    run.save()
                if interrupted() and run.step < config.steps:
                    raise KeyboardInterrupt
    finally:
        run.close()
    if run.ema is not None:
        recipe.students.load_state_dict(run.ema.module.state_dict())
    return FitResult(recipe, run.seconds / 60, peak_memory_mb(run.device))


class _Run:
    """State of a run between steps."""

    def __init__(self, recipe: Recipe, config: FitConfig, out: Path, *, resume: bool) -> None:
        self.recipe, self.config, self.out = recipe, config, out
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        self.memory_format = torch.contiguous_format
        if config.memory_format == "auto":
            self.memory_format = memory_format_for(recipe)
        apply_memory_format(recipe.to(self.device), self.memory_format)
        self.optimizer = self._new_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaler)
        self.ema = None if config.ema_decay is None else EMA(recipe.students, decay=config.ema_decay)
        self.guard = TermGuard(recipe.students, patience=config.patience)
        self.step, self.skipped, self.seconds, self.stage = 0, 0, 0.0, -1
        self.last = out / "checkpoints" / "last.pt"
        if self.last.exists():
            if not resume:
                raise FileExistsError(f"{out} holds a run already; resume it, or choose another folder")
            self._load()
        self.last.parent.mkdir(parents=True, exist_ok=True)
        (out / "fit.json").write_text(json.dumps(asdict(config), indent=1))
        (out / "env.json").write_text(json.dumps(environment(), indent=1))
        self.log = CsvLog(out / "metrics.csv", keep_below=self.step)
        self.quality: CsvLog | None = None

    def enter_stage(self) -> None:
        """Begin the stage that the next step belongs to, if it is a new one."""
        stages, begin = self.recipe.stages(), 0.0
        for index, stage in enumerate(stages):
            begin_step = round(begin * self.config.steps)
            if self.step >= begin_step and index > self.stage:
                self.stage = index
                if stage.reset_optimizer:
                    self.optimizer = self._new_optimizer()
                self.recipe.begin_stage(StageContext(stage, begin_step, self.out))
            begin += stage.share

    def train_step(self, batch: Batch) -> Terms:
        """One optimiser step; a non-finite loss or gradient skips the update."""
        start, config, recipe = time.perf_counter(), self.config, self.recipe.train()
        progress = self.step / config.steps
        seed_everything(batch.key)
        set_learning_rate(self.optimizer, config.rate(progress))
        recipe.begin_step()
        with self.precision.autocast():
            terms: Terms = recipe(batch.to(self.device, self.memory_format), progress)
        loss = terms.total()
        applied = bool(torch.isfinite(loss))
        norm = torch.tensor(float("nan"))
        if applied:
            self.guard.check(terms)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm or float("inf"))
            applied = bool(torch.isfinite(norm))
            if applied:
                self.scaler.step(self.optimizer)
                recipe.after_step(progress)
                if self.ema is not None:
                    self.ema.update(recipe.students)
            self.scaler.update()
        self.skipped = 0 if applied else self.skipped + 1
        if self.skipped >= config.max_skipped:
            bad = [name for name, term in terms.items() if not torch.isfinite(term.value)]
            raise FloatingPointError(
                f"{self.skipped} steps in a row had a non-finite loss or gradient; the last at step {self.step}, "
                f"terms {bad or 'all finite'}, gradient norm {float(norm)}, cases {', '.join(batch.cases)}"
            )
        self.seconds += time.perf_counter() - start
        self._write(terms, loss, norm, progress)
        self.step += 1
        return terms

    def call(self, callbacks: Sequence[Callback]) -> None:
        """Call the callbacks on the recipe as it would predict now, and log what they return."""
        if not callbacks:
            return
        if self.quality is None:
            self.quality = CsvLog(self.out / "quality.csv", keep_below=self.step)
        values: dict[str, Any] = {"step": self.step}
        with self._averaged(), torch.no_grad():
            self.recipe.eval()
            for callback in callbacks:
                values.update(callback(self.step, self.recipe) or {})
            self.recipe.train()
        self.quality.write(values)

    def save(self) -> None:
        """Write `checkpoints/last.pt`."""
        save_checkpoint(
            self.last,
            {
                "step": self.step,
                "seconds": self.seconds,
                "stage": self.stage,
                "skipped": self.skipped,
                "config": asdict(self.config),
                "recipe": self.recipe.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "guard": self.guard.state_dict(),
            },
        )

    def close(self) -> None:
        """Close the logs."""
        self.log.close()
        if self.quality is not None:
            self.quality.close()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        return make_optimizer(
            self.recipe.param_groups(),
            name=c.optimizer,
            learning_rate=c.learning_rate,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
        )

    def _load(self) -> None:
        state = load_checkpoint(self.last, map_location=self.device)
        own = asdict(self.config)
        changed = {k: (v, own[k]) for k, v in state["config"].items() if own.get(k) != v and k not in _MAY_CHANGE}
        if changed:
            told = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
            raise ValueError(f"{self.last} was made with other settings: {told}")
        self.recipe.load_state_dict(state["recipe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.guard.load_state_dict(state["guard"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.stage, self.skipped = state["stage"], state["skipped"]

    def _write(self, terms: Terms, loss: torch.Tensor, norm: torch.Tensor, progress: float) -> None:
        row: dict[str, object] = {"step": self.step, "seconds": self.seconds, "rate": self.config.rate(progress)}
        numbers = torch.stack([loss, norm.to(loss.device), *(term.value for term in terms.values())]).detach().tolist()
        row |= dict(zip(["loss", "grad_norm", *terms], numbers, strict=True))
        row |= {f"weight:{name}": term.weight for name, term in terms.items()}
        self.log.write(row)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.ema is None:
            yield
            return
        own = self.recipe.students
        self.recipe.students = cast(nn.ModuleDict, self.ema.module)
        try:
            yield
        finally:
            self.recipe.students = own


_MAY_CHANGE = ("device", "checkpoint_every", "max_skipped", "patience")
