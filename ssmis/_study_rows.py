# SPDX-License-Identifier: Apache-2.0
"""The rows of a study: name -> builder of a recipe, and the cases of the row with all labels."""

import re
from collections.abc import Callable, Mapping, Sequence

from ssmis.data import Case, Split
from ssmis.engine import Protocol
from ssmis.recipes import Recipe, Supervised
from ssmis.registry import RECIPES

Build = Callable[[Protocol], Recipe]
SUPERVISED, ALL_LABELS = "supervised", "all_labels"


def rows_of(recipe: str | Build | Mapping[str, Build], *, ceiling: bool) -> dict[str, Build]:
    """Name -> builder, the supervised row first, the one with all labels last."""
    if isinstance(recipe, str):
        entry = RECIPES[recipe]  # an unknown name is told here

        def by_name(protocol: Protocol, name: str = entry.name) -> Recipe:
            extra = {"preset": protocol.preset} if name == "dual_uncertainty" else {}
            made: Recipe = RECIPES.create(name, protocol.nets(), **extra)
            return made

        recipe = {recipe: by_name}
    elif not isinstance(recipe, Mapping):
        recipe = {getattr(recipe, "__name__", "method").strip("<>"): recipe}
    if not recipe:
        raise ValueError("recipe is empty; expected at least one row")
    for name in recipe:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
            raise ValueError(f"row {name!r} names a folder; expected letters, digits and _ . + -")
        if name in ("cache", "study.json", "table.md"):
            raise ValueError(f"row {name!r} has the name of something else in the folder; expected another one")
    first = next(iter(recipe.values()))

    def baseline(protocol: Protocol) -> Recipe:
        method = first(protocol)
        return Supervised(dict(method.students))

    if ALL_LABELS in recipe:
        raise ValueError(f"row {ALL_LABELS!r} is made of `everything`; expected another name for a method")
    rows = {SUPERVISED: recipe.get(SUPERVISED, baseline), **recipe}
    return {**rows, ALL_LABELS: rows[SUPERVISED]} if ceiling else rows


def check_everything(everything: Sequence[Case], split: Split) -> None:
    """Refuse cases of the row `all_labels` that it cannot learn from, or must not."""
    if unknown := [case.id for case in everything if not case.labelled]:
        raise ValueError(f"everything holds cases without a label: {', '.join(unknown[:5])}; expected labelled ones")
    ids = [case.id for case in everything]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"everything holds cases twice: {', '.join(twice[:5])}; expected each once")
    closed = {key for case in (*split.val, *split.test) for key in (case.id, case.image)}
    if shared := [case.id for case in everything if closed & {case.id, case.image}]:
        raise ValueError(
            f"everything holds validation or test cases: {', '.join(shared[:5])}; expected none, as in all training"
        )
