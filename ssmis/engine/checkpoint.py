# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written so that an interrupted write leaves the old file, read without running code from the file."""

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssmis.engine.atomic import replace_file

FORMAT = "ssmis.checkpoint"
VERSION = 1
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_DEPTH = 64  # of containers in containers
# what `save_checkpoint` writes asks for these; torch would also make a bytearray of any size
_KNOWN = {
    "collections OrderedDict", "torch Size", "torch device", "torch Tensor", "torch._tensor _rebuild_from_type_v2",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state", "torch.storage UntypedStorage", "_codecs encode",
    *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")),
    *(f"torch {name}" for name, value in vars(torch).items()
      if isinstance(value, torch.dtype) or name.endswith("Storage")),
}  # fmt: skip


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read; the message names the file."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path`: to a temporary file beside it, flushed to disk, then renamed.

    Args:
        path: of the file; its folder must exist.
        state: tensors, numbers, strings, None, and dicts, lists, tuples and sets of them: what can be read back with
            `weights_only=True`.

    Raises:
        ValueError: the state holds another kind of object; the message says where. Nothing is written.
        OSError: the disk is full or cannot be written; an older file stays.
    """
    _check_storable(state, "state")
    content = {"format": FORMAT, "version": VERSION, "state": dict(state)}
    replace_file(Path(path), lambda file: torch.save(content, file))


def load_checkpoint(path: str | Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the state that `save_checkpoint` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated or damaged, holds objects that are not allowed, was not written by
            `save_checkpoint`, or by a newer version of it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    pickled = _check_intact(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds objects that are not loaded for safety: {error}") from error
    except Exception as error:  # the unpickler raises whatever the damage brings about
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    _check_bounded(content, path, nodes=pickled, memory=path.stat().st_size)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of ssmis")
    version, state = content.get("version"), content.get("state")
    if not isinstance(version, int) or not isinstance(state, dict):
        raise CheckpointError(f"{path} has no format version or no state; expected both")
    if version > VERSION:
        raise CheckpointError(f"{path} has format version {version}; this ssmis reads up to {VERSION}")
    return state


def _check_intact(path: Path) -> int:
    """Compare the checksums, which torch writes but does not read; returns the bytes of what is pickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
            if packed or sum(part.file_size for part in parts) > path.stat().st_size:  # torch compresses nothing
                raise CheckpointError(f"{path} is no checkpoint: it unpacks to more than there is")
            damaged = archive.testzip()
            pickled = [archive.read(part) for part in parts if part.filename.endswith(".pkl") and damaged is None]
            if strange := sorted(set().union(*map(_names, pickled)) - _KNOWN):
                raise CheckpointError(f"{path} holds objects that are not loaded for safety: {', '.join(strange)}")
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises whatever the damage brings about
        raise CheckpointError(f"{path} is truncated or no checkpoint at all: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")
    return sum(map(len, pickled))


def _names(pickled: bytes) -> set[str]:
    """What a pickle asks for by name.

    Raises:
        ValueError: a part of it holds another part so often that it has more parts than the pickle has bytes; the
            unpickler would not come to an end when it takes such a tuple as a key.
    """
    names: set[str] = set()
    stack: list[list[int] | None] = []  # numbers of parts, None at a mark
    memo: dict[Any, list[int] | None] = {}
    for code, argument, _ in pickletools.genops(pickled):
        if code.name == "GLOBAL":
            names.add(str(argument))
        if code.name == "MARK":
            stack.append(None)
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            sliced = pickletools.stackslice in code.stack_before
            taken = [1]
            while sliced and (item := stack.pop()) is not None:
                taken += item
            count = code.stack_before.index(pickletools.markobject) if sliced else len(code.stack_before)
            under = [item for item in stack[len(stack) - count :] if item is not None]
            del stack[len(stack) - count :]
            total = sum(taken) + sum(map(sum, under))
            if code.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):  # the lowest one grows
                under[0][0] = total
                stack.append(under[0])
            else:
                stack += [[total] for _ in code.stack_after]
            if total > len(pickled):
                raise ValueError("it unpacks to more than there is")
    return names


def _check_bounded(content: Any, path: Path, *, nodes: int, memory: int) -> None:
    """Refuse what unpacks to more than there is: few bytes of lists in lists, each twice, are more than can be walked,
    and a tensor of one number may claim any shape."""
    level = [content]
    for _ in range(_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, torch.Tensor) and (
                item.layout is not torch.strided or item.numel() * item.element_size() > memory
            ):
                raise CheckpointError(f"{path} is no checkpoint: a tensor of {tuple(item.shape)} is not in it")
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list | tuple | set):
                inner.extend(item)
            if len(inner) > nodes:
                raise CheckpointError(f"{path} is no checkpoint: it unpacks to more than there is")
        if not inner:
            return
        nodes -= len(inner)
        level = inner
    raise CheckpointError(f"{path} is no checkpoint: it is nested more than {_DEPTH} deep")


def _check_storable(value: Any, where: str) -> None:
    """Exact types: `numpy.float64` is a float, saves well and is refused on loading."""
    if type(value) in _PLAIN:
        return
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"{where} is a tensor of layout {value.layout} on {value.device}; expected a dense one")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{where} is an expanded tensor of {tuple(value.shape)}; expected one with its own memory")
        return
    if type(value) in (dict, OrderedDict) or (where == "state" and isinstance(value, Mapping)):
        for key, item in value.items():
            _check_storable(key, f"the key {key!r} of {where}")
            _check_storable(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            _check_storable(item, f"{where}[{index}]")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(
            f"{where} is a {kind}; expected tensors, numbers, strings, None, or dicts, lists, tuples and sets of them"
        )
