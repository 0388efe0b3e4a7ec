# SPDX-License-Identifier: Apache-2.0
"""Checks that every term of a loss trains what it says it trains; published code fails there, unnoticed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssmis.recipes.base import Term, Terms


class DeadTermError(RuntimeError):
    """A term is not finite, not connected to a student it must train, or gave no gradient for too long."""


def reached_parameters(value: Tensor) -> set[int]:
    """Return `id`s of the leaf tensors that the autograd graph of `value` ends in."""
    leaves: set[int] = set()
    seen: set[object] = set()
    open_nodes = [value.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        open_nodes.extend(parent for parent, _ in node.next_functions)
    return leaves


class TermGuard:
    """Watches the terms of a run; call `check` on each step's terms before backward.

    At the first step with weight > 0 a term must be finite and connected to every student it names. Then its gradient
    is measured until it was non-zero once for each of them; a term whose gradient is still zero after `patience` such
    steps stops the run. Measuring costs one backward pass of the term, as a rule once a run; while the term is exactly
    zero (an empty mask or bank) it is measured at ever longer intervals only.

    Args:
        students: name -> net.
        patience: steps with weight > 0 a term may stay without gradient (an empty mask or bank is legal for a while).
    """

    def __init__(self, students: nn.ModuleDict, *, patience: int = 200) -> None:
        self.students = students
        self.patience = patience
        self._steps: dict[str, int] = {}
        self._unproven: dict[str, set[str]] = {}

    def check(self, terms: Terms, *, scale: float = 1.0, cases: Sequence[str] = ()) -> None:
        """Raise DeadTermError if a term is dead.

        Args:
            terms: of this step.
            scale: the loss scale, without which float16 underflows.
            cases: of this step's batch, for the message.
        """
        for name, term in terms.items():
            if term.weight <= 0:
                continue
            if name not in self._steps:
                self._check_first(name, term, cases)
                self._steps[name] = 0
                self._unproven[name] = set(term.reaches)
            if not self._unproven[name]:
                continue
            self._steps[name] += 1
            count = self._steps[name]
            if bool(term.value.detach() != 0) or count & (count - 1) == 0:  # 1, 2, 4, 8, ... steps
                self._unproven[name] -= {s for s in self._unproven[name] if self._has_gradient(term, s, scale)}
            if self._unproven[name] and count >= self.patience:
                raise DeadTermError(
                    f"term {name!r} gave {', '.join(sorted(self._unproven[name]))} no gradient in {count} steps "
                    "with weight > 0; it does not train what it should"
                )

    def state_dict(self) -> dict[str, Any]:
        """Steps seen and students not yet reached, a term."""
        return {"steps": dict(self._steps), "unproven": {name: sorted(s) for name, s in self._unproven.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._steps = {name: int(steps) for name, steps in state["steps"].items()}
        self._unproven = {name: set(state["unproven"][name]) for name in self._steps}

    def _parameters(self, student: str) -> list[nn.Parameter]:
        return [p for p in self.students[student].parameters() if p.requires_grad]

    def _check_first(self, name: str, term: Term, cases: Sequence[str]) -> None:
        unknown = set(term.reaches) - set(self.students)
        if unknown:
            raise DeadTermError(f"term {name!r} reaches {sorted(unknown)}; the students are {list(self.students)}")
        if not torch.isfinite(term.value):
            raise DeadTermError(
                f"term {name!r} is {float(term.value.detach())} at its first step; expected a finite number "
                f"(cases {', '.join(cases) or 'not named'})"
            )
        leaves = reached_parameters(term.value)
        for student in term.reaches:
            if not any(id(p) in leaves for p in self._parameters(student)):
                raise DeadTermError(
                    f"term {name!r} must train {student!r} but has no path to its parameters "
                    "(detached, computed without gradient, or a constant)"
                )

    def _has_gradient(self, term: Term, student: str, scale: float) -> bool:
        value = term.value * scale
        grads = torch.autograd.grad(value, self._parameters(student), retain_graph=True, allow_unused=True)
        return any(bool(((g != 0) & g.isfinite()).any()) for g in grads if g is not None)
