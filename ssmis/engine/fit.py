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
from ssmis.data.cases import Case
from ssmis.data.held_out import HeldOut
from ssmis.data.prefetch import Prefetch
from ssmis.engine.checkpoint import load_checkpoint, save_checkpoint
from ssmis.engine.config import FitConfig
from ssmis.engine.console import interruptible, progress_bar
from ssmis.engine.guard import TermGuard
from ssmis.engine.lock import locked
from ssmis.engine.log import CsvLog
from ssmis.engine.optim import clip_gradients, make_optimizer, set_learning_rate
from ssmis.engine.record import changed_settings
from ssmis.engine.runtime import (
    apply_memory_format,
    environment,
    memory_format_for,
    peak_memory_mb,
    pick_device,
    pick_precision,
    reset_peak_memory,
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
    facts: Mapping[str, Any] | None = None,
    held_out: Sequence[Case] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> FitResult:
    """Train a recipe.

    Writes into `out`: `metrics.csv` (a row a step: loss, terms, weights, learning rate, gradient norm), `quality.csv`
    (what the callbacks return), `protocol.json` (settings, `facts`, nets that predict, versions), `env.json` and
    `checkpoints/last.pt` (everything, atomic). Ctrl-C finishes the step, writes the checkpoint and raises
    KeyboardInterrupt; a second one does not wait for the step.

    Args:
        recipe: the method, on any device.
        batches: step -> `Batch`, a pure function; it is called in a background thread, a few steps ahead.
        config: settings of the run.
        out: run folder.
        resume: continue from `checkpoints/last.pt` if it is there; else a folder that holds one is refused.
        facts: what else the run depends on (case lists, patch, preset), of JSON types; stored, and a resumed run must
            have the same.
        held_out: test cases; while this runs, reading one of them is an error, in callbacks too (see `HeldOut`).
        callbacks: called as `callback(step, recipe)` every `callback_every` steps and at the end, in eval mode and
            with the averaged students if there are any; their numbers go to `quality.csv`.
        progress: show a bar with losses and time left.

    Raises:
        FileExistsError: `out` holds a checkpoint and `resume` is false, or another process trains in `out`.
        ValueError: the checkpoint was made with other settings or facts.
        HeldOutError: something read a case of `held_out`.
        DeadTermError: a term does not train what it should.
        FloatingPointError: `max_skipped` steps in a row had a loss or gradient that was not finite.
    """
    with locked(Path(out)), HeldOut(held_out) as closed:
        run = _Run(recipe, config, Path(out), facts=facts or {}, resume=resume)
        try:
            with interruptible() as interrupted, progress_bar(config.steps, run.step, show=progress) as bar:
                for stage_end in run.stage_ends():
                    run.enter_stage()  # before its batches are made: a stage may change what is sampled
                    with Prefetch(batches, run.step, stage_end) as stream:
                        for batch in stream:
                            closed.check_ids(batch.cases)
                            terms = run.train_step(batch)
                            bar(run.step, terms)
                            if run.step % config.callback_every == 0 or run.step == config.steps:
                                run.call(callbacks)
                            if run.step % config.checkpoint_every == 0 or run.step == config.steps or interrupted():
                                run.save()
                            if interrupted():
                                raise KeyboardInterrupt
        finally:
            run.close()
    if run.ema is not None:
        recipe.students.load_state_dict(run.ema.module.state_dict())
    return FitResult(recipe, run.seconds / 60, run.peak_mb)


class _Run:
    """State of a run between steps."""

    def __init__(self, recipe: Recipe, config: FitConfig, out: Path, *, facts: Mapping[str, Any], resume: bool) -> None:
        self.recipe, self.config, self.out = recipe, config, out
        self.settings = json.loads(json.dumps({"fit": asdict(config), **facts}))  # what the checkpoint can hold
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
        self.step, self.skipped, self.seconds, self.peak_mb, self.stage = 0, 0, 0.0, 0.0, -1
        self.last = out / "checkpoints" / "last.pt"
        if self.last.exists():
            if not resume:
                raise FileExistsError(f"{out} holds a run already; resume it, or choose another folder")
            self._load()
        self.last.parent.mkdir(parents=True, exist_ok=True)
        env = environment()
        record = {**self.settings, "nets": list(recipe.deployed()), "versions": env["packages"]}
        (out / "protocol.json").write_text(json.dumps(record, indent=1))
        (out / "env.json").write_text(json.dumps(env, indent=1))
        self.log = CsvLog(out / "metrics.csv", keep_below=self.step)
        self.quality = CsvLog(out / "quality.csv", keep_below=self.step)
        reset_peak_memory(self.device)
        self.clock = time.perf_counter()

    def stage_ends(self) -> list[int]:
        """Last steps (exclusive) of the stages that are not over yet."""
        shares = [stage.share for stage in self.recipe.stages()]
        if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
            raise ValueError(f"the shares of the stages are {shares}; expected numbers >= 0 that add up to 1")
        ends = [round(sum(shares[: index + 1]) * self.config.steps) for index in range(len(shares))]
        return [end for end in ends if end > self.step]

    def enter_stage(self) -> None:
        """Begin the stage that the next step belongs to, unless it was begun before an interruption."""
        begin = 0.0
        for index, stage in enumerate(self.recipe.stages()):
            begin_step = round(begin * self.config.steps)
            if self.step >= begin_step and index > self.stage:
                self.stage = index
                if stage.reset_optimizer:
                    self.optimizer = self._new_optimizer()
                self.recipe.begin_stage(StageContext(stage, begin_step, self.out))
            begin += stage.share

    def train_step(self, batch: Batch) -> Terms:
        """One optimiser step; a non-finite loss or gradient skips it altogether, BatchNorm's statistics included."""
        config, recipe = self.config, self.recipe.train()
        progress = self.step / config.steps
        buffers = [buffer.clone() for buffer in recipe.students.buffers()]
        seed_everything(batch.key)
        set_learning_rate(self.optimizer, config.rate(progress))
        recipe.begin_step()
        with self.precision.autocast():
            terms: Terms = recipe(batch.to(self.device, self.memory_format), progress)
        self.guard.check(terms, scale=self.scaler.get_scale(), cases=batch.cases)
        loss = terms.total()
        norm = torch.full_like(loss, float("nan"))
        if torch.isfinite(loss):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            norm = clip_gradients(self.optimizer, config.clip_norm)
            if torch.isfinite(norm):
                self.scaler.step(self.optimizer)
            self.scaler.update()
        if torch.isfinite(norm):
            recipe.after_step(progress)
            if self.ema is not None:
                self.ema.update(recipe.students)
            self.skipped = 0
        else:
            for buffer, before in zip(recipe.students.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self._count_skipped(terms, norm, batch)
        self._write(terms, loss, norm, progress)
        self.step += 1
        return terms

    def call(self, callbacks: Sequence[Callback]) -> None:
        """Call the callbacks on the recipe as it would predict now, and log what they return."""
        if not callbacks:
            return
        values: dict[str, Any] = {"step": self.step}
        with self._averaged(), torch.no_grad():
            self.recipe.eval()
            for callback in callbacks:
                values.update(callback(self.step, self.recipe) or {})
        self.quality.write(values)

    def save(self) -> None:
        """Write `checkpoints/last.pt`."""
        self._tick()
        save_checkpoint(
            self.last,
            {
                "step": self.step,
                "seconds": self.seconds,
                "stage": self.stage,
                "skipped": self.skipped,
                "settings": self.settings,
                "peak_mb": self.peak_mb,
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
        if changed := changed_settings(state["settings"], self.settings):
            raise ValueError(f"{self.last} was made with other settings: {changed}")
        self.recipe.load_state_dict(state["recipe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.guard.load_state_dict(state["guard"])
        self.step, self.seconds, self.peak_mb = state["step"], state["seconds"], state["peak_mb"]
        self.stage, self.skipped = state["stage"], state["skipped"]

    def _tick(self) -> None:
        """Add the time since the last call; waiting for batches, callbacks and checkpoints count."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.peak_mb = max(self.peak_mb, peak_memory_mb(self.device))

    def _count_skipped(self, terms: Terms, norm: torch.Tensor, batch: Batch) -> None:
        self.skipped += 1
        if self.skipped >= self.config.max_skipped:
            bad = [name for name, term in terms.items() if not torch.isfinite(term.value)]
            raise FloatingPointError(
                f"{self.skipped} steps in a row had a non-finite loss or gradient; the last at step {self.step}, "
                f"terms {bad or 'all finite'}, gradient norm {float(norm)}, cases {', '.join(batch.cases)}"
            )

    def _write(self, terms: Terms, loss: torch.Tensor, norm: torch.Tensor, progress: float) -> None:
        self._tick()
        row: dict[str, object] = {"step": self.step, "seconds": self.seconds, "rate": self.config.rate(progress)}
        values = {"loss": loss, "grad_norm": norm, **{name: term.value for name, term in terms.items()}, **terms.notes}
        numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()  # one look at the device
        row |= dict(zip(values, numbers, strict=True))
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
