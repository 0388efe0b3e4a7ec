# SPDX-License-Identifier: Apache-2.0
"""Several banks that learn once an applied step, from the candidates of all its micro-steps."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from ssmis.memory.bank import Bank
from ssmis.memory.gather import gather_candidates


class Banks(nn.ModuleDict):
    """Banks by name, one a net, say, or one a net and level; what they are told waits until the step was applied.

    `begin_step` and `write` are called by the methods `begin_step` and `after_step` of a recipe, `ask` in its forward
    pass. With several processes `write` gathers, so that banks have the same bits in each; all must ask the same banks.

    Args:
        banks: name -> bank.
    """

    def __init__(self, banks: Mapping[str, Bank] | None = None) -> None:
        super().__init__()
        self._waiting: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._ready: set[str] = set()
        self.update(banks or {})

    def begin_step(self) -> None:
        """Forget the candidates of a step that was skipped."""
        self._waiting = {}

    def find_ready(self) -> None:
        """Look at the device for banks that became ready; what is ready stays so, and is not looked at again."""
        self._ready |= {name for name in self if name not in self._ready and self.bank(name).ready}

    def ready(self, name: str) -> bool:
        """Whether two classes had a key in that bank at the last `find_ready`, as a contrast needs."""
        return name in self._ready

    def ask(self, name: str, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `(M, E)` and labels `(M,)` of a bank; the candidates `(N, E)` and `(N,)` wait for `write`.

        Raises:
            KeyError: there is no bank of that name.
            ValueError: candidates that do not fit the bank.

        Gradient: none into the candidates that wait.
        """
        found: tuple[Tensor, Tensor] = self[name](vectors, labels)
        self._waiting.setdefault(name, []).append((vectors.detach(), labels))
        return found

    def write(self) -> None:
        """Write the candidates of all micro-steps and processes."""
        for name in self:  # in this order in every process
            if parts := self._waiting.get(name):
                self.bank(name).write(*gather_candidates(parts))
        self._waiting = {}

    def bank(self, name: str) -> Bank:
        """One of them."""
        return cast(Bank, self[name])

    def __setitem__(self, name: str, bank: nn.Module) -> None:
        super().__setitem__(name, bank)
        self._forget(name)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._forget(name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name in self:
            self._forget(name)

    def _forget(self, name: str) -> None:
        # what was known of a bank that is another one now
        self._waiting.pop(name, None)
        self._ready.discard(name)
