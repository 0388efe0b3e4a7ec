# SPDX-License-Identifier: Apache-2.0
"""A random training patch from the cache against one from h5, and how much of a step the making of a batch takes.

    python benchmarks/data.py [--data DATA/la] [--repeats 9] [--steps 5]

Patches: both read the same random places of the same cases, image and label, on the original grid, files warm. From h5
twice: the whole case is decoded and cut, as loaders of this field do, and only the chunks that the patch touches.
Batches: protocol la/cpu, 2 labelled and 2 unlabelled crops with its augmentation, on one thread as in training, against
a training step of `dual_uncertainty` at its preset. Repeats alternate; medians and their ratios. Without --data it
writes phantoms of the size of Left Atrium volumes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from ssmis.data import Case, CropPicker, la_split, load_la, write_phantoms
from ssmis.engine import PROTOCOLS, fit
from ssmis.recipes import DualUncertainty

PATCH = (112, 112, 80)


def medians(calls: dict[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call over `repeats` alternating rounds, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(turn)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(own[1:]) for name, own in seconds.items()}


def patches(cases: list[Case], folder: Path, repeats: int) -> dict[str, float]:
    """Seconds of a random patch, by where it comes from; the patches are compared first."""
    protocol = replace(PROTOCOLS["la/paper"], patch=PATCH)
    cache, picker = protocol.cache(cases, folder), CropPicker(PATCH)

    def cached(turn: int) -> object:
        case = cases[turn % len(cases)]
        return picker(case.id, cache[case.id].image, cache[case.id].label, turn)

    def decoded(turn: int) -> object:
        case = cases[turn % len(cases)]
        volume = load_la(case)
        return picker(case.id, volume.image, volume.label, turn)

    def touched(turn: int) -> object:
        case = cases[turn % len(cases)]
        with h5py.File(case.image, "r") as file:
            return picker(case.id, _Lazy(file["image"]), _Lazy(file["label"], channel=False), turn)

    for turn in range(len(cases)):
        expected = cached(turn)
        for other in (decoded(turn), touched(turn)):
            assert torch.equal(expected.image, other.image)
            assert torch.equal(expected.label, other.label)
    return medians({"cache": cached, "h5, whole case": decoded, "h5, touched chunks": touched}, repeats)


class _Lazy:
    """A data set of h5py that looks like an array with or without a channel axis and reads only what is asked for."""

    def __init__(self, found: h5py.Dataset, *, channel: bool = True) -> None:
        self.found, self.channel = found, channel
        self.shape = (1, *found.shape) if channel else found.shape
        self.size = found.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        return self.found[where[1:]][None] if self.channel else self.found[where]


def batch_share(data: Path, folder: Path, steps: int) -> tuple[float, float]:
    """Median seconds of making a batch and of a training step that gets its batches ready-made."""
    protocol = PROTOCOLS["la/cpu"]
    split = la_split(data, labelled=2)
    cases = [*split.labelled, *split.unlabelled[:6]]
    batches = protocol.batches(protocol.cache(cases, folder), split.labelled, cases[2:])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for step in range(steps + 3):
        start = time.perf_counter()
        batches(step)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    ready = {step: batches(step) for step in range(steps + 3)}
    torch.manual_seed(0)
    recipe = DualUncertainty(protocol.nets(), preset=protocol.preset)
    config = replace(protocol.fit, steps=steps + 3)
    with tempfile.TemporaryDirectory() as out:
        fit(recipe, ready.__getitem__, config, out=out, progress=False)
        lines = [line.split(",") for line in (Path(out) / "metrics.csv").read_text(encoding="utf-8").splitlines()]
    column = lines[0].index("seconds")
    times = np.diff([float(line[column]) for line in lines[1:]])
    return statistics.median(seconds[3:]), float(np.median(times[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the Left Atrium data set")
    parser.add_argument("--repeats", type=int, default=9, help="of each kind of patch")
    parser.add_argument("--steps", type=int, default=5, help="of training, after three for warming up")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_phantoms(Path(folder) / "phantoms", labelled=2, unlabelled=6, size=(190, 142, 88))
        cases = list(la_split(data, labelled=4).labelled)
        found = patches(cases, Path(folder) / "cache", args.repeats)
        for name, seconds in found.items():
            print(f"patch from {name:20}{1000 * seconds:9.2f} ms{seconds / found['cache']:9.1f}")
        making, step = batch_share(data, Path(folder) / "cache", args.steps)
        print(f"batch {1000 * making:.1f} ms, step {1000 * step:.0f} ms: {100 * making / step:.1f} % of a step")


if __name__ == "__main__":
    main()
