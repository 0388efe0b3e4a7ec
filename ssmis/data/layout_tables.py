# SPDX-License-Identifier: Apache-2.0
"""Layouts that a text file tells: CSV and JSON tables, and HDF5 volumes with list files."""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmis.data.cases import Case, DataError
from ssmis.data.families import FAMILIES
from ssmis.data.la import read_list
from ssmis.data.layouts import Dataset
from ssmis.data.scans import stem_of

TABLES = ("cases.csv", "cases.tsv", "cases.json", "dataset.csv", "data.csv")
ROLES = {"train": "train", "training": "train", "": "train", "val": "val", "valid": "val", "validation": "val",
         "test": "test", "unlabelled": "train", "unlabeled": "train"}  # fmt: skip


def table_in(root: Path) -> Dataset | None:
    """A folder that holds one of `TABLES`."""
    found = next((root / name for name in TABLES if (root / name).is_file()), None)
    return None if found is None else table(found)


def table(path: Path) -> Dataset:
    """Read a table with a line a case: `image`, and perhaps `label`, `split`, `id`, `subject`, `spacing_mm`.

    Paths are relative to the table. Several channels are separated by `;`, and so are the lengths of `spacing_mm`. An
    empty label is an unlabelled case. JSON holds a list of objects with these keys, or such a list under "cases".

    Raises:
        DataError: the table cannot be read, lacks the column `image`, or names a file that is not there; a split that
            is none.
    """
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    cases, roles = [], {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, case {number}"
        if not row.get("image"):
            raise DataError(f"{where}: there is no 'image'; the columns are {', '.join(row)}")
        files = [path.parent / name.strip() for name in row["image"].split(";")]
        label = path.parent / row["label"] if row.get("label") else None
        for file in (*files, *([label] if label else [])):
            if not file.is_file():
                raise DataError(f"{where}: there is no file {file}")
        role = ROLES.get(row.get("split", "").lower())
        if role is None:
            raise DataError(f"{where}: the split is {row['split']!r}; expected train, val, test or nothing")
        if row.get("split", "").lower() in ("unlabelled", "unlabeled"):
            label = None
        try:
            spacing = tuple(float(mm) for mm in re.split("[;x ]+", row["spacing_mm"])) if row.get("spacing_mm") else ()
        except ValueError as error:
            raise DataError(f"{where}: spacing_mm is {row['spacing_mm']!r}; expected lengths as 0.5;0.5;3") from error
        name = row.get("id") or stem_of(files[0])
        cases.append(Case(name, files[0], label, spacing, tuple(files[1:]), row.get("subject", "")))
        roles[name] = role
    return Dataset(f"table {path.name}", path, tuple(cases), roles)


def h5_lists(root: Path) -> Dataset | None:
    """HDF5 volumes and lists as UA-MT and SSL4MIS share them: `train.list` beside the folder that `FAMILIES` names."""
    lists = {path.name: path for path in root.glob("*.list")}
    if not lists or not next(root.rglob("*.h5"), None):
        return None
    spacings: dict[str, tuple[float, ...]] = {}
    for family in FAMILIES.values():
        spacings.setdefault(family.file, () if family.volume_file else family.spacing_mm)
        if family.volume_file:
            spacings.setdefault(family.volume_file, family.spacing_mm)
    spacings |= {"{}.h5": (), "data/{}.h5": (), "{}": ()}
    cases: dict[str, Case] = {}
    roles: dict[str, str] = {}
    for file, path in sorted(lists.items(), key=lambda item: ("train" not in item[0], item[0])):
        role = next((role for role in ("test", "val", "train") if role in file), "train")
        for name in read_list(path):
            there = {root / pattern.format(name): spacing for pattern, spacing in reversed(spacings.items())}
            found = next((candidate for candidate in reversed(there) if candidate.is_file()), None)
            if found is None:
                raise DataError(f"{path}: case {name!r} has no file; expected for example {next(reversed(there))}")
            if name not in cases:
                cases[name] = Case(name, found, None if "unlabel" in file else found, there[found])
            if role != "train" or name not in roles:
                roles[name] = role
    return Dataset("HDF5 with lists", root, tuple(cases.values()), roles)


def pixel_sizes(root: Path) -> dict[str, tuple[float, float]]:
    """File name -> pixel size in mm, from a `pixel_size.csv` (or `spacing.csv`): a column of names and one of sizes.

    Raises:
        DataError: a size is no number.
    """
    for path in (root / "pixel_size.csv", root / "pixel_sizes.csv", root / "spacing.csv"):
        if path.is_file():
            break
    else:
        return {}
    rows = _csv_rows(path)
    name = next(iter(rows[0])) if rows else ""
    size = next((column for column in (rows[0] if rows else ()) if re.search("pixel|spacing", column)), None)
    if size is None:
        raise DataError(f"{path}: there is no column with 'pixel' or 'spacing' in its name")
    try:
        return {row[name]: (float(row[size]), float(row[size])) for row in rows if row[name]}
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _csv_rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error
    head = text.split("\n", 1)[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=head.count), restval="")
    return [{str(key).strip().lower(): _text(value) for key, value in row.items() if key} for row in reader]


def _json_rows(path: Path) -> list[dict[str, str]]:
    try:
        rows: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: this is no JSON ({error})") from error
    rows = rows.get("cases") if isinstance(rows, Mapping) else rows
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{path}: expected a list of objects with 'image' and 'label', or such a list under 'cases'")
    return [{str(key).lower(): _text(value) for key, value in row.items()} for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return "" if value is None else str(value).strip()
