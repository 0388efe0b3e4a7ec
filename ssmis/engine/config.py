# SPDX-License-Identifier: Apache-2.0
"""Settings of a training run."""

import math
from dataclasses import dataclass

from ssmis._checks import check_choice, check_range
from ssmis.engine.optim import SCHEDULES
from ssmis.schedules import warmup


@dataclass(frozen=True)
class FitConfig:
    """How a run is done; the defaults are the public code's of the dual-network authors.

    Attributes:
        steps: optimiser steps of the run.
        optimizer: "sgd" or "adamw".
        learning_rate: base rate.
        momentum: of SGD; beta_1 of AdamW.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW; none on norms and biases).
        schedule: shape of the rate over the run: "step", "polynomial", "cosine" or "constant".
        warmup: share of the run over which the rate rises linearly from 0.
        clip_norm: largest gradient norm; None clips nothing.
        ema_decay: decay of an average of the students' weights that predicts in their place; None is off.
        precision: "auto", "fp32", "bf16" or "fp16".
        memory_format: "auto" (channels-last where it is faster, see `memory_format_for`) or "contiguous".
        device: "auto", or a torch device.
        seed: of the run; a step's random numbers derive from (seed, step).
        checkpoint_every: steps between checkpoints.
        callback_every: steps between calls of the callbacks.
        patience: steps a term may stay without gradient.
        max_skipped: non-finite steps in a row that stop the run; the ones before are skipped, 1 skips none.
        accumulate: micro-steps into which each process splits its part of a batch, to save memory; gradients add up.
        deterministic: only algorithms that give the same bits each time; an operation without one is an error.
    """

    steps: int = 6000
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    warmup: float = 0.0
    clip_norm: float | None = None
    ema_decay: float | None = None
    precision: str = "auto"
    memory_format: str = "auto"
    device: str = "auto"
    seed: int = 0
    checkpoint_every: int = 200
    callback_every: int = 100
    patience: int = 200
    max_skipped: int = 10
    accumulate: int = 1
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot run."""
        check_choice(self.schedule, tuple(SCHEDULES), name="schedule")
        check_choice(self.memory_format, ("auto", "contiguous"), name="memory_format")
        for name in ("steps", "checkpoint_every", "callback_every", "patience", "max_skipped", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        check_range(self.learning_rate, 0.0, math.inf, name="learning_rate")
        check_range(self.weight_decay, 0.0, math.inf, name="weight_decay")
        check_range(self.warmup, 0.0, 1.0, name="warmup")
        if self.clip_norm is not None:
            check_range(self.clip_norm, 0.0, math.inf, name="clip_norm", open_low=True)
        if self.ema_decay is not None:
            check_range(self.ema_decay, 0.0, 1.0, name="ema_decay")

    def rate(self, progress: float) -> float:
        """Learning rate at `progress`."""
        return self.learning_rate * warmup(progress, share=self.warmup) * SCHEDULES[self.schedule](progress)
