# SPDX-License-Identifier: Apache-2.0
"""Kill a training again and again, and see what is lost.

    python benchmarks/soak.py [--kills 50] [--seed 0] [--full-disk 20] [--seconds 900]

A small `dual_uncertainty` training (averaged preset, moving averages, dropout, callbacks) is started, stopped by
SIGKILL, SIGTERM or SIGINT at a random moment, and resumed, until it was stopped `--kills` times; a finished run starts
over. After each stop the checkpoint must load, and what the log shows beyond it may be `checkpoint_every` steps at most
(after SIGTERM and SIGINT none). Each finished run must equal the undisturbed one: every tensor of the checkpoint and
every logged number but the seconds. The same then with a disk that is full at random moments: a file size limit, or a
small tmpfs with `--tmpfs FOLDER` (which must be mounted there). The second of two runs on one folder is refused while
the first lives, and not after it was killed.

Processes are forked from this one, which has loaded torch and used no threads: 50 stops take a minute or two.
"""

import argparse
import csv
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from ssmis.data import Batch
from ssmis.engine import CheckpointError, FitConfig, fit, load_checkpoint
from ssmis.nets import ResNetUNet, VNet
from ssmis.recipes import DualUncertainty

EVERY = 3
CONFIG = FitConfig(
    steps=40, learning_rate=0.02, optimizer="adamw", precision="fp32", ema_decay=0.9, checkpoint_every=EVERY,
    callback_every=4,
)  # fmt: skip
WHEN = {"seconds", "minutes", "peak_mb"}  # what two equal runs need not share


def batch(step: int) -> Batch:
    """Two labelled and two unlabelled images of 8 x 8."""
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
    cases = tuple(f"case{index}" for index in range(4))
    return Batch(images[:2], (images[:2, 0] > 0).long(), images[2:], (images[2:] * 1.1,), cases=cases, key=step)


def train(out: Path, config: FitConfig = CONFIG) -> None:
    """Train, or go on training."""
    torch.manual_seed(0)
    nets = {
        "resnet": ResNetUNet(1, 2, dims=2, widths=(4, 4, 8), blocks=(1, 1), dropout=0.2),
        "vnet": VNet(1, 2, dims=2, widths=(4, 4, 8), dropout=0.2),
    }
    recipe = DualUncertainty(nets, preset="averaged", slots=16, candidates=4)

    def callback(step: int, recipe: DualUncertainty) -> dict[str, float]:
        return {"foreground": float(recipe.predict(batch(0).images).probs[:, 1].mean())}

    fit(recipe, batch, config, out=out, resume=True, callbacks=[callback], progress=False)


def start(out: Path, *, limit: int | None = None) -> int:
    """Fork a process that trains in `out`; returns its number. It exits with 3 if the disk was full, 4 if refused."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        warnings.simplefilter("ignore")
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        train(out)
        code = 0
    except FileExistsError:
        code = 4
    except OSError as error:
        code = 3 if error.filename else 5
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def finish(process: int, seconds: float = 600.0) -> int:
    """Wait for a process; returns its exit code, or minus the signal that ended it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"a training did not end in {seconds} s")


def steps(out: Path, name: str = "metrics") -> list[int]:
    """Steps in a log, whole rows only."""
    path = out / f"{name}.csv"
    if not path.exists():
        return []
    text = path.read_text()
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    return [int(row["step"]) for row in rows]


def saved(out: Path) -> int:
    """Step of the checkpoint, 0 without one; an unreadable one is an error."""
    try:
        return load_checkpoint(out / "checkpoints" / "last.pt")["step"]
    except FileNotFoundError:
        return 0


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two runs: tensors and numbers of the checkpoint, rows of the logs."""
    found: list[str] = []

    def compare(x: Any, y: Any, where: str) -> None:
        if isinstance(x, dict) and isinstance(y, dict):
            found.extend(f"{where}: keys {sorted(set(x) ^ set(y), key=str)}" for _ in [0] if set(x) != set(y))
            for key in set(x) & set(y) - WHEN:
                compare(x[key], y[key], f"{where}.{key}")
        elif isinstance(x, list | tuple) and isinstance(y, list | tuple) and len(x) == len(y):
            for index, (one, other) in enumerate(zip(x, y)):
                compare(one, other, f"{where}.{index}")
        elif isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            if x.dtype != y.dtype or not torch.equal(x, y):
                found.append(where)
        elif x != y:
            found.append(f"{where}: {x!r} and {y!r}")

    one, other = (load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (a, b))
    compare(one, other, "checkpoint")
    for name in ("metrics", "quality", "events"):
        rows = []
        for folder in (a, b):
            with (folder / f"{name}.csv").open(newline="") as file:
                rows.append([{k: v for k, v in row.items() if k not in WHEN} for row in csv.DictReader(file)])
        compare(rows[0], rows[1], f"{name}.csv")
    records = [json.loads((folder / "protocol.json").read_text()) for folder in (a, b)]
    compare(records[0], records[1], "protocol.json")
    return found


class Soak:
    """Counts what happened to trainings that were disturbed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.reference = folder / "undisturbed"
        process = start(self.reference)
        began = time.monotonic()
        code = finish(process)
        if code:
            raise RuntimeError(f"the undisturbed training ended with {code}")
        self.duration = time.monotonic() - began
        self.counts: dict[str, int] = {}
        self.runs, self.lost = 0, 0
        self.problems: list[str] = []

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def check(self, out: Path, what: str, *, allowed: int) -> None:
        """After a stop: the checkpoint loads, and the log is at most `allowed` steps ahead of it."""
        try:
            at = saved(out)
        except CheckpointError as error:
            self.problems.append(f"{what}: {error}")
            return
        log = steps(out)
        lost = (log[-1] + 1 if log else 0) - at
        self.lost = max(self.lost, lost)
        if lost > allowed:
            self.problems.append(f"{what}: {lost} steps are lost")
        if log != list(range(len(log))) or lost < 0:
            self.problems.append(f"{what}: the log has steps {log} at checkpoint {at}")
        if list(out.glob("checkpoints/.*.tmp")):
            self.count("stopped in the middle of a checkpoint")

    def compare(self, out: Path) -> None:
        """A finished run equals the undisturbed one."""
        self.runs += 1
        self.problems += [f"run {self.runs}: {difference}" for difference in differences(self.reference, out)]
        if list(out.rglob("*.tmp")):
            self.problems.append(f"run {self.runs} left temporary files")

    def kill(self, kills: int, until: float) -> None:
        """Stop trainings by signals at random moments."""
        done, number = 0, 0
        while done < kills and time.monotonic() < until:
            number += 1
            out = self.folder / f"killed{number}"
            while done < kills and time.monotonic() < until:
                process = start(out)
                time.sleep(self.random.uniform(0, self.duration * 0.6))
                kind = self.random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
                alive = os.waitpid(process, os.WNOHANG)[0] == 0
                if not alive:
                    break
                os.kill(process, kind)
                code = finish(process)
                if code == 0:  # it was done before the signal came to a step
                    break
                # before `fit` listens, a polite signal is a kill, and costs no step that was not begun
                polite = code in (130, 143)
                if code not in (130, 143, -kind):
                    self.problems.append(f"{kind.name} ended a training with {code}")
                done += 1
                self.count(kind.name)
                self.check(out, f"{kind.name}, stop {done}", allowed=0 if polite else EVERY)
            if done >= kills or time.monotonic() >= until:
                code = finish(start(out))
                if code:
                    self.problems.append(f"{out.name} could not be finished: {code}")
            self.compare(out)

    def fill(self, times: int, until: float, tmpfs: Path | None) -> None:
        """Let the disk be full at random moments, and free it again."""
        size = (self.reference / "checkpoints" / "last.pt").stat().st_size
        for number in range(times):
            if time.monotonic() > until:
                break
            out = (tmpfs or self.folder) / f"full{number}"
            if tmpfs is None:
                process = start(out, limit=self.random.randint(200, int(size * 1.05)))
            else:
                ballast = tmpfs / "ballast"
                space = os.statvfs(tmpfs)
                free = space.f_bavail * space.f_frsize
                process = start(out)
                time.sleep(self.random.uniform(0, self.duration * 0.6))
                with ballast.open("wb", buffering=0) as file:
                    try:
                        file.write(b"\0" * max(0, free - self.random.randint(0, size * 2)))
                    except OSError:
                        self.count("the ballast itself filled the disk")
            code = finish(process)
            if tmpfs is not None:
                ballast.unlink()
            if code == 3:
                self.count("stopped by a full disk, the message names the file")
                self.check(out, f"full disk {number}", allowed=EVERY)
            elif code:
                self.problems.append(f"full disk {number} ended a training with {code}")
            code = finish(start(out))
            if code:
                self.problems.append(f"full disk {number}: could not be finished: {code}")
            self.compare(out)
            if tmpfs is not None:
                for path in sorted(out.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()

    def lock(self) -> None:
        """The second run on a folder is refused while the first lives, and not once it was killed."""
        out = self.folder / "locked"
        first = start(out)
        while not (out / "metrics.csv").exists():
            time.sleep(0.002)
        if finish(start(out)) != 4:
            self.problems.append("a second run on a folder was not refused")
        os.kill(first, signal.SIGKILL)
        finish(first)
        if finish(start(out)):
            self.problems.append("a lock outlived its process")
        self.compare(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--full-disk", type=int, default=20, help="trainings that meet a full disk")
    parser.add_argument("--tmpfs", type=Path, help="a small tmpfs that is filled; default: a limit on file sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900.0, help="end after this time, with what was done")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None  # faster; a kill loses nothing that was written
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        until = time.monotonic() + args.seconds
        soak = Soak(Path(folder), args.seed)
        print(f"undisturbed: {CONFIG.steps} steps in {soak.duration:.1f} s, a checkpoint every {EVERY}")
        soak.lock()
        soak.kill(args.kills, until)
        soak.fill(args.full_disk, until, args.tmpfs)
    for name, count in sorted(soak.counts.items()):
        print(f"{name}: {count}")
    print(f"most steps lost by a stop: {soak.lost}; runs finished and compared: {soak.runs}")
    print("\n".join(soak.problems) or "nothing else was lost: every finished run equals the undisturbed one")
    sys.exit(bool(soak.problems))


if __name__ == "__main__":
    main()
