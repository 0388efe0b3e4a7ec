# SPDX-License-Identifier: Apache-2.0
"""Trainings in several processes on one machine: what a test runs there, and how it gets the answers back."""

import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from recipes.small import small_batch, small_nets

from ssmis.data import Augment, BatchMaker, TwoStreamSampler
from ssmis.data.batch import Batch
from ssmis.data.cache import Entry
from ssmis.engine import FitConfig, fit
from ssmis.engine.train import train as train_own
from ssmis.registry import RECIPES

ONE_NET = ("mean_teacher",)
NO_DRAWS = {"mean_teacher": {"noise": 0.0}, "dual_uncertainty": {"anchors": None, "candidates": 64, "slots": 2560}}
RANK_LOCAL = ("uc_seg",)  # BatchNorm in the fused head, and boxes that a process draws
CONFIG = FitConfig(steps=5, learning_rate=0.02, precision="fp32", ema_decay=0.9, checkpoint_every=100)
TIMEOUT = 400.0  # of a machine with much else to do; it takes seconds


def whole_batch(step: int) -> Batch:
    """Four labelled and four unlabelled images."""
    return small_batch(step, labelled=4, unlabelled=4)


def make(name, *, norm="instance", seed=0, **settings):
    names = ("vnet",) if name in ONE_NET else ("resnet", "vnet")
    settings = {**RECIPES[name].example.create, **settings}
    return RECIPES.create(name, small_nets(names=names, norm=norm, seed=seed), **settings)


def train(name, out, config=CONFIG, *, batches=whole_batch, resume=False, **settings):
    """Train; returns the recipe's state."""
    recipe = make(name, **{**NO_DRAWS.get(name, {}), **settings})
    fit(recipe, batches, config, out=out, resume=resume, progress=False)
    return recipe.state_dict()


def train_all(rank, folder, names, config=CONFIG, **settings):
    """Each recipe once; a process starts with weights of its own, and not the first one has a folder of its own."""
    return {name: train(name, folder / f"{name}-{rank}", config, seed=7 * rank, **settings) for name in names}


def train_one(rank, folder, name, config, stop=None, resume=False, **settings):
    def batches(step):
        if step == stop:
            raise OSError("stopped")
        return whole_batch(step)

    return train(name, folder, config, batches=batches, resume=resume, **settings)


def fail(rank, folder, where):
    """A process that fails: in its data, in a callback, or because the folder is taken; or data that do not fit."""

    def batches(step):
        if step == 2 and where == "data" and rank == 1:
            raise OSError("disk of rank 1 on fire")
        if step == 1 and where == "uneven":
            return small_batch(step, labelled=3, unlabelled=4)
        if where == "different":
            return small_batch(step + rank, labelled=4, unlabelled=4)
        return whole_batch(step)

    def callback(step, recipe):
        if where == "callback":
            raise KeyError("no such number")
        if where == "weights":  # only the first process calls it
            next(recipe.parameters()).data.add_(1.0)
        return {"rank": float(rank)}

    recipe = make("supervised")
    if where == "facts":
        return fit(recipe, batches, CONFIG, out=folder, facts={"own": rank}, progress=False)
    config = replace(CONFIG, ema_decay=None)  # a callback would change the average
    return fit(recipe, batches, config, out=folder, callbacks=[callback], progress=False)


def moving_batches(seed=0):
    """Random crops of 2-D images, augmented; a `BatchMaker` makes the part of a process alone."""
    random = np.random.default_rng(0)
    cache = {}
    for index in range(7):
        image = random.normal(size=(1, 11, 12)).astype(np.float32)
        cache[f"case{index}"] = Entry(image, (image[0] > 0).astype(np.uint8))
    names = list(cache)
    sampler = TwoStreamSampler(names[:3], names[3:], labelled_per_batch=2, unlabelled_per_batch=4, seed=seed)
    return BatchMaker(cache, sampler, patch=(8, 8), seed=seed, labelled_augment=Augment.strong())


def train_moving(rank, folder, seeds=(0, 0)):
    return train("cross_pseudo", folder, batches=moving_batches(seeds[rank]))


def poisoned(rank, folder):
    """The part of rank 1 has a NaN in step 1."""

    def batches(step):
        batch = whole_batch(step)
        if step == 1:
            batch.labelled[2, 0, 0, 0] = float("nan")
        return batch

    return train("cross_pseudo", folder, batches=batches, norm="batch")


def terminated(rank, folder):
    """SIGTERM comes to rank 1 alone, in step 3."""

    def batches(step):
        if step == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2 if step >= 3 else 0)
        return whole_batch(step)

    config = FitConfig(steps=1000, learning_rate=0.05, precision="fp32", checkpoint_every=1000)
    return train("supervised", folder, config, batches=batches)


def train_folder(rank, folder, data, told):
    """What `ssmis train` calls, on a folder of scans; the first process takes its time to write what others read."""
    if rank == 0:
        time.sleep(0.3)
    lines: list[str] = []
    options = {"recipe": "mean_teacher", "nets": ["unet"], "steps": 2, "width": 2, "precision": "fp32", "test": "1"}
    try:
        done = train_own(str(data), lines.append, out=str(folder), progress=False, device="cpu", **options)
    finally:
        (told / str(rank)).write_text("\n".join(lines))
    return [case.id for case in done.split.labelled], done.plan, done.fit.recipe.state_dict()


def in_processes(job, folder: Path, *args, size: int = 2, **kwargs) -> list:
    """What `job(rank, folder, ...)` returned or raised in each of `size` processes of one group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "ssmis.engine", "ssmis.recipes", "recipes.small"])
    answers = folder.parent / f"{folder.name}-answers-{time.monotonic_ns()}"
    answers.mkdir()
    processes = [
        context.Process(target=_work, args=(rank, size, answers, job, folder, args, kwargs)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + TIMEOUT
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    assert not hung, f"{len(hung)} of {size} processes did not end in {TIMEOUT} s"
    return [pickle.loads((answers / str(rank)).read_bytes()) for rank in range(size)]


def _work(rank, size, answers, job, folder, args, kwargs):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{answers}/store", rank=rank, world_size=size, timeout=timedelta(seconds=300)
    )
    try:
        answer = job(rank, folder, *args, **kwargs)
    except BaseException as error:
        answer = error
    (answers / str(rank)).write_bytes(pickle.dumps(answer))
    if dist.is_initialized():
        dist.destroy_process_group()
