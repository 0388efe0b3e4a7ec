# SPDX-License-Identifier: Apache-2.0
"""Several programs at the same time, as one: for nets so small that each keeps a single core busy."""

import os
import subprocess
import time
from collections.abc import Sequence


def run_beside(commands: Sequence[Sequence[str]], *, threads: int = 1) -> int:
    """Run commands at the same time and wait for all of them.

    Ctrl-C ends all, and so does one that fails: the others get SIGTERM, at which a training writes its checkpoint. (A
    program in the background may have been told to ignore Ctrl-C.)

    Args:
        commands: program and arguments of each; output and errors go where this process's go.
        threads: of torch in each.

    Returns:
        0, or the status of the first that failed; 130 after Ctrl-C. A status is 128 + n if signal n ended it.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running = [subprocess.Popen(list(command), env=environment) for command in commands]
    status = 0
    while running:
        try:
            time.sleep(0.1)
            ended = [code for child in running if (code := child.poll())]
        except KeyboardInterrupt:
            ended = [130]
        running = [child for child in running if child.poll() is None]
        if ended and not status:
            status = ended[0] if ended[0] > 0 else 128 - ended[0]
            for child in running:
                child.terminate()
    return status
