# SPDX-License-Identifier: Apache-2.0
"""Several processes on one training: `torchrun` starts them, `fit` finds them, all of them fail together."""

import atexit
import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another process of this training failed; the message has its error."""


@dataclass(frozen=True)
class World:
    """The processes of a training: this one is `rank` of `size`.

    What is exchanged besides gradients is a few numbers a step, on the CPU. With one process every method returns at
    once what it was given.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def wrap(self, recipe: nn.Module) -> nn.Module:
        """Return a module whose backward pass averages gradients over processes; all start from the first one's."""
        if self.size == 1 or not any(p.requires_grad for p in recipe.parameters()):
            return recipe
        # BatchNorm's statistics are averaged after a step, see `average_`
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        settings: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        return DistributedDataParallel(recipe, **settings)

    def no_sync(self, model: nn.Module, *, when: bool) -> AbstractContextManager[Any]:
        """Context in which gradients add up without being averaged: all micro-steps but the last one."""
        return model.no_sync() if when and isinstance(model, DistributedDataParallel) else nullcontext()

    def least(self, numbers: Sequence[float]) -> list[float]:
        """Smallest value of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return found.tolist()

    def all_true(self, flag: bool) -> bool:
        """Whether it is true in every process."""
        return bool(self.least([float(flag)])[0])

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors by their mean over all processes, in one exchange; the same bits in each."""
        own = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.size == 1 or not own:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in own])
        dist.all_reduce(flat)
        for tensor, mean in zip(own, (flat / self.size).split([tensor.numel() for tensor in own]), strict=True):
            tensor.detach().copy_(mean.view_as(tensor))

    def gather(self, item: T) -> list[T]:
        """Return everybody's item, in the order of ranks."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item)
        return found

    def from_main(self, item: T) -> T:
        """Return the first process's item."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def copy_from_main_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by the first process's."""
        if self.size > 1:
            for tensor in tensors:
                own = tensor.detach().contiguous()
                dist.broadcast(own, src=0)
                tensor.detach().copy_(own)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Context that the other processes enter after the first one left it."""
        if not self.main:
            self.from_main(None)
        yield
        if self.main:
            self.from_main(None)

    def check_same(self, item: object, *, name: str) -> None:
        """Raise ValueError, in every process, unless all have the same item."""
        items = self.gather(item)
        wrong = [rank for rank, other in enumerate(items) if other != items[0]]
        if wrong:
            raise ValueError(f"{name} of rank {wrong[0]} is {items[wrong[0]]}; expected that of rank 0, {items[0]}")

    def check_equal(self, tensors: Iterable[Tensor], *, name: str) -> None:
        """Raise RuntimeError, in every process, unless the tensors add up to the same bits in all."""
        if self.size == 1:
            return
        sums = [float(tensor.detach().double().sum()) for tensor in tensors]
        low = self.least([value for total in sums for value in (total, -total)])
        if any(least != -most for least, most in zip(low[::2], low[1::2])):
            raise RuntimeError(f"{name} differs between processes; what changes it must be the same in all of them")


def join() -> World:
    """Return the processes this one belongs to.

    Without a process group, the environment that `torchrun` leaves makes one: gloo for tensors on the CPU, NCCL for
    those on GPUs, the process's GPU being number `LOCAL_RANK`. A group that exists already is used as it is.
    """
    if not dist.is_available():
        return World()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return World()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
        atexit.register(_leave)
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def together(world: World) -> Iterator[None]:
    """Context in which an error of one process is an error of all: the others raise PeerError with its message.

    The process that fails leaves the group, which ends the exchange that the others wait in.
    """
    number = next(_numbers)
    if world.size == 1:
        yield
        return
    key = f"ssmis/failure/{number}"
    try:
        yield
    except Exception as error:
        told = ""
        with suppress(Exception):  # the store may be gone with the process that failed
            store = dist.distributed_c10d._get_default_store()
            if store.check([key]):
                told = store.get(key).decode(errors="replace")
            else:
                store.set(key, f"rank {world.rank} failed: {type(error).__name__}: {error}")
        _leave()
        if told and not isinstance(error, PeerError):
            raise PeerError(told) from error
        raise


def shard(items: Sequence[T], index: int, total: int) -> list[T]:
    """Return the items of one of `total` shards: each `total`-th from `index` on.

    Every item is in exactly one shard, and shards differ by one item at most. A shard may be empty.

    Raises:
        ValueError: `total` < 1, or `index` outside 0..total-1.

    >>> [shard("abcde", index, 2) for index in range(2)]
    [['a', 'c', 'e'], ['b', 'd']]
    """
    if total < 1 or not 0 <= index < total:
        raise ValueError(f"shard {index} of {total} asked for; expected total >= 1 and 0 <= index < total")
    return list(items[index::total])


def parse_shard(text: str) -> tuple[int, int]:
    """Return index and total from `"i/n"`, i from 0 to n - 1.

    >>> parse_shard("0/4")
    (0, 4)

    Raises:
        ValueError: it is none.
    """
    index, slash, total = text.partition("/")
    if not (slash and index.isascii() and index.isdigit() and total.isascii() and total.isdigit()):
        raise ValueError(f"shard is {text!r}; expected i/n, such as 0/4")
    shard((), int(index), int(total))
    return int(index), int(total)


def _leave() -> None:
    if dist.is_initialized():
        with suppress(Exception):
            dist.destroy_process_group()


_TIMEOUT = timedelta(minutes=30)  # of one exchange; callbacks of the first process run while the others wait
_numbers = count()
