# SPDX-License-Identifier: Apache-2.0
"""The state of a training between steps, and what one step does."""

import json
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssmis.data.batch import Batch
from ssmis.engine.config import FitConfig
from ssmis.engine.distributed import World
from ssmis.engine.folder import RunFolder, check_settings
from ssmis.engine.guard import TermGuard
from ssmis.engine.health import ForegroundWatch, all_finite, blame
from ssmis.engine.optim import clip_gradients, make_optimizer, set_learning_rate
from ssmis.engine.record import method_of
from ssmis.engine.restore import (
    check_as_made,
    freeze_parameters,
    frozen_parameters,
    load_counts,
    load_optimizer,
    restoring,
)
from ssmis.engine.runtime import (
    apply_memory_format,
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


class Run:
    """A training; `fit` says what happens when.

    Args:
        recipe: the method.
        config: settings.
        out: run folder, locked by the caller.
        world: the processes that train together.
        facts: what else the run depends on.
        resume: continue from the checkpoint in `out`, if there is one.
    """

    def __init__(
        self, recipe: Recipe, config: FitConfig, out: Path, world: World, *, facts: Mapping[str, Any], resume: bool
    ) -> None:
        self.recipe, self.config, self.world = recipe, config, world
        self.settings = json.loads(json.dumps({"fit": asdict(config), "method": method_of(recipe), **facts}))
        world.check_same(self.settings, name="the settings and facts")
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        self.memory_format = torch.contiguous_format
        if config.memory_format == "auto":
            self.memory_format = memory_format_for(recipe)
        apply_memory_format(recipe.to(self.device), self.memory_format)
        world.copy_from_main_(recipe.state_dict().values())
        self.model: nn.Module = recipe
        self._is_part = False
        self.made_frozen = frozen_parameters(recipe)
        self.optimizer = self._new_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaler)
        self.ema = None if config.ema_decay is None else EMA(recipe.students, decay=config.ema_decay)
        self.guard = TermGuard(recipe.students, patience=config.patience)
        self.watch = ForegroundWatch(recipe.students)
        self.step, self.skipped, self.seconds, self.peak_mb, self.stage = 0, 0, 0.0, 0.0, -1
        self.folder = RunFolder(out, writes=world.main)
        self._load(world.from_main(self.folder.load(resume=resume)))
        self.folder.open(self.settings, list(recipe.deployed()), step=self.step, steps=config.steps)
        self.watch.start()
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
                with self.world.main_first():
                    self.recipe.begin_stage(StageContext(stage, begin_step, self.folder.out))
            begin += stage.share
        self.model = self.world.wrap(self.recipe)  # anew: a stage may freeze nets

    def parts_of(self, batches: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """Return step -> what this process trains on: made alone if `batches` can do that, else cut from the whole."""
        make = getattr(batches, "part", None)
        self._is_part = make is not None and self.world.size > 1
        if make is None or not self._is_part:
            return batches
        self.world.check_same(getattr(batches, "decides", None), name="what the batches follow from")
        return partial(make, index=self.world.rank, count=self.world.size)

    def train_step(self, batch: Batch) -> Terms:
        """One optimiser step; what is not finite skips it altogether, BatchNorm's statistics included."""
        config, recipe, world = self.config, self.recipe, self.world
        count, progress = config.accumulate, self.step / config.steps
        own = batch if self._is_part else batch.part(world.rank, world.size)
        parts = [own.part(index, count).to(self.device, self.memory_format) for index in range(count)]
        self.model.train()
        buffers = [buffer.clone() for buffer in recipe.students.buffers()]
        set_learning_rate(self.optimizer, config.rate(progress))
        self.optimizer.zero_grad(set_to_none=True)
        recipe.begin_step()
        seen: list[Terms] = []
        finite, where = True, "loss"
        for index, part in enumerate(parts):
            with world.no_sync(self.model, when=index < count - 1):
                seen.append(self._forward(part, progress))
                if index == 0:
                    self.guard.check(seen[0], scale=self.scaler.get_scale(), cases=part.cases)
                loss = seen[-1].total()
                finite = world.all_true(bool(loss.isfinite() & all_finite(recipe.students.buffers())))
                if not finite:
                    where += " or BatchNorm statistics" if bool(loss.isfinite()) else ""
                    break
                self.scaler.scale(loss / count).backward()
        norm = torch.full((), float("nan"), device=self.device)
        if finite:
            where = "gradient"
            self.scaler.unscale_(self.optimizer)
            norm = clip_gradients(self.optimizer, config.clip_norm)
            finite = bool(norm.isfinite())
            if finite:
                self.scaler.step(self.optimizer)
            self.scaler.update()
        if finite:
            self._after_step(batch, progress)
        else:
            bad = self._terms_at_fault(seen, parts, where, progress)
            for buffer, before in zip(recipe.students.buffers(), buffers, strict=True):
                buffer.copy_(before)
            recipe.begin_step()
            self._count_skipped(bad, where, norm, parts[len(seen) - 1].cases)
        self._write(seen, norm, progress)
        self.step += 1
        return seen[-1]

    def agree(self, batch: Batch, signal: int) -> int:
        """Return the signal that ends the run, 0 if none: what any process caught.

        Raises:
            ValueError: the processes were given different batches.
        """
        if self.world.size == 1:
            return signal
        digest = 0.0 if self._is_part else float(zlib.crc32(repr((batch.cases, batch.key)).encode()))
        low, high, caught = self.world.least([digest, -digest, -float(signal)])
        if low != -high:
            raise ValueError(
                f"the processes made different batches for step {self.step - 1}, this one of {batch.cases}; expected "
                "the whole batch of the step, the same in every process"
            )
        return int(-caught)

    def call(self, callbacks: Sequence[Callback]) -> None:
        """Call the callbacks on the recipe as it would predict now, and log what they return."""
        if not callbacks or not self.world.main:
            return
        values: dict[str, Any] = {"step": self.step}
        with self._averaged(), torch.no_grad():
            self.recipe.eval()
            for callback in callbacks:
                values.update(callback(self.step, self.recipe) or {})
        self.folder.log("quality", values)

    def save(self) -> None:
        """Write `checkpoints/last.pt`, if all processes have the same weights."""
        self._tick()
        self.world.check_equal(
            self.recipe.state_dict().values(), name=f"the state of the recipe after step {self.step}"
        )
        plain = ("step", "seconds", "stage", "skipped", "settings", "peak_mb", "left_out", "made_frozen")
        parts = ("recipe", "optimizer", "scaler", "guard", "watch")
        state = {name: getattr(self, name) for name in plain}
        state |= {name: getattr(self, name).state_dict() for name in parts}
        ema = None if self.ema is None else self.ema.state_dict()
        self.folder.save({**state, "ema": ema, "frozen": frozen_parameters(self.recipe)})

    def close(self) -> None:
        """Close the logs and look at the nets no more."""
        self.folder.close()
        self.watch.close()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        c, self.left_out = self.config, frozen_parameters(self.recipe)
        return make_optimizer(
            self.recipe.param_groups(),
            name=c.optimizer,
            learning_rate=c.learning_rate,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
        )

    def _load(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            return
        check_settings(state["settings"], self.settings, self.folder.last)
        with restoring(self.folder.last):
            self.recipe.load_state_dict(state["recipe"])
            if "frozen" in state:  # a checkpoint of before does not tell
                check_as_made(state["made_frozen"], self.made_frozen)
                freeze_parameters(self.recipe, state["left_out"])
                self.optimizer = self._new_optimizer()
                freeze_parameters(self.recipe, state["frozen"])
            load_optimizer(self.optimizer, state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.guard.load_state_dict(state["guard"])
            self.watch.load_state_dict(load_counts(state.get("watch", {}), "watch"))
            if state["step"] > self.config.steps:
                raise ValueError(f"it is of step {state['step']}; the run has {self.config.steps}")
        self.step, self.seconds, self.peak_mb = state["step"], state["seconds"], state["peak_mb"]
        self.stage, self.skipped = state["stage"], state["skipped"]

    def _forward(self, part: Batch, progress: float) -> Terms:
        seed_everything(part.forward_key)
        self.watch.expect(part)
        with self.precision.autocast():
            terms: Terms = self.model(part, progress)
        terms.notes.update(self.watch.notes())
        return terms

    def _after_step(self, batch: Batch, progress: float) -> None:
        """Let teachers, banks and averages learn from a step that was applied."""
        if not all_finite(self.recipe.students.parameters()):
            raise FloatingPointError(
                f"step {self.step} made weights that are not finite, from finite gradients, at learning rate "
                f"{self.config.rate(progress):g}, cases {', '.join(batch.cases)}; the checkpoint before it stays"
            )
        self.world.average_(self.recipe.students.buffers())
        self.recipe.after_step(progress)
        if self.ema is not None:
            self.ema.update(self.recipe.students)
        self.skipped = 0

    def _terms_at_fault(self, seen: Sequence[Terms], parts: Sequence[Batch], where: str, progress: float) -> list[str]:
        """Names of this process's terms whose value, or else gradient, is not finite."""
        bad = [name for name, term in seen[-1].items() if not term.value.isfinite()]
        if where == "gradient" and not bad and not self.scaler.is_enabled():  # a scaled gradient may overflow any time
            with self.precision.autocast():
                bad = blame(self.recipe, parts, progress)
        return bad

    def _count_skipped(self, bad: list[str], where: str, norm: Tensor, cases: Sequence[str]) -> None:
        self.skipped += 1
        found = self.world.gather((bad, list(cases)))
        found = [(terms, own) for terms, own in found if terms] or found
        names = list(dict.fromkeys(name for terms, _ in found for name in terms))
        told = ", ".join(case for _, own in found for case in own)
        message = f"non-finite {where}, terms {names or 'all finite'}, cases {told}"
        self.folder.log("events", {"step": self.step, "kind": "skipped", "message": message})
        if self.skipped >= self.config.max_skipped:
            raise FloatingPointError(
                f"{self.skipped} steps in a row had a non-finite loss or gradient; the last at step {self.step}, "
                f"terms {names or 'all finite'}, gradient norm {float(norm)}, cases {told}"
            )

    def _write(self, seen: Sequence[Terms], norm: Tensor, progress: float) -> None:
        """Log the step: means over micro-steps and processes."""
        self._tick()
        rows = [
            {"loss": terms.total(), **{name: term.value for name, term in terms.items()}, **terms.notes}
            for terms in seen
        ]
        stacked = torch.stack([torch.stack([row[name].detach().float() for name in rows[0]]) for row in rows]).mean(0)
        self.world.average_([stacked])
        loss, *others = torch.cat([stacked, norm.detach().float()[None]]).tolist()  # one look at the device
        numbers = {"loss": loss, "grad_norm": others.pop(), **dict(zip(list(rows[0])[1:], others, strict=True))}
        row: dict[str, object] = {"step": self.step, "seconds": self.seconds, "peak_mb": self.peak_mb}
        row |= {"rate": self.config.rate(progress), **numbers}
        row |= {f"weight:{name}": term.weight for name, term in seen[0].items()}
        self.folder.log("metrics", row)
        for message in self.watch.count(numbers):
            self.folder.log("events", {"step": self.step, "kind": "collapse", "message": message})
            if self.world.main:
                warnings.warn(f"step {self.step}: {message}", RuntimeWarning, stacklevel=4)

    def _tick(self) -> None:
        """Add the time since the last call; waiting for batches, callbacks and checkpoints count."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.peak_mb = max(self.peak_mb, peak_memory_mb(self.device))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        own = self.recipe.students
        self.recipe.students = own if self.ema is None else cast(nn.ModuleDict, self.ema.module)
        try:
            yield
        finally:
            self.recipe.students = own
