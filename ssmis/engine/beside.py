# SPDX-License-Identifier: Apache-2.0
"""Several programs at the same time, as one: for nets so small that each keeps a single core busy."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from ssmis.engine.console import interruptible


def run_beside(
    commands: Sequence[Sequence[str]], *, threads: int = 1, at_once: int | None = None, go_on: bool = False
) -> int:
    """Run commands at the same time and wait for all of them.

    Ctrl-C and SIGTERM end all, and so does one that fails: the others get SIGTERM, at which a training writes its
    checkpoint. (A program in the background may have been told to ignore Ctrl-C.)

    Args:
        commands: program and arguments of each; output and errors go where this process's go.
        threads: of torch in each.
        at_once: how many run at the same time, the next one starting when one has ended; None: all.
        go_on: with the others when one fails.

    Returns:
        0, or the status of the first that failed; 130 after Ctrl-C, 143 after SIGTERM. A status is 128 + n if signal n
        ended it.

    Raises:
        ValueError: at_once < 1.
        OSError: a program that cannot be started; those that run are ended first.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once is {at_once}; expected at least 1")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting, running = [list(command) for command in commands], list[subprocess.Popen[bytes]]()
    status, stopped = 0, False
    with interruptible() as signalled:
        while running or (waiting and not stopped):
            try:
                while waiting and not stopped and (at_once is None or len(running) < at_once):
                    running.append(subprocess.Popen(waiting.pop(0), env=environment))
                time.sleep(0.1)
                ended = [code for child in running if (code := child.poll())]
            except KeyboardInterrupt:  # a second one, or in a thread that sees no signals
                ended, number = [], int(signal.SIGINT)
            except OSError:
                for child in running:
                    child.terminate()
                for child in running:
                    child.wait()
                raise
            else:
                number = signalled()
            running = [child for child in running if child.poll() is None]
            if (ended or number) and not stopped:
                if number:
                    status = 128 + number
                elif not status:
                    status = ended[0] if ended[0] > 0 else 128 - ended[0]
                if stopped := bool(number) or not go_on:
                    for child in running:
                        child.terminate()
    return status
