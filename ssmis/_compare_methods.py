# SPDX-License-Identifier: Apache-2.0
"""The methods of a comparison: recipes, and the same recipe under several names with other presets or coefficients."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssmis.engine.trained import spelled
from ssmis.options import CompareOptions, TrainOptions
from ssmis.registry import RECIPES
from ssmis.report._methods import SEED
from ssmis.report.html import MOST_METHODS


@dataclass(frozen=True)
class Method:
    """What the runs of a method have of their own; see `TrainOptions`."""

    recipe: str
    preset: str | None
    coefficients: list[str] | None


def methods_of(chosen: CompareOptions) -> dict[str, Method]:
    """Name -> method, in the order of `recipes`; the first is the baseline.

    Raises:
        ValueError: an unknown recipe, a name that its folder or report could not have, too many methods, or a preset or
            coefficient of none of them.
    """
    words = ["supervised", "dual_uncertainty"] if chosen.recipes is None else chosen.recipes
    recipes = {name: recipe or name for name, _, recipe in (word.partition("=") for word in words)}
    if not words or len({name.lower() for name in recipes}) < len(words):  # some disks know no capitals
        raise ValueError(f"recipes is {words}; expected at least one, each once, or under other names as NAME=RECIPE")
    for name, recipe in recipes.items():
        RECIPES[recipe]  # an unknown one is an error that names the known ones
        _check_name(name, recipe, baseline=next(iter(recipes)))
    rows = len(recipes) + chosen.equal_time
    if chosen.equal_time and len(recipes) == 1:
        raise ValueError("equal_time with one method; expected another one, beside which the baseline is trained")
    if rows > MOST_METHODS:
        told = f"recipes has {len(recipes)} methods{' besides the row of equal_time' if chosen.equal_time else ''}"
        raise ValueError(f"{told}; expected at most {MOST_METHODS} rows in a report: "
                         "the same call with some of them, then with others, trains them on one split")  # fmt: skip
    known = ", ".join(recipes)
    presets: dict[str, str] = {}
    for word in chosen.presets or ():
        name, _, preset = word.partition("=")
        if name not in recipes or not preset or name in presets:
            raise ValueError(f"presets has {word!r}; expected METHOD=PRESET, once for each of {known}")
        presets[name] = preset
    own: dict[str, dict[str, str]] = {name: {} for name in recipes}
    shared: dict[str, str] = {}
    for word in chosen.coefficients or ():
        coefficient = word.partition("=")[0]
        of, dot, name = coefficient.rpartition(".")
        if dot and of not in recipes:
            raise ValueError(f"coefficients has {word!r}; expected METHOD.NAME=VALUE of one of {known}")
        if name in (there := own[of] if dot else shared):
            raise ValueError(f"coefficients has {coefficient} twice; expected it once")
        there[name] = word.removeprefix(f"{of}.")
    methods = {}
    for name, recipe in recipes.items():
        words = list(((shared if recipe != "supervised" else {}) | own[name]).values())
        methods[name] = Method(recipe, presets.get(name), spelled(words or None))
    return methods


def by_method(runs: Mapping[Path, TrainOptions]) -> dict[str, dict[Path, TrainOptions]]:
    """Name of a method -> its runs."""
    methods: dict[str, dict[Path, TrainOptions]] = {}
    for folder, run in runs.items():
        methods.setdefault(folder.name.rpartition("_seed")[0], {})[folder] = run
    return methods


def _check_name(name: str, recipe: str, *, baseline: str) -> None:
    """Refuse a name that would be mistaken for something else."""
    if name == recipe:
        return
    wrong = ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,79}", name):
        wrong = "expected at most 80 letters, digits, _, + and -: it names a folder"
    elif name in RECIPES:
        wrong = "which is another recipe"
    elif SEED.search(name):
        wrong = "which a report takes for a seed"
    elif re.fullmatch(rf"{re.escape(baseline)}_\d+", name):
        wrong = "which is the row of equal_time"
    if wrong:
        raise ValueError(f"recipes has {name}={recipe}, whose name is {name!r}; {wrong}")
