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
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ssmis.cli import parse
from ssmis.data import Cache, Case, DataError, Grid, Plan, find_dataset, load_la, read_list, write_la
from ssmis.data.layout_tables import pixel_sizes
from ssmis.data.layouts import Dataset
from ssmis.data.plan import Channel
from ssmis.data.scans import read_grid, read_labels, read_scan
from ssmis.data.splits import read_split
from ssmis.engine import CheckpointError, load_checkpoint, save_checkpoint
from ssmis.engine.export import export_run, load_exported
from ssmis.engine.log import CsvLog
from ssmis.engine.trained import TrainedRun, build_recipe
from ssmis.metrics import CaseScore, evaluate_case, read_cases_csv, write_cases_csv
from ssmis.options import TrainOptions
from ssmis.report import ReportRun
from ssmis.report.compare import FACTS, read_run
from ssmis.report.runs import read_log
from ssmis.report.study import read_study

CPU_SECONDS = 10.0
MEMORY_MB = 512
CHUNK = 200  # cases a process


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


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, 10**12, 1e308, float("nan"), "", "x", "../x", "/etc/passwd", [], [[]], {}, [1, "x"], {"x": 1}
)  # fmt: skip


def mutate_json(content: bytes, source: random.Random) -> bytes:
    """Half of the time damage bytes; else put something odd in the place of an entry, drop it or rename it."""
    if source.random() < 0.5:
        return mutate(content, source)
    tree = json.loads(content)
    for _ in range(source.choice((1, 1, 2))):
        nodes: list[dict[str, object] | list[object]] = []
        queue: list[object] = [tree]
        while queue:
            node = queue.pop()
            if isinstance(node, dict | list) and node:
                nodes.append(node)
                queue += node.values() if isinstance(node, dict) else node
        if not nodes:
            break
        node = source.choice(nodes)
        key = source.choice(list(node) if isinstance(node, dict) else range(len(node)))
        kind = source.randrange(4)
        odd = json.loads(json.dumps(source.choice(ODD)))
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[f"{key}x"] = node.pop(key)
        elif kind == 2:
            for _ in range(source.choice((3, 50, 2000))):
                odd = [odd]
            node[key] = odd
        else:
            node[key] = odd
    try:
        return json.dumps(tree).encode()
    except RecursionError:
        return b"[" * 5000


def mutate_yaml(content: bytes, source: random.Random) -> bytes:
    """Damage bytes, or add lines that a parser stumbles over: tags, anchors, depth."""
    if source.random() < 0.5:
        return mutate(content, source)
    name = source.choice(("data", "steps", "patch", "config", "odd"))
    aliases = ", ".join(["*a"] * 9)
    odd = source.choice((
        f"{name}: {source.choice(ODD)}",
        f"{name}: !!python/object/apply:os.system ['true']",
        f"{name}: !!binary AAAA",
        "a: &a [x, x, x]\n" + "".join(f"b{index}: &a [{aliases}]\n" for index in range(12)) + f"{name}: *a",
        f"{name}: " + "[" * source.choice((1, 30, 3000)),
        f"{name}: " + "9" * source.choice((20, 5000)),
        f"? [{name}]\n: 1",
        f"{name}: 1:2:3:4",
        f"<<: {{{name}: 1}}",
        "--- \nx: 1",
    ))  # fmt: skip
    lines = content.decode().splitlines()
    lines.insert(source.randrange(len(lines) + 1), odd)
    return "\n".join(lines).encode()


def repacked(content: bytes, source: random.Random) -> bytes:
    """Damage what a gzip file holds; its checksum is right."""
    return gzip.compress(mutate(gzip.decompress(content), source), 1)


def resealed(content: bytes, source: random.Random) -> bytes:
    """Damage a chunk of a PNG, the pixels unpacked; checksums and lengths are right."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    chosen = source.randrange(len(chunks))
    out = content[:8]
    for index, (kind, data) in enumerate(chunks):
        if index == chosen:
            pixels = kind == b"IDAT" and source.random() < 0.7
            data = zlib.compress(mutate(zlib.decompress(data), source)) if pixels else mutate(data, source)
            kind = mutate(kind, source)[:4].ljust(4, b"x") if source.random() < 0.1 else kind
        for _ in range(2 if index == chosen and source.random() < 0.1 else 1):
            out += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return out


@dataclass(frozen=True)
class Format:
    """A kind of file: its intact content, how it is read, the error its reader documents, and how it is damaged."""

    name: str
    file: str
    content: bytes
    read: Callable[[Path], object]
    refuses: type[Exception]
    damage: Callable[[bytes, random.Random], bytes] = mutate


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
        Format("cache, json", "entry.json", named(".json"), read_cache(".json"), DataError, mutate_json),
        Format("run log", "metrics.csv", (folder / "metrics.csv").read_bytes(), read_csv, ValueError),
        Format("log in a report", "metrics.csv", (folder / "metrics.csv").read_bytes(), read_log, ValueError),
        Format("scores", "cases.csv", (folder / "cases.csv").read_bytes(), read_cases_csv, ValueError),
        Format("protocol", "protocol.json", protocol, read_protocol, ValueError, mutate_json),
        *scan_formats(folder, image, label),
        *run_formats(folder, scores),
    ]  # fmt: skip


def scan_formats(folder: Path, image: NDArray[Any], label: NDArray[Any]) -> list[Format]:
    """Volumes that nibabel reads, and pictures."""
    affine = np.array([[-0.6, 0, 0, 9], [0, 0.6, 0, -4], [0, 0.05, 1.2, 3], [0, 0, 0, 1]])
    whole = np.rint(100 * (image - image.min())).astype(np.int16)
    kinds = {".nii": nib.Nifti1Image, ".nii.gz": nib.Nifti1Image, ".mgh": nib.MGHImage, ".hdr": nib.Nifti1Pair}
    for suffix, kind in kinds.items():
        nib.save(kind(whole, affine), folder / f"scan{suffix}")
    nib.save(nib.Nifti2Image(image.astype(np.float32), affine), folder / "wide.nii")
    extended = nib.Nifti1Image(whole, affine)
    extended.header["scl_slope"], extended.header["scl_inter"] = 0.01, 1
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"about the scan" * 9))
    nib.save(extended, folder / "extended.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / "label.nii.gz")
    grid = read_scan(folder / "scan.nii").grid
    grey = np.clip(whole[:, :, len(image) // 2] // 4, 0, 255).astype(np.uint8)
    mask = label[:, :, label.shape[2] // 2]
    flat = Grid(mask.shape, (0.5, 0.5))
    for suffix in (".png", ".tif", ".jpg", ".bmp"):
        Image.fromarray(grey).save(folder / f"picture{suffix}")
    Image.fromarray(grey.astype(np.uint16) * 100).save(folder / "deep.png")
    Image.fromarray(mask * 255).convert("1").save(folder / "bits.png")
    colours = Image.fromarray(mask).convert("P")
    colours.putpalette([0, 0, 0, 255, 0, 0])
    colours.save(folder / "mask.png")
    Image.fromarray(np.stack([grey] * 4, -1)).save(folder / "clear.png")

    def volume(path: Path) -> object:
        read_grid(path)
        return float(np.asarray(read_scan(path).image, dtype=np.float64).sum())

    def pair(path: Path) -> object:
        path.with_suffix(".img").write_bytes((folder / "scan.img").read_bytes())
        return volume(path)

    def labels(path: Path) -> object:
        return read_labels(path, grid if path.suffix == ".gz" else flat).sum()

    files: list[tuple[str, str, Callable[[Path], object], Callable[[bytes, random.Random], bytes]]] = [
        ("NIfTI", "scan.nii", volume, mutate),
        ("NIfTI-2", "wide.nii", volume, mutate),
        ("NIfTI, packed", "scan.nii.gz", volume, mutate),
        ("NIfTI, packed after the damage", "extended.nii.gz", volume, repacked),
        ("NIfTI label map", "label.nii.gz", labels, repacked),
        ("NIfTI pair", "scan.hdr", pair, mutate),
        ("MGH", "scan.mgh", volume, mutate),
        ("PNG", "picture.png", volume, mutate),
        ("PNG, sealed after the damage", "deep.png", volume, resealed),
        ("PNG with transparency", "clear.png", volume, resealed),
        ("PNG mask", "mask.png", labels, resealed),
        ("PNG mask of bits", "bits.png", labels, resealed),
        ("TIFF", "picture.tif", volume, mutate),
        ("JPEG", "picture.jpg", volume, mutate),
        ("BMP", "picture.bmp", volume, mutate),
    ]
    return [
        Format(name, file, (folder / file).read_bytes(), read, DataError, damage) for name, file, read, damage in files
    ]


def run_formats(folder: Path, scores: list[list[CaseScore]]) -> list[Format]:
    """Files of options, tables, and what trainings, exports and studies leave."""
    run, study = folder / "run", folder / "study"
    shape = ((2, 2),) * 2, ((3, 3),) * 3, (2, 2, 2)
    plan = Plan(2, (Channel("MR"),), (0, 1), ("rest", "organ"), (1.0, 1.0), (16, 16), (16, 16), 1, *shape)
    options = TrainOptions(data="scans", out="run", recipe="supervised", nets=["unet"])
    (run / "checkpoints").mkdir(parents=True)
    (run / "options.json").write_text(json.dumps(asdict(options)))
    plan.save(run / "plan.json")
    state = {"recipe": build_recipe(options, plan).state_dict(), "ema": None}
    save_checkpoint(run / "checkpoints" / "last.pt", state)
    export_run(run)
    facts: dict[str, Any] = {}
    for name in FACTS:
        inner = facts
        for part in name.split(".")[:-1]:
            inner = inner.setdefault(part, {})
        inner[name.split(".")[-1]] = ["none"] if name == "evaluation.post_processing" else 1
    cell = study / "vnet" / "seed0"
    cell.mkdir(parents=True)
    (cell / "protocol.json").write_text(json.dumps(facts))
    (cell / "result.json").write_text(json.dumps({"minutes": 1.0, "peak_memory_mb": 900}))
    (cell / "calibration.csv").write_text("case,ece,brier,voxels\na,0.1,0.2,9\nb,0.1,0.2,9\n")
    write_cases_csv(cell / "cases.csv", [score for group in scores for score in group])
    told = {"protocol": "paper", "labelled": 2, "unlabelled": 3, "scored": "test", "cases": 3, "best": False}
    told |= {"minutes": None, "seeds": [0], "against": ["vnet"], "steps": {"vnet": 5}}
    (study / "study.json").write_text(json.dumps(told))

    scans = folder / "scans"
    scans.mkdir()
    for name in ("a.png", "a_label.png", "b.png"):
        (scans / name).write_bytes((folder / "picture.png").read_bytes())
    rows = [{"image": "a.png", "label": "a_label.png", "split": "train", "spacing_mm": "0.5;0.5"}, {"image": "b.png"}]
    table = "image,label,split,id,spacing_mm\na.png,a_label.png,train,one,0.5;0.5\nb.png,,test,two,1 1\n"
    msd = {"labels": {"0": "rest", "1": "organ"}, "channel_names": {"0": "MR"}, "numTraining": 1, "test": ["b.png"],
           "training": [{"image": "./a.png", "label": "./a_label.png"}]}  # fmt: skip
    lists = {role: f"{role}\n" for role in ("labelled", "val", "test")}
    cases = tuple(Case(role, scans / "a.png", scans / "a_label.png", ()) for role in (*lists, "more"))

    def beside(source: Path, read: Callable[[Path], object]) -> Callable[[Path], object]:
        def within(path: Path) -> object:  # among the intact files of `source`, in the place of one of them
            target = path.parent / "whole"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            found = next(iter(target.rglob(path.name)), target / path.name)
            found.write_bytes(path.read_bytes())
            return read(found)

        return within

    def read_options(path: Path) -> object:
        return parse("train", TrainOptions, ["--config", str(path)])

    def read_run_folder(path: Path) -> object:
        return TrainedRun.read(path.parent).recipe()

    def read_lists(path: Path) -> object:
        for role in ("labelled", "unlabelled", "val", "test"):
            text = path.read_bytes() if role == "labelled" else lists.get(role, "more").encode()
            (path.parent / f"{role}.list").write_bytes(text)
        return read_split(Dataset("made up", scans, cases), path.parent)

    def entry(name: str, path: Path, read: Callable[[Path], object], damage: Any = mutate_json) -> Format:
        return Format(name, path.name, path.read_bytes(), read, ValueError, damage)

    def text(name: str, file: str, content: str, read: Callable[[Path], object], damage: Any = mutate) -> Format:
        return Format(name, file, content.encode(), beside(scans, read), DataError, damage)

    yaml_text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in asdict(options).items()).encode()
    exported = run / "export"
    return [
        Format("YAML of options", "config.yaml", yaml_text, read_options, ValueError, mutate_yaml),
        entry("options of a run", run / "options.json", beside(run, read_run_folder)),
        entry("plan of a run", run / "plan.json", beside(run, read_run_folder)),
        entry("export, JSON", exported / "config.json", beside(exported, lambda path: load_exported(path.parent))),
        entry("export, safetensors", exported / "model.safetensors",
              beside(exported, lambda path: load_exported(path.parent)), mutate),
        entry("study", study / "study.json", beside(study, lambda path: str(read_study(path.parent)))),
        entry("result in a study", cell / "result.json",
              beside(study, lambda path: str(read_study(path.parents[2])))),
        entry("protocol of a scored run", cell / "protocol.json", beside(cell, lambda path: read_run(path.parent))),
        entry("calibration", cell / "calibration.csv", beside(cell, lambda path: read_run(path.parent)), mutate),
        text("table", "cases.csv", table, find_dataset),
        text("table, JSON", "cases.json", json.dumps(rows), find_dataset, mutate_json),
        text("pixel sizes", "pixel_size.csv", "filename,pixel size(mm)\na.png,0.5\nb.png,0.25\n",
             lambda path: pixel_sizes(path.parent)),
        text("dataset.json", "dataset.json", json.dumps(msd), lambda path: find_dataset(path.parent), mutate_json),
        Format("list of a split", "labelled.list", lists["labelled"].encode(), read_lists, DataError),
    ]  # fmt: skip


# of all cases; the other formats share the rest
WEIGHTS = {"h5": 0.2, "checkpoint": 0.05, "pickle of a checkpoint": 0.1}


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
        path.write_bytes(form.damage(form.content, random.Random(f"{form.name} {seed}")))
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
