# SPDX-License-Identifier: Apache-2.0
"""Programs that run at the same time: what they are told, and how they end."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

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


def test_the_next_starts_when_one_has_ended(tmp_path):
    counts = """
        import sys, time
        from pathlib import Path
        folder, name, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
        (folder / name).touch()
        end = time.monotonic() + 60
        while other and not (folder / other).exists() and time.monotonic() < end:
            time.sleep(0.02)
        running = len([path for path in folder.iterdir() if path.name in "abcd"])
        (folder / f"{name} done").write_text(f"{running} {time.monotonic() < end}")
        (folder / name).unlink()
        """
    commands = [python(counts, tmp_path, *names) for names in (("a", "d done"), ("b", ""), ("c", ""), ("d", ""))]
    assert run_beside(commands, at_once=2) == 0  # a waits for the last one: nobody waited for a
    for name in "abcd":
        running, in_time = (tmp_path / f"{name} done").read_text().split()
        assert int(running) <= 2
        assert in_time == "True"


def test_one_that_fails_keeps_the_rest_from_starting(tmp_path):
    writes = "import sys; open(sys.argv[1], 'w')"
    assert run_beside([python("import sys; sys.exit(3)"), python(writes, tmp_path / "b")], at_once=1) == 3
    assert not (tmp_path / "b").exists()


def test_a_program_that_cannot_start_ends_the_others(tmp_path):
    with pytest.raises(OSError, match="no_such_program"):
        run_beside([python("import time; time.sleep(60)"), ["no_such_program"]])
    with pytest.raises(ValueError, match="at_once is 0"):
        run_beside([], at_once=0)


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


def test_one_that_fails_leaves_the_others_alone_on_request(tmp_path):
    writes = "import sys; open(sys.argv[1], 'w')"
    commands = [python("import sys; sys.exit(3)"), python("import sys; sys.exit(4)"), python(writes, tmp_path / "c")]
    assert run_beside(commands, at_once=1, go_on=True) == 3
    assert (tmp_path / "c").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_all(tmp_path, number, status):
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
    os.kill(outer.pid, number)
    assert outer.wait(timeout=60) == status
    assert a.read_text() == "terminated"
