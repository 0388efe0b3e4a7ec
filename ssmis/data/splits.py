# SPDX-License-Identifier: Apache-2.0
"""Splits of a data set of one's own: by subject, seeded, written to list files and read back."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssmis.data.cases import Case, DataError, Split
from ssmis.data.la import read_list
from ssmis.data.layouts import Dataset
from ssmis.data.sampling import batch_key
from ssmis.data.texts import read_text

ROLES = ("labelled", "unlabelled", "val", "test")


def make_split(
    dataset: Dataset, *, labelled: str | int = "all", val: str | int = 0, test: str | int = "20%", seed: int = 0
) -> Split:
    """Split the cases of a data set.

    Test and validation cases have labels and are drawn first, by subject; every other case of their subjects leaves
    the training. Of the rest, `labelled` says how many keep their labels: the order is drawn once, so that fewer are
    among more. Training cases beyond them, and those without a label, are unlabelled.

    Args:
        dataset: from `find_dataset`; cases that it calls "val" or "test" and that have labels are those, and `val` and
            `test` then count for nothing.
        labelled: a number, a share of the labelled training cases such as "10%", "all", or a list file of case ids.
        val: likewise, of all labelled cases; "all" makes no sense.
        test: likewise. A share of at least 5 cases gives at least one.
        seed: of the draw.

    Raises:
        DataError: an amount that is none, more cases than there are, or an id that no labelled case has.
    """
    order = np.random.default_rng(batch_key(seed, 0)).permutation(len(dataset.cases))
    drawn = [dataset.cases[index] for index in order]
    able = [case for case in drawn if case.labelled]
    declared = {role: [c for c in dataset.cases if c.labelled and dataset.role(c) == role] for role in ("val", "test")}
    groups: dict[str, list[Case]] = {}
    for role, amount in (("test", test), ("val", val)):
        taken = {_subject(case) for group in groups.values() for case in group}
        if declared["test"] or declared["val"]:
            groups[role] = declared[role]
        else:
            free = [case for case in able if _subject(case) not in taken]
            groups[role] = _take(free, amount, len(able), role, by_subject=True)
    held = {_subject(case) for group in groups.values() for case in group}
    train = [case for case in drawn if _subject(case) not in held and dataset.role(case) == "train"]
    own = [case for case in train if case.labelled]
    if not own:
        raise DataError(f"{dataset.root}: no labelled case is left for training ({len(able)} have a label)")
    kept = _take(own, labelled, len(own), "labelled")
    if not kept:
        raise DataError(f"labelled is {labelled!r}; expected at least one case")
    ids = {case.id for case in kept}
    position = {case.id: index for index, case in enumerate(dataset.cases)}
    rest = sorted((case for case in train if case.id not in ids), key=lambda case: position[case.id])
    return Split(
        labelled=tuple(kept),
        unlabelled=tuple(replace(case, label=None) for case in rest),
        val=tuple(groups["val"]),
        test=tuple(groups["test"]),
    )


def write_split(split: Split, folder: Path | str) -> None:
    """Write `labelled.list`, `unlabelled.list`, `val.list` and `test.list`, an id a line."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for role in ROLES:
        cases: Sequence[Case] = getattr(split, role)
        (folder / f"{role}.list").write_text("".join(f"{case.id}\n" for case in cases), encoding="utf-8")


def read_split(dataset: Dataset, folder: Path | str) -> Split:
    """Read what `write_split` wrote.

    Raises:
        DataError: the lists are not there, or name cases that the data set does not have, or has no label of.
    """
    folder = Path(folder)
    known = {case.id: case for case in dataset.cases}
    groups: dict[str, tuple[Case, ...]] = {}
    for role in ROLES:
        path = folder / f"{role}.list"
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; expected the lists of a split")
        ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        groups[role] = tuple(_named(ids, known, path))
        if role != "unlabelled" and (bare := [case.id for case in groups[role] if not case.labelled]):
            raise DataError(f"{path}: case {bare[0]!r} has no label; expected one, as when the list was written")
    groups["unlabelled"] = tuple(replace(case, label=None) for case in groups["unlabelled"])
    return Split(**groups)


def _take(cases: Sequence[Case], amount: str | int, total: int, role: str, *, by_subject: bool = False) -> list[Case]:
    text = str(amount).strip()
    if text.lower() == "all":
        return list(cases)
    if re.fullmatch(r"\d+(\.\d+)?%", text):
        share = float(text[:-1]) / 100
        count = round(share * total)
        if (role == "labelled" and share > 0) or (share > 0 and total >= 5):
            count = max(count, 1)
    elif re.fullmatch(r"\d+", text):
        count = int(text)
    elif Path(text).is_file():
        return list(_named(read_list(text), {case.id: case for case in cases}, Path(text)))
    else:
        raise DataError(f"{role} is {amount!r}; expected a number, a share such as 10%, or a list file of case ids")
    if count > len(cases):
        raise DataError(f"{role} is {amount!r}; there are {len(cases)} cases with a label to choose from")
    if not by_subject:
        return list(cases[:count])
    taken: list[Case] = []
    subjects: dict[str, list[Case]] = {}
    for case in cases:
        subjects.setdefault(_subject(case), []).append(case)
    for own in subjects.values():
        if len(taken) >= count:
            break
        taken += own
    return taken


def _named(ids: Iterable[str], known: Mapping[str, Case], path: Path) -> Iterable[Case]:
    for name in ids:
        if name not in known:
            near = ", ".join(list(known)[:3])
            raise DataError(f"{path}: there is no case {name!r} to take; the first ones are {near}")
        yield known[name]


def _subject(case: Case) -> str:
    return case.subject or case.id
