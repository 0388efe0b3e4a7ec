# SPDX-License-Identifier: Apache-2.0
"""Programs that run at the same time: what they are told, and how they end."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from ssmis.engine import run_beside


def python(source, *arguments):
    return [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]


# waits for a file, or for SIGTERM, and writes how it ended
WAITS = """
    import signal, sys, time
    from pathlib import Path
    here, other = map(Path, sys.argv[1:])

    def told(number, frame):
        here.write_text("terminated")
        sys.exit(143)

    signal.signal(signal.SIGTERM, told)
    here.touch()
    end = time.monotonic() + 60
    while not other.exists() and time.monotonic() < end:
        time.sleep(0.02)
    here.write_text("done" if other.exists() else "alone")
    """


def test_they_run_at_the_same_time(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    assert run_beside([python(WAITS, a, b), python(WAITS, b, a)]) == 0
    assert a.read_text() == b.read_text() == "done"


def test_each_has_its_threads(tmp_path):
    source = "import os, sys; open(sys.argv[1], 'w').write(os.environ['OMP_NUM_THREADS'])"
    assert run_beside([python(source, tmp_path / "threads")], threads=3) == 0
    assert (tmp_path / "threads").read_text() == "3"


def test_one_that_fails_ends_the_others_and_gives_its_status(tmp_path):
    a = tmp_path / "a"
    fails = """
        import sys, time
        from pathlib import Path
        while not Path(sys.argv[1]).exists():
            time.sleep(0.02)
        sys.exit(7)
        """
    assert run_beside([python(WAITS, a, tmp_path / "never"), python(fails, a)]) == 7
    assert a.read_text() == "terminated"


def test_a_signal_is_told_as_a_shell_tells_it():
    assert run_beside([python("import os; os.kill(os.getpid(), 9)")]) == 128 + 9


def test_ctrl_c_ends_all(tmp_path):
    a = tmp_path / "a"
    inner = python(WAITS, a, tmp_path / "never")
    outer = subprocess.Popen(
        python(
            f"""
            import signal, sys
            from ssmis.engine import run_beside
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
            sys.exit(run_beside([{inner}]))
            """
        )
    )
    deadline = time.monotonic() + 60
    while not a.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(outer.pid, signal.SIGINT)
    assert outer.wait(timeout=60) == 130
    assert a.read_text() == "terminated"
