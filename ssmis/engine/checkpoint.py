# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written so that an interrupted write leaves the old file, read without running code from the file."""

import pickle
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
    _check_intact(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds objects that are not loaded for safety: {error}") from error
    except Exception as error:  # the unpickler raises whatever the damage brings about
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of ssmis")
    version, state = content.get("version"), content.get("state")
    if not isinstance(version, int) or not isinstance(state, dict):
        raise CheckpointError(f"{path} has no format version or no state; expected both")
    if version > VERSION:
        raise CheckpointError(f"{path} has format version {version}; this ssmis reads up to {VERSION}")
    return state


def _check_intact(path: Path) -> None:
    """Compare the checksums, which torch writes but does not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
            if packed or sum(part.file_size for part in parts) > path.stat().st_size:  # torch compresses nothing
                raise CheckpointError(f"{path} is no checkpoint: it unpacks to more than there is")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises whatever the damage brings about
        raise CheckpointError(f"{path} is truncated or no checkpoint at all: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")


def _check_storable(value: Any, where: str) -> None:
    """Exact types: `numpy.float64` is a float, saves well and is refused on loading."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
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
