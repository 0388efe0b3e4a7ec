# SPDX-License-Identifier: Apache-2.0
"""The training loop: the only one in the library; a method is a `Recipe`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmis.data.batch import Batch
from ssmis.data.cases import Case
from ssmis.data.held_out import HeldOut
from ssmis.data.prefetch import Prefetch
from ssmis.engine.config import FitConfig
from ssmis.engine.console import interruptible, progress_bar, stopped_by
from ssmis.engine.distributed import join, together
from ssmis.engine.lock import locked
from ssmis.engine.run import Callback, Run
from ssmis.engine.runtime import deterministic, freed_memory_kept
from ssmis.recipes.base import Recipe


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
    """Train a recipe, in this process or in all that `torchrun` started.

    Writes into `out`: `metrics.csv` (a row a step: loss, terms, weights, learning rate, gradient norm, foreground),
    `quality.csv` (what the callbacks return), `events.csv` (steps that were skipped, predictions that collapsed),
    `protocol.json` (settings, `facts`, nets that predict, versions), `env.json` and `checkpoints/last.pt` (everything,
    atomic). SIGINT (Ctrl-C) and SIGTERM finish the step, write the checkpoint and raise KeyboardInterrupt or
    SystemExit(143); a second Ctrl-C does not wait for the step. On a CPU the process keeps the memory that it frees
    while it trains (glibc), which makes steps faster.

    With several processes each takes its part of every batch, gradients and the numbers in the logs are averaged, and
    the first one reads and writes the folder and calls the callbacks; see `docs/scaling.md`.

    Args:
        recipe: the method, on any device.
        batches: step -> `Batch`, a pure function; it is called in a background thread, a few steps ahead. It returns
            the whole batch of the step in every process; of an object with `part(step, index, count)`, as `BatchMaker`
            is, each process asks for its part alone.
        config: settings of the run.
        out: run folder.
        resume: continue from `checkpoints/last.pt` if it is there; else a folder that holds one is refused. The number
            of processes may be another one.
        facts: what else the run depends on (case lists, patch, preset), of JSON types; stored, and a resumed run must
            have the same.
        held_out: test cases; while this runs, reading one of them is an error, in callbacks too (see `HeldOut`).
        callbacks: called as `callback(step, recipe)` every `callback_every` steps and at the end, in eval mode and
            with the averaged students if there are any; their numbers go to `quality.csv`.
        progress: show a bar with losses and time left.

    Raises:
        FileExistsError: `out` holds a checkpoint and `resume` is false, or another process trains in `out`.
        ValueError: the checkpoint was made with other settings, coefficients or facts, or a batch does not divide by
            the processes.
        CheckpointError: the checkpoint cannot be read.
        OSError: the disk is full; the last checkpoint stays, and `resume` continues from it.
        HeldOutError: something read a case of `held_out`.
        DeadTermError: a term does not train what it should.
        FloatingPointError: `max_skipped` steps in a row had a loss or gradient that was not finite, or a step made
            weights that are not.
        PeerError: another process of this training failed.
    """
    world = join()
    with (
        together(world),
        locked(Path(out), when=world.main),
        HeldOut(held_out) as closed,
        deterministic(when=config.deterministic),
        interruptible() as caught,
    ):
        run = Run(recipe, config, Path(out), world, facts=facts or {}, resume=resume)
        try:
            with (
                freed_memory_kept(when=run.device.type == "cpu"),
                progress_bar(config.steps, run.step, show=progress and world.main) as bar,
            ):
                for stage_end in run.stage_ends():
                    run.enter_stage()  # before its batches are made: a stage may change what is sampled
                    with Prefetch(run.parts_of(batches), run.step, stage_end) as stream:
                        for batch in stream:
                            closed.check_ids(batch.cases)
                            terms = run.train_step(batch)
                            bar(run.step, terms)
                            signal = run.agree(batch, caught())
                            if run.step % config.callback_every == 0 or run.step == config.steps:
                                run.call(callbacks)
                            if run.step % config.checkpoint_every == 0 or run.step == config.steps or signal:
                                run.save()
                            if signal:
                                raise stopped_by(signal)
        finally:
            run.close()
    if run.ema is not None:
        recipe.students.load_state_dict(run.ema.module.state_dict())
    return FitResult(recipe, run.seconds / 60, run.peak_mb)
