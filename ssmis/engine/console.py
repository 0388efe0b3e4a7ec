# SPDX-License-Identifier: Apache-2.0
"""What a run shares with the person who started it: Ctrl-C and the progress bar."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ssmis._optional import require
from ssmis.recipes.base import Terms


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Turn SIGINT and SIGTERM into a number that the yielded function tells, 0 until one came.

    A second SIGINT raises KeyboardInterrupt, unless it comes within a second: `torchrun` passes on the Ctrl-C that
    the terminal sends to its processes too.
    """
    caught: list[tuple[int, float]] = []

    def handle(number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and caught and now - caught[-1][1] > 1.0:
            raise KeyboardInterrupt
        caught.append((number, now))

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0][0] if caught else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(number: int) -> BaseException:
    """What a signal raises once the checkpoint is written: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
    return SystemExit(128 + number) if number == signal.SIGTERM else KeyboardInterrupt()


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
