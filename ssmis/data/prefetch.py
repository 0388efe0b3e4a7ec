# SPDX-License-Identifier: Apache-2.0
"""Make the next batches in a background thread while the current one is trained on."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

_Item = tuple[str, Any]


class Prefetch(Iterator[T], Generic[T]):
    """Iterate over `maker(start), ..., maker(stop - 1)`, made ahead of time; at most two wait at once.

    An error in `maker` is raised where its batch would have come. The thread ends with the last batch, with
    `close()`, on leaving a `with` block for whatever reason, and when the iterator is dropped.

    Args:
        maker: step -> batch.
        start: first step.
        stop: one past the last step.
    """

    def __init__(self, maker: Callable[[int], T], start: int, stop: int) -> None:
        self._queue: queue.Queue[_Item] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        # The thread holds no reference to self, so that dropping the iterator ends it.
        self._thread = threading.Thread(
            target=_produce, args=(maker, start, stop, self._queue, self._stopped), name="ssmis-prefetch", daemon=True
        )
        self._thread.start()

    def __next__(self) -> T:
        if self._stopped.is_set():
            raise StopIteration
        kind, item = self._queue.get()
        if kind == "batch":
            return item
        self.close()
        if isinstance(
            item, StopIteration
        ):  # of an iterator inside of `maker`: it would end the loop as if all was done
            raise RuntimeError("the batches ended too early: making one raised StopIteration") from item
        if kind == "error":
            raise item
        raise StopIteration

    def close(self) -> None:
        """End the thread, after the batch it is making; the iterator is exhausted then. May be called twice."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._stopped.set()


def _produce(
    maker: Callable[[int], Any], start: int, stop: int, out: "queue.Queue[_Item]", stopped: threading.Event
) -> None:
    def put(item: _Item) -> None:
        while not stopped.is_set():
            try:
                return out.put(item, timeout=0.05)
            except queue.Full:
                continue

    # a second pool of workers would halve the speed of small nets on a CPU; threads that exist keep their number
    torch.set_num_threads(1)
    try:
        for step in range(start, stop):
            if stopped.is_set():
                return
            put(("batch", maker(step)))
        put(("end", None))
    except BaseException as error:  # KeyboardInterrupt and SystemExit of the maker belong to the consumer too
        put(("error", error))
