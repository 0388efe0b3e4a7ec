# SPDX-License-Identifier: Apache-2.0
"""A teacher whose weights are a moving average of its student's."""

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from ssmis._checks import check_range


class EMA(nn.Module):
    r"""A frozen copy of a module, updated as $\theta \leftarrow d_n \theta + (1 - d_n) \theta^{student}$.

    With warm-up $d_n = \min(d, (1 + n) / (10 + n))$ at update n = 0, 1, ..., so that the random start is soon
    forgotten. Parameters and floating-point buffers (BatchNorm's statistics) are averaged, other buffers are copied.
    The copy always stays in eval mode and takes no gradient.

    Args:
        module: the student; it is copied, not kept.
        decay: d in [0, 1].
        warmup: start with a smaller decay.

    Raises:
        ValueError: `decay` is out of range.

    Paper: Tarvainen & Valpola, "Mean teachers", NeurIPS 2017, arXiv 1703.01780. Differs from the paper: buffers are
        averaged too, since the teacher runs in eval mode.
    """

    steps: Tensor

    def __init__(self, module: nn.Module, *, decay: float = 0.99, warmup: bool = True) -> None:
        super().__init__()
        check_range(decay, 0.0, 1.0, name="decay")
        self.decay = decay
        self.warmup = warmup
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._steps = 0  # the same number on the host, so that an update does not wait for the device
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the module around it is switched to."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged module."""
        return self.module(*args, **kwargs)

    def decay_at(self, step: int) -> float:
        """Return the decay of update number `step`, from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, source: nn.Module, progress_step: int | None = None) -> None:
        """Move towards `source`.

        Args:
            source: a module with the parameters and buffers of the copied one.
            progress_step: number of this update for the warm-up; default: updates so far.

        Raises:
            ValueError: `source` has other parameters or buffers.
        """
        own, new = _state(self.module), _state(source)
        _check_match(own, new)
        averages = [tensor for tensor in own.values() if tensor.is_floating_point()]
        sources = [new[name].to(tensor) for name, tensor in own.items() if tensor.is_floating_point()]
        step = self._steps if progress_step is None else progress_step
        if averages:
            torch._foreach_lerp_(averages, sources, 1.0 - self.decay_at(step))
        for name, tensor in own.items():
            if not tensor.is_floating_point():
                tensor.copy_(new[name])
        self._steps = step + 1
        self.steps.fill_(self._steps)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._steps = int(self.steps)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check_match(own: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    if own.keys() != new.keys():
        missing, extra = sorted(own.keys() - new.keys())[:3], sorted(new.keys() - own.keys())[:3]
        raise ValueError(f"source does not match the averaged module: it lacks {missing} and has {extra} instead")
    for name, tensor in own.items():
        if tensor.shape != new[name].shape:
            raise ValueError(
                f"source does not match the averaged module: {name} has shape {tuple(new[name].shape)}; "
                f"expected {tuple(tensor.shape)}"
            )
