# SPDX-License-Identifier: Apache-2.0
"""Runs on data of one's own: nets and recipe from their names, and a trained run back from its folder."""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from torch import nn

from ssmis._options_json import checked, fits
from ssmis.data import DataError, Plan
from ssmis.data.texts import read_json
from ssmis.engine.checkpoint import load_checkpoint
from ssmis.engine.runtime import pick_device, pick_precision
from ssmis.nets import EMA
from ssmis.options import TrainOptions
from ssmis.recipes import Recipe, dual_nets
from ssmis.registry import NETS, RECIPES

if TYPE_CHECKING:
    from ssmis.engine.infer import Predictor

P = TypeVar("P", bound="Predictor")
DROPOUT = 0.1
MANY = 8  # labelled patches a step, of which batch norm learns enough
TIMM_STRIDE = 32  # of most encoders there, whatever the pooling of the plan


@dataclass(frozen=True)
class TrainedRun:
    """A run folder of `train`: where it is, its options and its plan."""

    folder: Path
    options: TrainOptions
    plan: Plan

    @classmethod
    def read(cls, folder: Path | str) -> "TrainedRun":
        """Read the settings of a run.

        Raises:
            DataError: it is no run folder of `train`, or its settings cannot be read; the message names the file.
        """
        folder = Path(folder)
        if not (folder / "options.json").is_file():
            raise DataError(f"{folder}: this is no run of ssmis train; expected options.json and plan.json in it")
        try:
            options = checked(TrainOptions, read_json(folder / "options.json"))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{folder / 'options.json'}: cannot be read ({error})") from error
        return cls(folder, options, Plan.read(folder / "plan.json"))

    def recipe(self) -> Recipe:
        """The trained recipe: the averaged students where the run kept an average.

        Raises:
            DataError: there is no checkpoint yet, or it is not of the nets that options and plan name.
            CheckpointError: it cannot be read.
        """
        path = self.folder / "checkpoints" / "last.pt"
        if not path.is_file():
            raise DataError(f"{path}: there is no checkpoint; the run was not trained yet")
        state = load_checkpoint(path)
        try:
            recipe = build_recipe(self.options, self.plan)
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.folder / 'options.json'}: {error}") from error
        try:
            recipe.load_state_dict(state["recipe"])
            if state["ema"] is not None:
                average = EMA(recipe.students, decay=0.0)
                average.load_state_dict(state["ema"])
                recipe.students.load_state_dict(average.module.state_dict())
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            told = str(error)[:500]
            raise DataError(f"{path}: does not hold what options.json and plan.json name ({told})") from error
        return recipe.eval()


def build_nets(names: Sequence[str] | None, plan: Plan, *, single: bool = False, norm: str) -> dict[str, nn.Module]:
    """Build nets for a plan.

    Args:
        names: of the registry, each perhaps with an encoder: `timm_unet:resnet18`; None: the pair of `dual_nets`.
        plan: shapes them.
        single: without names, the V-Net alone.
        norm: of those that have a choice, see `norm_of`.

    Raises:
        ValueError: an unknown net, or one that does not work in the plan's number of axes.
    """
    shape: dict[str, Any] = {
        "in_channels": len(plan.channels),
        "classes": plan.classes,
        "dims": plan.dims,
        "widths": plan.widths,
        "dropout": DROPOUT,
        "norm": norm,
        "pooling": plan.pooling,
        "kernels": plan.kernels,
    }
    if not names:
        pair = dual_nets(**shape)
        return {"vnet": pair["vnet"]} if single else pair
    nets: dict[str, nn.Module] = {}
    for name in names:
        kind, _, encoder = name.partition(":")
        entry = NETS[kind]
        if plan.dims not in entry.example.dims:
            raise ValueError(f"net {kind!r} works in {entry.example.dims} dimensions; the data have {plan.dims}")
        accepted = inspect.signature(entry.factory).parameters
        if encoder and "encoder" not in accepted:
            raise ValueError(f"net {name!r} names an encoder; {kind!r} has none to choose")
        arguments = {key: value for key, value in shape.items() if key in accepted}
        key = kind if kind not in nets else f"{kind}_{len(nets) + 1}"
        nets[key] = NETS.create(kind, **arguments, **({"encoder": encoder} if encoder else {}))
    return nets


def build_recipe(options: TrainOptions, plan: Plan) -> Recipe:
    """Build the recipe of `options`, with two nets where it takes them and none is named.

    Where a preset keeps one component of each class of a pseudo-label, and no coefficient says otherwise, it is of the
    classes that are one piece in the labels (`Plan.one_piece`).

    Raises:
        ValueError: an unknown recipe, net, preset or coefficient, a coefficient that is no NAME=VALUE or out of range,
            or nets that the recipe does not take.
    """
    entry = RECIPES[options.recipe]
    accepted = inspect.signature(entry.factory).parameters
    arguments: dict[str, Any] = {}
    if "preset" in accepted and (preset := preset_of(options)) is not None:
        arguments["preset"] = preset
    elif options.preset is not None:
        raise ValueError(f"preset is {options.preset!r}; the recipe {options.recipe!r} has none")
    coefficients = read_coefficients(options.coefficients)
    if taken := sorted({"nets", "preset", "net"} & coefficients.keys()):
        raise ValueError(f"{taken[0]} is no coefficient; expected an option of its own")
    factory = entry.factory
    if inspect.isclass(factory) and issubclass(factory, Recipe):
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        fitting = factory.arguments_for(plan.patch).items()
        arguments |= {
            name: own for name, own in fitting if (takes_all or name in accepted) and name not in coefficients
        }
    _check_types(coefficients, factory.__init__ if inspect.isclass(factory) else factory)

    def build(names: list[str] | None, **choice: bool) -> Recipe:
        nets = build_nets(names, plan, norm=norm_of(options, plan), **choice)
        try:
            recipe: Recipe = factory(nets, **arguments, **coefficients)
        except TypeError as error:
            if not coefficients:
                raise
            told = f"coefficients are {', '.join(options.coefficients or ())}: {error}"
            raise ValueError(f"{told}; see the recipe {options.recipe!r} for its own") from error
        if is_dataclass(config := getattr(recipe, "config", None)):
            _check_types(coefficients, type(config))
            if "components" not in coefficients and plan.one_piece is not None and getattr(config, "components", False):
                recipe.config = replace(config, components=plan.one_piece)  # type: ignore[type-var, assignment]
        return recipe

    if options.nets:
        return build(options.nets)
    try:
        return build(None)
    except ValueError as refused:
        if "exactly one" not in str(refused):
            raise
    return build(None, single=True)


def _check_types(coefficients: Mapping[str, Any], owner: Any) -> None:
    """Refuse what a recipe would misread, or trip over in some later step: a count of 1.5, "no" for false."""
    hints = get_type_hints(owner)
    for name, value in coefficients.items():
        if not fits(value, hint := hints.get(name, Any)):
            told = re.sub(r"<class '(\w+)'>|typing\.|collections\.abc\.", r"\1", str(hint))
            raise ValueError(f"coefficients has {name}={_spelled(value)}, which "
                             f"is {type(value).__name__}; expected {told}, as JSON writes it")  # fmt: skip


def norm_of(options: TrainOptions, plan: Plan) -> str:
    """The norm of the nets: the options', else one of single images where a batch is too small to say much.

    Instance norm has nothing to normalise in a map of one voxel: there it is group norm.
    """
    if options.norm is not None:
        return options.norm
    if plan.batch >= MANY:
        return "batch"
    least = TIMM_STRIDE if any(name.partition(":")[0] == "timm_unet" for name in options.nets or ()) else 1
    coarsest = [min(size // math.prod(steps), -(-size // least)) for size, steps in zip(plan.patch, zip(*plan.pooling))]
    return "group" if math.prod(coarsest) <= 1 else "instance"


def read_coefficients(words: Sequence[str] | None) -> dict[str, Any]:
    """Values of NAME=VALUE words: numbers, true, false and null as in JSON, and any other word as it stands.

    Raises:
        ValueError: a word without a name or a value, or a name that comes twice.
    """
    found: dict[str, Any] = {}
    for word in words or ():
        name, _, value = word.partition("=")
        if not name.isidentifier() or not value:
            raise ValueError(f"coefficients has {word!r}; expected NAME=VALUE, such as contrast_weight=0.2")
        if name in found:
            raise ValueError(f"coefficients has {name} twice; expected it once")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def spelled(words: Sequence[str] | None) -> list[str] | None:
    """NAME=VALUE words in one order and spelling, so that equal coefficients are equal words.

    Raises:
        ValueError: see `read_coefficients`.
    """
    if words is None:
        return None
    return sorted(f"{name}={_spelled(value)}" for name, value in read_coefficients(words).items())


def _spelled(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def preset_of(options: TrainOptions) -> str | None:
    """The preset that a recipe is built with: the options', else the one for few labels."""
    return options.preset or ("copy_paste" if options.recipe == "dual_uncertainty" else None)


def run_folders(run: Path | str | Sequence[Path | str]) -> list[Path]:
    """Run folders: the one given, those inside it, or all of several.

    Raises:
        DataError: there is none.
    """
    if not isinstance(run, str | Path):
        return [folder for one in run for folder in run_folders(one)]
    run = Path(run)
    if not run.is_dir():
        raise DataError(f"{run}: there is no such run folder")
    if (run / "options.json").is_file():
        return [run]
    found = sorted(path.parent for path in run.glob("*/options.json"))
    if not found:
        raise DataError(f"{run}: this is no run of ssmis train, and it holds none")
    return found


def load_predictor(
    kind: type[P], run: Path | str | Sequence[Path | str], *, flips: bool, device: str, **options: Any
) -> P:
    """Build a `Predictor` from run folders, see `Predictor.load`."""
    runs = [TrainedRun.read(folder) for folder in run_folders(run)]
    first = runs[0]
    for other in runs[1:]:
        differs = _difference(first.plan, other.plan)
        if differs:
            raise DataError(f"{other.folder} and {first.folder} differ in {differs}; their results cannot be averaged")
    where = pick_device(device)
    recipes = [trained.recipe().to(where) for trained in runs]
    settings: dict[str, Any] = {
        "patch": first.plan.patch,
        "plan": first.plan,
        "flips": tuple(range(first.plan.dims)) if flips else (),
        "device": where,
        "precision": pick_precision(first.options.precision, where),
    }
    return kind(recipes, **settings | options)


def _difference(first: Plan, other: Plan) -> str:
    """What two plans must share, so that a prepared image is right for both."""

    def facts(plan: Plan) -> Mapping[str, Any]:
        return {name: getattr(plan, name) for name in ("dims", "channels", "label_values", "spacing_mm", "patch")}

    ours, theirs = facts(first), facts(other)
    return ", ".join(name for name in ours if ours[name] != theirs[name])
