# SPDX-License-Identifier: Apache-2.0
"""Read thousands of damaged files, and see that each is read or refused by name.

    python benchmarks/fuzz.py [--cases 6000] [--seed 0] [--data DATA/la] [--seconds 900]

Files of every format the package reads are mutated: bits flipped, bytes overwritten (runs, and integers of all sizes),
parts cut off, zeroed, repeated or taken from another place. Each is read in a process of its own group of cases, with
a limit on memory and on processor seconds. A reader may return what it read, or raise the error it documents, with the
name of the file in the message. Everything else is a finding: another error, a message without the name, a crash of the
interpreter, more than `CPU_SECONDS`, more than `MEMORY_MB` above the start.

With `--data` the volumes are pieces of real ones.
"""

import argparse
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssmis.data import Cache, Case, DataError, load_la, read_list, write_la
from ssmis.engine import CheckpointError, load_checkpoint, save_checkpoint
from ssmis.engine.log import CsvLog
from ssmis.metrics import evaluate_case, read_cases_csv, write_cases_csv
from ssmis.report import ReportRun
from ssmis.report.runs import read_log

CPU_SECONDS = 10.0
MEMORY_MB = 512
CHUNK = 200  # cases a process


@dataclass(frozen=True)
class Format:
    """A kind of file: its intact content, how it is read, and the error its reader documents."""

    name: str
    file: str
    content: bytes
    read: Callable[[Path], object]
    refuses: type[Exception]


def formats(folder: Path, data: Path | None) -> list[Format]:
    """One intact file of each format."""
    image = np.random.default_rng(0).normal(size=(20, 18, 16))
    label = (image > 1).astype(np.uint8)
    if data is not None:
        source = next(iter(sorted(data.rglob("mri_norm2.h5"))))
        volume = load_la(Case("real", source, source, (1.0, 1.0, 1.0)))
        middle = tuple(slice(length // 2 - 12, length // 2 + 12) for length in volume.image.shape[1:])
        image, label = volume.image[0][middle], volume.label[middle]
    h5 = write_la(folder, "case", image, label)
    case = Case("case", h5, h5, (1.0, 1.0, 1.0))
    cache = folder / "cache"
    Cache.build([case], cache)

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.rand(2, 1, 6, 6)).sum().backward()
    optimizer.step()
    last = folder / "last.pt"
    save_checkpoint(last, {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 7})

    log = CsvLog(folder / "metrics.csv")
    for step in range(30):
        log.write({"step": step, "loss": 0.5 / (step + 1), "supervised/vnet": 0.25})
    log.close()
    record = {"fit": {"steps": 5, "seed": 0}, "labelled": {"cases": ["a", "b"]}, "nets": ["vnet"]}
    scores = [evaluate_case(label, label, classes=(1,), spacing_mm=(1.0, 1.0, 1.0), case=name) for name in "abc"]
    write_cases_csv(folder / "cases.csv", [score for group in scores for score in group])

    def read_h5(path: Path) -> object:
        return load_la(Case("case", path, path, (1.0, 1.0, 1.0)))

    def read_cache(kind: str) -> Callable[[Path], object]:
        def read(path: Path) -> object:  # a damaged entry is made again
            for found in cache.iterdir():
                target = path.parent / "cache" / found.name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes() if found.name.endswith(kind) else found.read_bytes())
            entry = Cache.build([case], path.parent / "cache")["case"]
            return float(np.asarray(entry.image, dtype=np.float64).sum())

        return read

    def read_repacked(path: Path) -> object:  # with checksums that are right
        damaged = path.read_bytes()
        with zipfile.ZipFile(last) as intact, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for part in intact.infolist():
                archive.writestr(part, damaged if part.filename.endswith("data.pkl") else intact.read(part.filename))
        return load_checkpoint(path)

    def read_csv(path: Path) -> object:
        CsvLog(path, keep_below=20).close()
        return None

    def read_protocol(path: Path) -> object:
        return ReportRun("run", path.parent).settings(path.name)

    def named(name: str) -> bytes:
        return next(path for path in cache.iterdir() if path.name.endswith(name)).read_bytes()

    with zipfile.ZipFile(last) as archive:
        pickled = next(archive.read(part) for part in archive.namelist() if part.endswith("data.pkl"))
    names = "".join(f"case{index:02d}\n" for index in range(20)).encode()
    protocol = json.dumps(record).encode()
    return [
        Format("h5", "mri_norm2.h5", h5.read_bytes(), read_h5, DataError),
        Format("checkpoint", "last.pt", last.read_bytes(), load_checkpoint, CheckpointError),
        Format("pickle of a checkpoint", "last.pt", pickled, read_repacked, CheckpointError),
        Format("list", "train.list", names, read_list, DataError),
        Format("cache, npy", "entry.npy", named(".image.npy"), read_cache(".image.npy"), DataError),
        Format("cache, json", "entry.json", named(".json"), read_cache(".json"), DataError),
        Format("run log", "metrics.csv", (folder / "metrics.csv").read_bytes(), read_csv, ValueError),
        Format("log in a report", "metrics.csv", (folder / "metrics.csv").read_bytes(), read_log, ValueError),
        Format("scores", "cases.csv", (folder / "cases.csv").read_bytes(), read_cases_csv, ValueError),
        Format("protocol", "protocol.json", protocol, read_protocol, ValueError),
    ]  # fmt: skip


# of all cases; the other formats share the rest
WEIGHTS = {"h5": 0.4, "checkpoint": 0.1, "pickle of a checkpoint": 0.2}


def mutate(content: bytes, source: random.Random) -> bytes:
    """Damage a file in one to three ways."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        # half of the damage goes to where headers are
        size = len(data)
        at = source.randrange(min(size, 1024)) if source.random() < 0.5 else source.randrange(size)
        if source.random() < 0.2:
            at = max(0, size - 1 - source.randrange(min(size, 512)))
        kind = source.randrange(8)
        if kind == 0:
            for _ in range(source.choice((1, 1, 2, 8))):
                data[source.randrange(size) if source.random() < 0.3 else at] ^= 1 << source.randrange(8)
        elif kind == 1:
            length = source.choice((1, 2, 4, 8, 64))
            data[at : at + length] = source.randbytes(len(data[at : at + length]))
        elif kind == 2:
            width = source.choice((1, 2, 4, 8))
            value = source.choice((0, 1, 2**7, 2**15, 2**31, 2**40, 10**12, 2**63, 2**64 - 1)) % (1 << 8 * width)
            at -= at % width
            data[at : at + width] = value.to_bytes(width, "little")[: len(data[at : at + width])]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            length = source.randrange(1, 256)
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 5:
            length = source.randrange(1, 256)
            data[at:at] = data[at : at + length]
        elif kind == 6:
            length, other = source.randrange(1, 64), source.randrange(size)
            piece = data[other : other + length]
            data[at : at + len(piece)] = piece
        else:
            del data[at : at + source.randrange(1, 64)]
    return bytes(data)


def judge(form: Format, path: Path) -> str:
    """Read a file; "read", "refused", or what is wrong."""
    try:
        form.read(path)
    except form.refuses as error:
        return "refused" if path.name in str(error) else f"no name: {type(error).__name__}: {str(error)[:120]}"
    except BaseException as error:
        return f"other error: {type(error).__name__}: {str(error)[:120]}"
    return "read"


def work(form: Format, folder: Path, seeds: list[int], report: io.FileIO) -> None:
    """Judge the cases of these seeds, one line each: seed, then what came of it."""
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + 4 * MEMORY_MB * 2**20  # of addresses; what is resident is judged below
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = folder / form.file
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        report.write(f"{seed} ".encode())
        path.write_bytes(mutate(form.content, random.Random(f"{form.name} {seed}")))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its default ends the process
        found = judge(form, path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if peak - start > MEMORY_MB * 2**10:
            found = f"memory: {(peak - start) >> 10} MB"
            start = peak
        report.write(found.replace("\n", " ").encode(errors="replace") + b"\n")


def fuzz(form: Format, folder: Path, seeds: list[int], until: float) -> Iterator[tuple[int, str]]:
    """Yield seed and outcome; a process that dies is replaced, and the case it died of is an outcome too."""
    queue = list(seeds)
    while queue and time.monotonic() < until:
        read_end, write_end = os.pipe()
        process = os.fork()
        if not process:
            os.close(read_end)
            try:
                work(form, folder, queue[:CHUNK], io.FileIO(write_end, "w"))
            finally:
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            text = pipe.read().decode(errors="replace")
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        for line in text.splitlines():
            seed, _, found = line.partition(" ")
            if not found:
                found = "too slow" if status == -signal.SIGPROF else f"crash: ended by {status}"
            yield int(seed), found
            queue.remove(int(seed))
        if not text:
            raise RuntimeError(f"the reading process ended with {status} before its first case")


def run(cases: int, seed: int, data: Path | None, seconds: float) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts of outcomes a format, and the findings."""
    counts: dict[str, Counter[str]] = {}
    findings: list[str] = []
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = formats(folder, data)
        rest = (1 - sum(WEIGHTS.values())) / (len(kinds) - len(WEIGHTS))
        (folder / "fuzz").mkdir()
        for form in kinds:
            counts[form.name] = Counter()
            seeds = [seed * 10**6 + index for index in range(max(1, round(cases * WEIGHTS.get(form.name, rest))))]
            for number, found in fuzz(form, folder / "fuzz", seeds, until):
                kind = found if found in ("read", "refused") else found.partition(":")[0]
                counts[form.name][kind] += 1
                if found not in ("read", "refused"):
                    findings.append(f"{form.name}, case {number}: {found}")
    return counts, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with real volumes in the Left Atrium layout")
    parser.add_argument("--seconds", type=float, default=900.0, help="end after this time, with what was done")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts, findings = run(args.cases, args.seed, args.data, args.seconds)
    for name, outcomes in counts.items():
        print(f"{name}: {sum(outcomes.values())} files; " + ", ".join(f"{n} {o}" for o, n in sorted(outcomes.items())))
    print(f"{sum(map(Counter.total, counts.values()))} files, {len(findings)} findings")
    print("\n".join(findings[:40]))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
