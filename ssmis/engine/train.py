# SPDX-License-Identifier: Apache-2.0
"""From a folder of scans to a run folder."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ssmis._checks import check_choice
from ssmis._optional import require
from ssmis._options_json import checked
from ssmis.data import (
    Augment,
    Cache,
    Case,
    CaseFacts,
    DataError,
    Plan,
    Split,
    find_dataset,
    make_plan,
    read_list,
    survey,
)
from ssmis.data.components import pieces_of
from ssmis.data.layouts import Dataset
from ssmis.data.plan import INTENSITIES
from ssmis.data.splits import make_split, read_split, write_split
from ssmis.data.texts import read_json
from ssmis.engine.config import FitConfig
from ssmis.engine.distributed import World, join, together
from ssmis.engine.fit import FitResult, fit
from ssmis.engine.lock import locked
from ssmis.engine.protocol import Protocol
from ssmis.engine.runtime import pick_device, pick_precision
from ssmis.engine.trained import DROPOUT, build_recipe, norm_of, preset_of, spelled
from ssmis.nets.blocks import NORMS
from ssmis.options import TrainOptions, gathered
from ssmis.recipes import Recipe

UPRIGHT = replace(Augment.strong(), flip_axes=(), rot90=False, affine_probability=0.5)
TURNED = replace(Augment.strong(), affine_probability=0.5)


@dataclass(frozen=True)
class TrainResult:
    """A finished training: its run folder, the plan, the split and what `fit` returned."""

    folder: Path
    plan: Plan
    split: Split
    fit: FitResult


def train(
    data: str | Path | TrainOptions, tell: Callable[[str], object] = lambda text: None, **options: Any
) -> TrainResult:
    """Train on a folder of scans; `ssmis train` is this function.

    Writes into the run folder what `fit` writes, and `options.json`, `config.yaml` (the same, for `--config`),
    `plan.json` (preprocessing) and `split/` (list files). A cache of the prepared cases lies beside the run.

    Args:
        data: folder or table, or all options in one object.
        tell: called with lines about what was found and decided.
        options: of `TrainOptions`.

    Of the processes that `torchrun` starts, the first one plans, writes and tells; the others read what it wrote.

    Raises:
        DataError: something is wrong with the data; what, by file name.
        FileExistsError: the run folder holds a run, and `resume` is not set; or another process trains there.
        ValueError: an option that is out of range, or another one than the run that is resumed was begun with.
    """
    chosen = gathered(TrainOptions, data, options)
    chosen = resolved(chosen)
    world = join()
    with together(world), locked(Path(str(chosen.out)), when=world.main, again=True):  # before the plan is written
        return _train(chosen, tell if world.main else lambda text: None, world)


def _train(chosen: TrainOptions, tell: Callable[[str], object], world: World) -> TrainResult:
    folder = Path(str(chosen.out))
    with world.main_first():
        plan, split, cache = _prepared(chosen, tell, folder, main=world.main)
    protocol = _protocol(plan, split, chosen)
    torch.manual_seed(chosen.seed)
    recipe = build_recipe(chosen, plan)
    for line in _about_method(chosen, plan, recipe):
        tell(line)
    unlabelled = () if chosen.recipe == "supervised" else split.unlabelled
    facts = protocol.facts(labelled=split.labelled, unlabelled=unlabelled)
    facts |= {"recipe": chosen.recipe, "preset": preset_of(chosen), "coefficients": spelled(chosen.coefficients)}
    facts |= {"norm": norm_of(chosen, plan), "plan": json.loads(json.dumps(asdict(plan)))}
    result = fit(
        recipe,
        protocol.batches(cache, split.labelled, unlabelled),
        protocol.fit,
        out=folder,
        resume=chosen.resume,
        facts=facts,
        held_out=[*split.val, *split.test],
        progress=chosen.progress and world.main,
    )
    return TrainResult(folder, plan, split, result)


def _prepared(
    chosen: TrainOptions, tell: Callable[[str], object], folder: Path, *, main: bool
) -> tuple[Plan, Split, Cache]:
    """Plan, split and cache: made and written by the first process, read by the others and by a resumed run."""
    dataset = find_dataset(chosen.data)
    tell(f"{dataset.layout} in {dataset.root}: {len(dataset.labelled)} labelled, {len(dataset.unlabelled)} unlabelled")
    started = (folder / "plan.json").is_file() and (folder / "checkpoints" / "last.pt").exists()
    if main and started and not chosen.resume:
        raise FileExistsError(f"{folder} holds a run already; add --resume, or choose another folder with --out")
    if main and started:
        _check_options(chosen, folder / "options.json")
    if started or not main:  # what was stopped before its first checkpoint is planned anew
        plan, split = Plan.read(folder / "plan.json"), read_split(dataset, folder / "split")
    else:
        plan, split = _planned(dataset, chosen, folder)
    for line in _about(plan, split):
        tell(line)
    cases = [*split.labelled, *split.unlabelled]
    return plan, split, _cache(plan, cases, folder.parent / "cache", progress=chosen.progress and main)


def _check_options(chosen: TrainOptions, stored: Path) -> None:
    """A resumed run takes plan and split from its folder: options that decide them must be those it began with."""
    if told := changed_options(chosen, stored):
        again = f"ssmis train --config {stored.with_name('config.yaml')} --resume"
        raise ValueError(f"{stored.parent} was begun with other options: {told}; continue with {again}")


def changed_options(chosen: TrainOptions, stored: Path) -> str:
    """What options decide a training and are not those it was begun with: "steps was 4 and is 8"; empty if none.

    Args:
        chosen: options, `resolved`.
        stored: `options.json` of the run folder.

    Raises:
        DataError: it cannot be read as options.
    """
    try:
        old = asdict(checked(TrainOptions, read_json(stored)))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{stored}: {error}") from error
    new, old = ({**own, "coefficients": spelled(own["coefficients"])} for own in (asdict(chosen), old))
    for role in ("labelled", "val", "test"):  # a list elsewhere that names the same cases is the same
        own = stored.parent / "split" / f"{role}.list"
        if Path(new[role]).is_file() and own.is_file() and set(read_list(new[role])) == set(read_list(own)):
            new[role] = old[role]
    changed = [name for name, value in new.items() if value != old[name] and name not in FREE_OPTIONS]
    return ", ".join(f"{name} was {old[name]} and is {new[name]}" for name in changed)


def resolved(options: TrainOptions) -> TrainOptions:
    """Fill in what depends on the machine and the name of the data.

    Raises:
        ValueError: a number that no training can have, an unknown intensity or precision, or a device that is not here.
    """
    for name in ("steps", "batch", "width", "memory_gb", "learning_rate", "spacing_mm", "patch"):
        value = getattr(options, name)
        for number in () if value is None else value if isinstance(value, list) else [value]:
            if not 0 < number < math.inf:
                raise ValueError(f"{name} is {value}; expected more than 0")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"seed is {options.seed}; expected 0 or more, and less than 2**63")
    if options.norm is not None:
        check_choice(options.norm, NORMS, name="norm")
    if options.intensity is not None:
        check_choice(options.intensity, INTENSITIES, name="intensity")
    device = pick_device(options.device)
    pick_precision(options.precision, device)
    steps, memory = options.steps, options.memory_gb
    if steps is None:
        steps = 6000 if device.type == "cuda" else 600
    if memory is None:
        memory = 2.0
        if device.type == "cuda":
            memory = round(0.7 * torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    name = Path(options.data).resolve().name.split(".")[0]
    out = options.out or str(Path("runs") / name / f"{options.recipe}_seed{options.seed}")
    return replace(options, steps=steps, memory_gb=memory, out=out)


def _planned(dataset: Dataset, options: TrainOptions, folder: Path) -> tuple[Plan, Split]:
    split = make_split(dataset, labelled=options.labelled, val=options.val, test=options.test, seed=options.seed)
    cases = [*split.labelled, *split.unlabelled]
    facts, issues = survey(dataset, cases, progress=progress_of(options.progress, "look"))
    serious = [issue for issue in issues if issue.serious]
    if serious:
        more = f"\n  and {len(serious) - 5} more" if len(serious) > 5 else ""
        told = "".join(f"\n  {issue}" for issue in serious[:5])
        count = f"{len(serious)} problem{'s' if len(serious) > 1 else ''}"
        raise DataError(f"{dataset.root}: {count}, see ssmis inspect {options.data}{told}{more}")
    plan = plan_from(facts, dataset, options)
    build_recipe(options, plan)  # a wrong name is told before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    write_split(split, folder / "split")
    stored = asdict(replace(options, resume=False))
    (folder / "options.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    yaml = require("yaml", extra="medical", purpose="config.yaml")
    (folder / "config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False), encoding="utf-8")
    plan.save(folder / "plan.json")
    return plan, split


def plan_from(facts: Sequence[CaseFacts], dataset: Dataset, options: TrainOptions) -> Plan:
    """The plan for cases that were looked through, with what the options say."""
    return make_plan(
        facts,
        label_names=dataset.label_names,
        channel_names=dataset.channel_names,
        spacing_mm=options.spacing_mm,
        patch=options.patch,
        batch=options.batch,
        width=options.width,
        intensity=options.intensity,
        memory_gb=options.memory_gb or 2.0,
    )


def _about(plan: Plan, split: Split) -> list[str]:
    counts = ", ".join(f"{len(getattr(split, role))} {role}" for role in ("labelled", "unlabelled", "val", "test"))
    classes = ", ".join(f"{value} {name}" for value, name in zip(plan.label_values, plan.label_names))
    spacing = " x ".join(f"{mm:.3g}" for mm in plan.spacing_mm)
    kinds = ", ".join(f"{name}: {channel.kind}" for name, channel in zip(plan.channel_names, plan.channels))
    return [
        f"split: {counts}",
        f"classes: {classes}",
        f"grid: {spacing} mm, median size {plan.size}; patch {plan.patch}, batch {plan.batch}; intensity {kinds}",
        *plan.notes,
    ]


def _about_method(options: TrainOptions, plan: Plan, recipe: Recipe) -> list[str]:
    preset = preset_of(options)
    lines = [f"method: {options.recipe}{f', preset {preset}' if preset else ''}"]
    components = getattr(getattr(recipe, "config", None), "components", False)
    if components is False:
        return lines
    kept = pieces_of(components, classes=plan.classes)
    for told, those in (("only the largest piece", kept), ("all pieces", set(range(1, plan.classes)) - set(kept))):
        if those:
            names = ", ".join(f"{plan.label_values[index]} {plan.label_names[index]}" for index in sorted(those))
            lines.append(f"pseudo-labels keep {told} of: {names}")
    return lines


def _protocol(plan: Plan, split: Split, options: TrainOptions) -> Protocol:
    semi = options.recipe != "supervised" and split.unlabelled
    batch = min(plan.batch, len(split.labelled), *([len(split.unlabelled)] if semi else []))
    steps = options.steps or 1
    cubes = len(set(plan.spacing_mm)) == 1
    settings = FitConfig(
        steps=steps,
        optimizer="adamw",
        learning_rate=options.learning_rate,
        weight_decay=1e-2,
        schedule="cosine",
        warmup=0.02,
        clip_norm=5.0,
        ema_decay=min(0.999, max(0.9, 1 - 10 / steps)),
        precision=options.precision,
        device=options.device,
        seed=options.seed,
        checkpoint_every=max(1, min(200, steps // 10)),
    )
    return Protocol(
        name="own",
        patch=plan.patch,
        widths=plan.widths,
        dropout=DROPOUT,
        preset=preset_of(options) or "",
        labelled_per_batch=batch,
        unlabelled_per_batch=batch,
        augment=replace(TURNED if options.mirror else UPRIGHT, spacing_mm=None if cubes else plan.spacing_mm),
        strong_views=1,
        foreground=0.5,
        blending="gaussian",
        fit=settings,
        classes=tuple(range(1, plan.classes)),
    )


def _cache(plan: Plan, cases: Sequence[Case], folder: Path, *, progress: bool) -> Cache:
    """Prepared cases; another plan has another folder."""
    grid = {name: value for name, value in asdict(plan).items() if name in _PREPARES}
    digest = hashlib.sha256(json.dumps(grid).encode()).hexdigest()[:12]
    return Cache.build(cases, folder / digest, load=plan.load, progress=progress_of(progress, "prepare"))


def progress_of(show: bool, what: str) -> Callable[[Iterable[Any]], Iterable[Any]] | None:
    """A progress bar around an iterable, if wanted."""
    if not show:
        return None
    tqdm = require("tqdm", extra="medical", purpose="the progress bar (or --progress=false)").tqdm
    return lambda items: tqdm(items, desc=what, unit="case", dynamic_ncols=True, leave=False)


FREE_OPTIONS = ("data", "out", "device", "memory_gb", "resume", "progress")
_PREPARES = ("dims", "channels", "label_values", "spacing_mm")
