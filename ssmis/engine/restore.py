# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint must hold before a training goes on from it: sound kinds, shapes and layouts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssmis.engine.checkpoint import CheckpointError

_KINDS: dict[str, type | tuple[type, ...]] = {
    "step": int, "seconds": (int, float), "stage": int, "skipped": int, "settings": dict, "peak_mb": (int, float),
    "recipe": dict, "optimizer": dict, "scaler": dict, "ema": (dict, type(None)), "guard": dict,
}  # fmt: skip
_MOMENTS = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def check_state(state: Mapping[str, Any], source: Path) -> None:
    """Raise CheckpointError, naming `source`, unless `state` has the entries of a training, each of its kind."""
    if missing := set(_KINDS) - set(state):
        raise CheckpointError(f"{source} is not a checkpoint of fit: it lacks {', '.join(sorted(missing))}")
    for name, kind in _KINDS.items():
        if not isinstance(state[name], kind):
            raise CheckpointError(f"{source} is not a checkpoint of fit: {name} is a {type(state[name]).__name__}")
    for name, least in (("step", 0), ("stage", -1), ("skipped", 0), ("seconds", 0), ("peak_mb", -math.inf)):
        if state[name] < least:
            raise CheckpointError(f"{source} is not a checkpoint of fit: {name} is {state[name]}")


@contextmanager
def restoring(source: Path) -> Iterator[None]:
    """Context in which what does not fit the training is a CheckpointError that names `source`."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        told = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{source} does not fit this recipe and its settings: {told}") from error


def load_counts(saved: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return numbers of steps; ValueError if they are none."""
    if not isinstance(saved, Mapping) or any(type(value) is not int or value < 0 for value in saved.values()):
        raise ValueError(f"{name} holds other than numbers of steps")
    return dict(saved)


def frozen_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that take no gradient, as a stage may have decided."""
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def freeze_parameters(module: nn.Module, names: Sequence[str]) -> None:
    """Let these parameters take no gradient, and all others one; ValueError if there are none of a name."""
    if unknown := sorted(set(names) - {name for name, _ in module.named_parameters()}):
        raise ValueError(f"it froze parameters that are not there: {', '.join(unknown[:3])}")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in names)


def check_as_made(saved: Sequence[str], now: Sequence[str]) -> None:
    """ValueError if the caller made the recipe with other frozen parameters; what a stage froze is another matter."""
    if other := sorted(set(saved) ^ set(now)):
        told = f"{len(saved)} and has {len(now)}, {other[0]} among those that differ"
        raise ValueError(f"the recipe was made with other frozen parameters: it had {told}")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load moments into an optimiser of `make_optimizer`, each in the shape and layout of its parameter.

    `torch` checks neither, and its fused steps write beyond a moment that is smaller than the parameter. Settings of
    the groups stay as they are.

    Raises:
        ValueError: the state is that of other parameters or settings.
    """
    own = optimizer.state_dict()["param_groups"]
    groups = saved["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in own]:
        raise ValueError("the optimiser has other groups of parameters")
    for group, now in zip(groups, own):
        for name in (set(group) & set(now)) - {"lr"}:
            if group[name] != now[name]:
                raise ValueError(f"{name} of a group of parameters was {group[name]} and is {now[name]}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = _MOMENTS[type(optimizer)]
    found: dict[int, dict[str, torch.Tensor | None]] = {}
    for index, state in saved["state"].items():
        if set(state) != moments or not 0 <= index < len(parameters):
            raise ValueError(f"the optimiser's state of parameter {index} has {sorted(map(str, state))}")
        found[index] = {name: _like(parameters[index], name, value) for name, value in state.items()}
    optimizer.load_state_dict({"state": found, "param_groups": own})


def _like(parameter: torch.Tensor, name: str, value: Any) -> torch.Tensor | None:
    if value is None:
        return None
    shape = torch.Size() if name == "step" else parameter.shape
    if not isinstance(value, torch.Tensor) or value.shape != shape or not value.is_floating_point():
        told = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{name} of the optimiser is {told}; expected shape {tuple(shape)}")
    if name == "step":
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
