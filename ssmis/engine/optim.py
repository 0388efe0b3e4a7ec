# SPDX-License-Identifier: Apache-2.0
"""The optimiser and its learning-rate schedule, from settings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssmis import schedules
from ssmis._checks import check_choice

Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda progress: schedules.constant(progress, 1.0),
    "cosine": schedules.cosine_decay,
    "polynomial": schedules.polynomial_decay,
    # a factor of ten after 2500 and 5000 of 6000 steps, the dual-network authors' public code
    "step": lambda progress: schedules.step_decay(progress, milestones=(2500 / 6000, 5000 / 6000)),
}


def make_optimizer(
    groups: list[dict[str, Any]], *, name: str, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build the one optimiser of a run.

    Args:
        groups: `Recipe.param_groups()`; a group with `is_flat` (norms and biases) gets no decay under AdamW, and a
            group's `lr_scale` multiplies its learning rate. `weight_decay` in a group takes precedence.
        name: "sgd" (with Nesterov-free momentum) or "adamw".
        learning_rate: base rate.
        momentum: of SGD; beta_1 of AdamW.
        weight_decay: L2 penalty of SGD, decoupled decay of AdamW.
    """
    check_choice(name, ("sgd", "adamw"), name="optimizer")
    prepared = []
    for group in groups:
        own = dict(group)
        flat = own.pop("is_flat", False)
        own.setdefault("lr_scale", 1.0)
        if name == "adamw" and flat:
            own.setdefault("weight_decay", 0.0)
        prepared.append(own)
    if name == "sgd":
        return torch.optim.SGD(prepared, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True)
    return torch.optim.AdamW(prepared, lr=learning_rate, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate to `rate` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def clip_gradients(optimizer: torch.optim.Optimizer, clip_norm: float | None) -> Tensor:
    """Clip the gradient norm over the groups of each `name`, to a group's own `clip_norm` or else to `clip_norm`.

    Returns:
        The largest of these norms before clipping; not finite if any gradient is not.
    """
    named: dict[str, list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        named.setdefault(group.get("name", ""), []).append(group)
    norms = []
    for groups in named.values():
        limits = [limit for group in groups if (limit := group.get("clip_norm", clip_norm)) is not None]
        trained = [p for group in groups for p in group["params"] if p.grad is not None]
        if trained:  # the norm of nothing would be on the CPU, wherever the others are
            norms.append(torch.nn.utils.clip_grad_norm_(trained, min(limits, default=float("inf"))))
    return torch.stack(norms).max() if norms else torch.zeros(())
