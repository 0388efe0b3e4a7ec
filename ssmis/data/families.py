# SPDX-License-Identifier: Apache-2.0
"""Families of public splits: where a data set's h5 files and lists are, and which numbers may be compared."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssmis.data.cases import Case, DataError, Split, check_name, check_no_overlap
from ssmis.data.la import FILE, FOLDER, SPACING_MM, find_la, read_list


@dataclass(frozen=True)
class Family:
    """A data set with its lists. Results on two families are never in one table, even if the images are the same.

    Attributes:
        name: of the family.
        file: path of a case's file in the data set's folder; `{}` stands for the name in the list.
        lists: role -> list file. Roles are "train" (or "labelled" and "unlabelled", where the authors' lists say
            which is which), "val" and "test".
        counts: role -> number of names in the public list.
        labelled: numbers of labelled cases in published tables: the first of the training list.
        classes: number of classes, background included.
        spacing_mm: of every case. The h5 files store none: where it is not known, 1 stands for a voxel, and only the
            convention "medpy" makes sense.
        volume_file: path of validation and test cases, where training cases are slices.
        near: absolute correlation from which on `verify` calls two images near duplicates. Of the 3160 pairs of Left
            Atrium training cases three are above 0.85, and look like one patient each; the others end at 0.84. In the
            47 other orientations of a volume all end at 0.65, with intensities inverted at 0.33.
        patient: regular expression of the part of a name that is the patient's; empty: every case is a patient.
        same_patient: groups of patients by name that are known to be one. `verify` tells where a group stands on both
            sides; `split` counts as the published tables do, by name.
    """

    name: str
    file: str
    lists: Mapping[str, str]
    counts: Mapping[str, int]
    labelled: tuple[int, ...] = ()
    classes: int = 2
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    volume_file: str = ""
    near: float = 0.95
    patient: str = ""
    same_patient: tuple[frozenset[str], ...] = ()

    def find(self, root: Path | str) -> Path:
        """Folder with the list files.

        Raises:
            DataError: there is none.
        """
        if self.file.startswith(FOLDER):
            return find_la(root)
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root}: there is no such folder; expected the folder with the lists of {self.name!r}")
        return root

    def pattern(self, role: str) -> str:
        """Path of a case of this role, with `{}` for its name."""
        return self.volume_file if self.volume_file and role in ("val", "test") else self.file

    def case(self, root: Path, name: str, role: str, *, labelled: bool = True) -> Case:
        """The case of this name and role; its file need not exist."""
        path = root / self.pattern(role).format(check_name(name, root))
        slices = bool(self.volume_file) and role not in ("val", "test")
        return Case(name, path, path if labelled else None, self.spacing_mm[1:] if slices else self.spacing_mm)

    def patient_of(self, name: str) -> str:
        """Patient that a case is of."""
        found = re.search(self.patient, name) if self.patient else None
        return found.group() if found else name

    def split(
        self,
        root: Path | str,
        *,
        labelled: int | Literal["all"],
        lists: Mapping[str, str | Path] | None = None,
    ) -> Split:
        """Read the lists and make the roles: validation cases leave the training list, then the first `labelled` are
        labelled, counted in patients where a patient has several cases.

        Args:
            root: folder of the data set.
            labelled: number of labelled patients; `"all"` leaves no unlabelled cases. Where the family has a list of
                labelled cases it must be the length of that list.
            lists: role -> list file, instead of the family's own; roles that are left out have no cases.

        Raises:
            DataError: missing files, a case in two roles, no training case, or another count than the lists allow.
            ValueError: `lists` has roles that there are not, or none to train on.
        """
        root = self.find(root)
        if lists is not None:
            check_roles(lists)
        if labelled != "all" and type(labelled) is not int:
            raise ValueError(f"labelled is {labelled!r}; expected a whole number of patients or 'all'")
        names = {role: read_list(root / file) for role, file in (self.lists if lists is None else lists).items()}
        taken = set(names.get("val", ()))
        if "train" in names:
            train = [name for name in names["train"] if name not in taken]
            patients = list(dict.fromkeys(map(self.patient_of, train)))
            if not patients:
                raise DataError(f"{root}: the training list has no case that is not in the validation list, too")
            allowed = range(1, len(patients) + 1)
            first = patients if labelled == "all" else patients[:labelled]
            names["labelled"] = [name for name in train if self.patient_of(name) in set(first)]
            names["unlabelled"] = [name for name in train if self.patient_of(name) not in set(first)]
        else:
            check_no_overlap(labelled=names["labelled"], unlabelled=names.get("unlabelled", []))
            own = len(names["labelled"])
            allowed = range(own, own + 1)
            if labelled == "all":
                names["labelled"] += names.pop("unlabelled", [])
        if labelled != "all" and labelled not in allowed:
            expected = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 1 else f"{allowed[0]}, as its list has"
            raise DataError(f"{root}: {labelled} labelled cases of {self.name!r} asked for; expected {expected}")
        groups: dict[str, tuple[Case, ...]] = {
            role: tuple(self._existing(root, names.get(role, ()), role)) for role in vars(Split(()))
        }
        return Split(**groups)

    def _existing(self, root: Path, names: Sequence[str], role: str) -> list[Case]:
        cases = [self.case(root, name, role, labelled=role != "unlabelled") for name in names]
        for case in cases:
            if not case.image.is_file():
                raise DataError(f"{case.image}: case {case.id!r} has no such file")
        return cases


_TRAIN_TEST = {"train": "train.list", "test": "test.list"}
_PANCREAS = "Pancreas_h5/{}_norm.h5"
_PANCREAS_TWICE = (frozenset({"image0002", "image0025", "image0070"}),)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "la",
            f"{FOLDER}/{{}}/{FILE}",
            _TRAIN_TEST,
            {"train": 80, "test": 20},
            labelled=(4, 8, 16),
            spacing_mm=SPACING_MM,
            near=0.85,
        ),
        Family("phantom", f"{FOLDER}/{{}}/{FILE}", _TRAIN_TEST, {}, spacing_mm=SPACING_MM),
        Family(
            "pancreas/mcnet",
            _PANCREAS,
            _TRAIN_TEST,
            {"train": 62, "test": 20},
            labelled=(6, 12),
            same_patient=_PANCREAS_TWICE,
        ),
        Family(
            "pancreas/coranet",
            "{}",  # these lists hold file names
            {"labelled": "train_lab.txt", "unlabelled": "train_unlab.txt", "test": "test.txt"},
            {"labelled": 12, "unlabelled": 50, "test": 18},
            labelled=(12,),
        ),
        # four folds: the lists of another one are given by the caller
        Family(
            "pancreas/mcf",
            _PANCREAS,
            {"train": "train1.list", "test": "test1.list"},
            {},
            same_patient=_PANCREAS_TWICE,
        ),
        Family(
            "brats2019",
            "data/{}.h5",
            {"train": "train.txt", "val": "val.txt", "test": "test.txt"},
            {"train": 250, "val": 25, "test": 60},
            labelled=(25, 50),
        ),
        Family(
            "acdc",
            "data/slices/{}.h5",
            {"train": "train_slices.list", "val": "val.list", "test": "test.list"},
            {"train": 1312, "val": 20, "test": 40},
            labelled=(3, 7, 14),
            classes=4,
            volume_file="data/{}.h5",
            patient=r"^patient\d+",
            same_patient=(frozenset({"patient074", "patient076"}),),
        ),
    )
}


def check_roles(lists: Mapping[str, object]) -> None:
    """Raise ValueError unless these are roles of lists, with one to train on."""
    roles = ("train", "labelled", "unlabelled", "val", "test")
    if (unknown := [role for role in lists if role not in roles]) or ("train" in lists) == ("labelled" in lists):
        told = f"which has {unknown[0]!r}" if unknown else "which has both or neither of 'train' and 'labelled'"
        raise ValueError(
            f"lists is {dict(lists)}, {told}; expected 'train', or 'labelled' and 'unlabelled', and perhaps 'val' and "
            "'test'"
        )


def family_of(protocol: object) -> Family:
    """Family of a protocol: of its name (`"la/cpu"`, `"brats2019"`), or of an object with a `family`.

    Raises:
        ValueError: there is none of this name.
    """
    if isinstance(protocol, Family):
        return protocol
    name = str(getattr(protocol, "family", protocol))
    for known in (name, name.rsplit("/", 1)[0]):
        if known in FAMILIES:
            return FAMILIES[known]
    raise ValueError(f"protocol is {name!r}; expected one of {', '.join(map(repr, FAMILIES))}, or a protocol of one")
