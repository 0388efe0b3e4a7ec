# SPDX-License-Identifier: Apache-2.0
"""Several programs at the same time, as one: for nets so small that each keeps a single core busy."""

import os
import subprocess
import time
from collections.abc import Sequence


def run_beside(commands: Sequence[Sequence[str]], *, threads: int = 1, at_once: int | None = None) -> int:
    """Run commands at the same time and wait for all of them.

    Ctrl-C ends all, and so does one that fails: the others get SIGTERM, at which a training writes its checkpoint. (A
    program in the background may have been told to ignore Ctrl-C.)

    Args:
        commands: program and arguments of each; output and errors go where this process's go.
        threads: of torch in each.
        at_once: how many run at the same time, the next one starting when one has ended; None: all.

    Returns:
        0, or the status of the first that failed; 130 after Ctrl-C. A status is 128 + n if signal n ended it.

    Raises:
        ValueError: at_once < 1.
        OSError: a program that cannot be started; those that run are ended first.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once is {at_once}; expected at least 1")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting, running = [list(command) for command in commands], list[subprocess.Popen[bytes]]()
    status = 0
    while running or (waiting and not status):
        try:
            while waiting and not status and (at_once is None or len(running) < at_once):
                running.append(subprocess.Popen(waiting.pop(0), env=environment))
            time.sleep(0.1)
            ended = [code for child in running if (code := child.poll())]
        except KeyboardInterrupt:
            ended = [130]
        except OSError:
            for child in running:
                child.terminate()
            for child in running:
                child.wait()
            raise
        running = [child for child in running if child.poll() is None]
        if ended and not status:
            status = ended[0] if ended[0] > 0 else 128 - ended[0]
            for child in running:
                child.terminate()
    return status
