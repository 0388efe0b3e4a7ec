# SPDX-License-Identifier: Apache-2.0
"""Signs that a training has gone wrong without an error: foreground that vanished, and numbers that are not finite."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ssmis._classes import top_class
from ssmis.data.batch import Batch
from ssmis.engine.runtime import seed_everything
from ssmis.recipes.base import Recipe

NEVER, ALWAYS = 1e-4, 0.99  # shares of foreground at which predictions teach nothing


class ForegroundWatch:
    """Measures the share of foreground in what each student predicts in training, and tells when it has collapsed.

    Of a batch with unlabelled volumes only those count. A single step may well have no foreground in its crops; a net
    counts as collapsed after `patience` steps in a row.

    Args:
        students: name -> net; the first forward pass of a step is looked at.
        patience: steps.
    """

    def __init__(self, students: nn.ModuleDict, *, patience: int = 100) -> None:
        self.patience = patience
        self._labelled = 0
        self._shares: dict[str, Tensor] = {}
        self._streak: dict[str, int] = dict.fromkeys(students, 0)
        self._students = students
        self._hooks: list[RemovableHandle] = []

    def start(self) -> None:
        """Look at the students' forward passes from now on."""
        for name, net in self._students.items():
            self._hooks.append(net.register_forward_hook(partial(self._look, name)))

    def expect(self, batch: Batch) -> None:
        """Tell what the next forward passes see."""
        self._labelled = len(batch.labelled)
        self._shares = {}

    def notes(self) -> dict[str, Tensor]:
        """`foreground/<net>` of the forward passes since `expect`."""
        return {f"foreground/{name}": share for name, share in self._shares.items()}

    def count(self, shares: dict[str, float]) -> list[str]:
        """Count a step, given `foreground/<net>` of all processes; returns a message a net that just collapsed."""
        messages = []
        for name, streak in self._streak.items():
            share = shares.get(f"foreground/{name}")
            if share is None:
                continue
            self._streak[name] = streak + 1 if share < NEVER or share > ALWAYS else 0
            if self._streak[name] == self.patience:
                messages.append(
                    f"predictions of {name} have collapsed: foreground is {100 * share:.3g} % of the voxels, beyond "
                    f"{100 * NEVER:g} or {100 * ALWAYS:g} % for {self.patience} steps"
                )
        return messages

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, int]:
        """Steps in a row, a net."""
        return dict(self._streak)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore `state_dict()`."""
        self._streak |= {name: steps for name, steps in state.items() if name in self._streak}

    def _look(self, name: str, net: nn.Module, _: Any, output: Any) -> None:
        logits = getattr(output, "logits", output)
        if not net.training or name in self._shares or not isinstance(logits, Tensor) or logits.ndim < 3:
            return
        own = logits.detach()
        if len(own) > self._labelled:
            own = own[self._labelled :]
        self._shares[name] = (top_class(own) > 0).float().mean()


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every floating-point tensor is finite throughout: a bool scalar, where the tensors are."""
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return torch.tensor(True)
    # the largest magnitude and no norm: the square of a finite number may overflow
    return torch.stack([norm.float() for norm in torch._foreach_norm(floating, float("inf"))]).isfinite().all()


def blame(recipe: Recipe, batches: Sequence[Batch], progress: float) -> list[str]:
    """Name the terms whose gradient is not finite, by one more forward pass; changes buffers as that does."""
    found: list[str] = []
    trained = [p for p in recipe.students.parameters() if p.requires_grad]
    for batch in batches:
        seed_everything(batch.forward_key)
        for name, term in recipe(batch, progress).items():
            if term.weight <= 0 or not term.value.requires_grad or name in found:
                continue
            grads = torch.autograd.grad(term.value, trained, retain_graph=True, allow_unused=True)
            if not bool(all_finite(grad for grad in grads if grad is not None)):
                found.append(name)
    return found
