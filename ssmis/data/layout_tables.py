# SPDX-License-Identifier: Apache-2.0
"""Layouts that a text file tells: CSV and JSON tables, and HDF5 volumes with list files."""

import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmis.data.cases import Case, DataError, check_name
from ssmis.data.families import FAMILIES
from ssmis.data.la import read_list
from ssmis.data.layouts import Dataset
from ssmis.data.suffixes import stem_of
from ssmis.data.texts import read_json, read_text

TABLES = ("cases.csv", "cases.tsv", "cases.json", "dataset.csv", "data.csv")
ROLES = {"train": "train", "training": "train", "": "train", "val": "val", "valid": "val", "validation": "val",
         "test": "test", "unlabelled": "train", "unlabeled": "train"}  # fmt: skip


def table_in(root: Path) -> Dataset | None:
    """A folder that holds one of `TABLES`."""
    found = next((root / name for name in TABLES if (root / name).is_file()), None)
    return None if found is None else table(found)


def table(path: Path) -> Dataset:
    """Read a table with a line a case: `image`, and perhaps `label`, `split`, `id`, `subject`, `spacing_mm`.

    Paths are relative to the table, and do not leave its folder. Several channels are separated by `;`, and so are the
    lengths of `spacing_mm`. An empty label is an unlabelled case. JSON holds a list of objects with these keys, or such
    a list under "cases".

    Raises:
        DataError: the table cannot be read, lacks the column `image`, or names a file that is not there or lies
            outside of the table's folder; a split or a spacing that is none.
    """
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    cases, roles = [], {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, case {number}"
        if not row.get("image"):
            raise DataError(f"{where}: there is no 'image'; the columns are {', '.join(row)}")
        files = [file_of(path, name.strip(), where) for name in row["image"].split(";")]
        label = file_of(path, row["label"], where) if row.get("label") else None
        role = ROLES.get(row.get("split", "").lower())
        if role is None:
            raise DataError(f"{where}: the split is {row['split']!r}; expected train, val, test or nothing")
        if row.get("split", "").lower() in ("unlabelled", "unlabeled"):
            label = None
        try:
            spacing = tuple(map(_length, re.split("[;x ]+", row["spacing_mm"]))) if row.get("spacing_mm") else ()
        except ValueError as error:
            raise DataError(f"{where}: spacing_mm is {row['spacing_mm']!r}; expected lengths as 0.5;0.5;3") from error
        name = check_name(row.get("id") or stem_of(files[0]), where)
        if name in roles:
            raise DataError(f"{where}: case {name!r} was already named; expected another 'id'")
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
    name = next(iter(rows[0]), "") if rows else ""
    size = next((column for column in (rows[0] if rows else ()) if re.search("pixel|spacing", column)), None)
    if size is None:
        raise DataError(f"{path}: there is no column with 'pixel' or 'spacing' in its name")
    try:
        return {row[name]: (_length(row[size]), _length(row[size])) for row in rows if row[name]}
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def file_of(table: Path, name: str, where: str) -> Path:
    """The file that a table names, relative to it.

    Raises:
        DataError: it is not there, or not inside of the table's folder.
    """
    file = table.parent / check_name(name, where, file=True)
    try:
        there = file.is_file()
    except (OSError, ValueError):  # a name that is too long
        there = False
    if not there:
        raise DataError(f"{where}: there is no file {file}")
    return file


def _csv_rows(path: Path) -> list[dict[str, str]]:
    text = read_text(path)
    head = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count), restval="")
    try:
        return [{str(key).strip().lower(): _text(value) for key, value in row.items() if key} for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error


def _json_rows(path: Path) -> list[dict[str, str]]:
    rows = read_json(path, (list, dict))
    rows = rows.get("cases") if isinstance(rows, Mapping) else rows
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{path}: expected a list of objects with 'image' and 'label', or such a list under 'cases'")
    return [{str(key).lower(): _text(value) for key, value in row.items()} for row in rows]


def _length(text: str) -> float:
    length = float(text)
    if not 0 < length < math.inf:
        raise ValueError(f"{text!r} is no length")
    return length


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return "" if value is None else str(value).strip()
