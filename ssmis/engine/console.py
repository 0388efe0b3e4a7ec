# SPDX-License-Identifier: Apache-2.0
"""What a run shares with the person who started it: Ctrl-C and the progress bar."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ssmis._optional import require
from ssmis.recipes.base import Terms


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT into a flag that the yielded function tells; the second raises KeyboardInterrupt."""
    caught: list[int] = []

    def handle(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(caught)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bar(total: int, start: int, *, show: bool) -> Iterator[Callable[[int, Terms], None]]:
    """Show a bar with the sum of each kind of term; yields `update(step, terms)`."""
    if not show:
        yield lambda step, terms: None
        return
    tqdm = require("tqdm", extra="medical", purpose="the progress bar (or progress=False)").tqdm
    with tqdm(total=total, initial=start, unit="step", mininterval=1.0, dynamic_ncols=True) as bar:

        def update(step: int, terms: Terms) -> None:
            if step % 10 == 0 or step == total:
                kinds: dict[str, float] = {}
                for name, term in terms.items():
                    kind = name.split("/")[0]
                    kinds[kind] = kinds.get(kind, 0.0) + float(term.value.detach())
                bar.set_postfix({kind: f"{value:.3f}" for kind, value in kinds.items()}, refresh=False)
            bar.update()

        yield update
