# SPDX-License-Identifier: Apache-2.0
"""What a run leaves on disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmis.engine.atomic import remove_leftovers, replace_text
from ssmis.engine.checkpoint import load_checkpoint, save_checkpoint
from ssmis.engine.lock import check_held
from ssmis.engine.log import CsvLog
from ssmis.engine.record import changed_settings
from ssmis.engine.restore import check_state
from ssmis.engine.runtime import environment


class RunFolder:
    """The files of a run: `checkpoints/last.pt`, `metrics.csv`, `quality.csv`, `events.csv`, `protocol.json`,
    `env.json`; with `writes=False`, as in every process but the first, none of them is touched.

    Args:
        out: the folder, locked by the caller.
        writes: whether this process writes.
    """

    def __init__(self, out: Path, *, writes: bool = True) -> None:
        self.out = out
        self.writes = writes
        self.last = out / "checkpoints" / "last.pt"
        self._logs: dict[str, CsvLog] = {}

    def load(self, *, resume: bool) -> dict[str, Any] | None:
        """Return the state of the checkpoint, on the CPU; None if there is none.

        Raises:
            FileExistsError: there is one, and `resume` is false.
            CheckpointError: it cannot be read, or is not one of `fit`.
        """
        if not self.writes or not self.last.exists():
            return None
        if not resume:
            raise FileExistsError(f"{self.out} holds a run already; resume it, or choose another folder")
        state = load_checkpoint(self.last)
        check_state(state, self.last)
        return state

    def open(self, settings: Mapping[str, Any], nets: Sequence[str], *, step: int, steps: int) -> None:
        """Write the settings and continue the logs at `step`; scores of a finished run stay in `protocol.json`."""
        if not self.writes:
            return
        self.last.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.out)
        remove_leftovers(self.last.parent)
        env = environment()
        record = {**settings, "nets": list(nets), "versions": env["packages"]}
        protocol = self.out / "protocol.json"
        if step == steps and protocol.is_file():
            record |= _evaluation(protocol)
        replace_text(protocol, json.dumps(record, indent=1))
        replace_text(self.out / "env.json", json.dumps(env, indent=1))
        # metrics and events count steps from 0; a callback tells the number of steps that are over
        for name, keep_below in (("metrics", step), ("events", step), ("quality", step + 1 if step else 0)):
            self._logs[name] = CsvLog(self.out / f"{name}.csv", keep_below=keep_below)

    def log(self, name: str, row: Mapping[str, object]) -> None:
        """Append a row to "metrics", "quality" or "events"."""
        if self.writes:
            self._logs[name].write(row)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `checkpoints/last.pt`, after the rows that lead to it are on disk.

        Raises:
            FileNotFoundError: the folder was removed; a new one of its name may be another run's.
        """
        if self.writes:
            check_held(self.out)
            for log in self._logs.values():
                log.sync()
            save_checkpoint(self.last, state)

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs.values():
            log.close()


def check_settings(old: Mapping[str, Any], new: Mapping[str, Any], source: Path) -> None:
    """Raise ValueError, naming them, if settings differ that a resumed run must share with the interrupted one."""
    if changed := changed_settings(old, new):
        raise ValueError(f"{source} was made with other settings: {changed}")


def _evaluation(protocol: Path) -> dict[str, Any]:
    try:
        found = json.loads(protocol.read_text(encoding="utf-8"))
        return {"evaluation": found["evaluation"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
