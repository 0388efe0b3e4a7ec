# SPDX-License-Identifier: Apache-2.0
"""Options of the commands, and of the functions behind them: light, so that `--help` is quick."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class InspectOptions:
    """Look a data set through and name every problem by its file.

    Attributes:
        data: folder, or a CSV / JSON table.
        limit: findings of one kind that are shown.
        progress: show a bar.
    """

    data: str
    limit: int = 10
    progress: bool = True


@dataclass(frozen=True)
class VerifyOptions:
    """Look a public data set through: files, lists, values, labels, copies across the split.

    Attributes:
        data: folder of the data set.
        protocol: its name or its family, such as la/cpu or acdc.
        lists: ROLE=FILE (train, labelled, unlabelled, val, test), instead of the public lists.
        near: correlation from which on two images are near duplicates; default: the family's.
        progress: show a bar.
    """

    data: str
    protocol: str
    lists: list[str] | None = None
    near: float | None = None
    progress: bool = True


@dataclass(frozen=True)
class TrainOptions:
    """Train on a folder of scans of which some have labels.

    Attributes:
        data: folder, or a CSV / JSON table.
        out: run folder; default: runs/NAME/RECIPE_seedSEED.
        recipe: method, see `ssmis list`.
        preset: of the recipe; default: "copy_paste" of dual_uncertainty, else the recipe's own. Where it keeps the
            largest component of pseudo-labels, it does so for classes that are one piece in the labels.
        coefficients: of the recipe, NAME=VALUE, in place of the preset's: contrast_weight=0.2 bank=ema.
        nets: names of nets, see `ssmis list`, each perhaps with an encoder (timm_unet:resnet18); default: two different
            ones, or one where the recipe takes one.
        labelled: cases that keep their labels: a number, a share such as 10%, all, or a list file.
        val: held-out cases, likewise.
        test: held-out cases that `evaluate` scores, likewise.
        seed: of split, weights and batches.
        steps: optimiser steps; default: 600 on a CPU, 6000 on a GPU.
        spacing_mm: voxel size of the training grid; default: by the data.
        patch: training patch; default: by the data and the memory.
        batch: labelled, and as many unlabelled, patches a step; default: by the data.
        width: channels of the nets at full resolution; default: by the memory.
        norm: of the nets: batch, instance, group or none; default: batch with 8 or more labelled
            patches a step, else instance, or group where a patch ends as one voxel.
        intensity: zscore, clip or unit; default: by the data.
        mirror: flip patches along every axis; only where left and right are alike.
        learning_rate: base rate.
        memory_gb: of a training step; default: 2 on a CPU, 70 % of a GPU.
        device: auto, cpu, cuda, ...
        precision: auto, fp32, bf16 or fp16.
        resume: continue an interrupted run.
        progress: show a bar.
    """

    data: str
    out: str | None = None
    recipe: str = "dual_uncertainty"
    preset: str | None = None
    coefficients: list[str] | None = None
    nets: list[str] | None = None
    labelled: str = "all"
    val: str = "0"
    test: str = "20%"
    seed: int = 0
    steps: int | None = None
    spacing_mm: list[float] | None = None
    patch: list[int] | None = None
    batch: int | None = None
    width: int | None = None
    norm: str | None = None
    intensity: str | None = None
    mirror: bool = False
    learning_rate: float = 5e-3
    memory_gb: float | None = None
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False
    progress: bool = True


@dataclass(frozen=True)
class CompareOptions:
    """Train methods with several seeds on one split, score them, and write a report.

    Attributes:
        data: folder, or a CSV / JSON table.
        out: folder of the runs and the report; default: runs/NAME_compared.
        recipes: methods, the baseline first; NAME=RECIPE is a recipe under another name, with a preset or coefficients
            of its own; default: supervised dual_uncertainty.
        seeds: of weights and batches; default: 0 1 2.
        split_seed: of the split, which all runs share.
        presets: METHOD=PRESET, in place of what `ssmis train` takes.
        coefficients: NAME=VALUE of every method but supervised ones, or METHOD.NAME=VALUE of one.
        equal_time: train the baseline a second time, for as long as the slowest other method takes.
        beside: runs at the same time, each with one thread.
        keep: folder to which the scores of all cases, and what they depend on, are copied.
        nets: see `ssmis train --help`, as for all that follow.
        labelled: cases that keep their labels.
        test: held-out cases.
        steps: optimiser steps of every run, but those of `equal_time`.
        spacing_mm: voxel size of the training grid.
        patch: training patch.
        batch: labelled, and as many unlabelled, patches a step.
        width: channels of the nets at full resolution.
        norm: of the nets.
        intensity: zscore, clip or unit.
        mirror: flip patches along every axis.
        learning_rate: base rate.
        memory_gb: of a training step.
        device: auto, cpu, cuda, ...
        precision: auto, fp32, bf16 or fp16.
        progress: show bars.
    """

    data: str
    out: str | None = None
    recipes: list[str] | None = None
    seeds: list[int] | None = None
    split_seed: int = 0
    presets: list[str] | None = None
    coefficients: list[str] | None = None
    equal_time: bool = False
    beside: int = 1
    keep: str | None = None
    nets: list[str] | None = None
    labelled: str = "all"
    test: str = "20%"
    steps: int | None = None
    spacing_mm: list[float] | None = None
    patch: list[int] | None = None
    batch: int | None = None
    width: int | None = None
    norm: str | None = None
    intensity: str | None = None
    mirror: bool = False
    learning_rate: float = 5e-3
    memory_gb: float | None = None
    device: str = "auto"
    precision: str = "auto"
    progress: bool = True


@dataclass(frozen=True)
class EvaluateOptions:
    """Score a run on its held-out cases.

    Attributes:
        run: run folder, or a folder of run folders (seeds): each is scored by itself.
        cases: test, val, or a list file of case ids.
        dataset: folder or table of the data, where they have moved since the training.
        flips: average over flips of every axis.
        overlap: share of a window that its neighbour covers.
        memory_gb: that the prediction of a case may take; default: what it takes.
        device: auto, cpu, cuda, ...
        progress: show a bar.
    """

    run: str
    cases: str = "test"
    dataset: str | None = None
    flips: bool = False
    overlap: float = 0.5
    memory_gb: float | None = None
    device: str = "auto"
    progress: bool = True


@dataclass(frozen=True)
class PredictOptions:
    """Segment files: labels come out on the grid of each file.

    Attributes:
        run: run folder, or a folder of run folders (seeds), whose probabilities are averaged.
        inputs: files or folders; several channels of a case as CASE_0000, CASE_0001, ...
        out: folder for the results.
        ensemble: further runs to average with.
        prob: write the class probabilities too.
        uncertainty: write the uncertainty too.
        largest: keep the largest component of each class only.
        flips: average over flips of every axis.
        overlap: share of a window that its neighbour covers.
        batch_size: windows at once.
        memory_gb: that a prediction may take; default: what it takes.
        spacing_mm: pixel size of pictures (voxel size of HDF5), in mm, where no pixel_size.csv says it.
        overwrite: replace results that are there.
        resume: keep results that are there, and segment the other images.
        shard: i/n, such as 0/4: only every n-th image from the i-th on, so that n processes share them.
        device: auto, cpu, cuda, ...
        progress: show a bar.
    """

    run: str
    inputs: list[str]
    out: str = "predictions"
    ensemble: list[str] | None = None
    prob: bool = False
    uncertainty: bool = False
    largest: bool = False
    flips: bool = False
    overlap: float = 0.5
    batch_size: int = 4
    memory_gb: float | None = None
    spacing_mm: list[float] | None = None
    overwrite: bool = False
    resume: bool = False
    shard: str | None = None
    device: str = "auto"
    progress: bool = True


@dataclass(frozen=True)
class ReportOptions:
    """Compare runs in one HTML file, the baseline first.

    Attributes:
        runs: run folders that were evaluated, folders of them, or studies.
        out: the file.
        title: of the page.
    """

    runs: list[str]
    out: str = "report.html"
    title: str = "Comparison of runs"


@dataclass(frozen=True)
class ExportOptions:
    """Give a trained model away.

    Attributes:
        run: run folder.
        out: folder; default: export inside the run.
        formats: safetensors, onnx, monai.
    """

    run: str
    out: str | None = None
    formats: list[str] | None = None


@dataclass(frozen=True)
class DemoOptions:
    """Make scans of a made-up organ, and run the commands on them.

    Attributes:
        out: folder for data, run and predictions.
        steps: training steps.
        device: auto, cpu, cuda, ...
        progress: show a bar.
    """

    out: str = "ssmis-demo"
    steps: int = 60
    device: str = "auto"
    progress: bool = True


def gathered(
    kind: type[T], first: object, options: Mapping[str, object], *, spelled: Callable[[Any], object] = str
) -> T:
    """The options of a call, whose first argument holds all of them, or is the first one of them.

    Raises:
        TypeError: options beside an object that holds all, or one that there is not.
    """
    if not isinstance(first, kind):
        name = next(iter(get_type_hints(kind)))
        return kind(**{name: spelled(first)}, **options)
    if options:
        raise TypeError(f"{', '.join(options)} given beside {kind.__name__}; expected all options in that object")
    return first
