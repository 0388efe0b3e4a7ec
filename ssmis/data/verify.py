# SPDX-License-Identifier: Apache-2.0
"""Look a data set through before anything is trained on it: files, lists, values, labels, copies across the split."""

import csv
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np

from ssmis._checks import check_range
from ssmis._optional import require
from ssmis.data.cases import Case, DataError, Volume, check_name
from ssmis.data.families import Family, check_roles, family_of
from ssmis.data.fingerprint import Fingerprint, array_digest, likeness
from ssmis.data.la import LIST_BYTES, load_la, read_list

_SAME_SCAN = 0.25  # share of common intensities; scans of the Left Atrium that differ share at most 0.02
_FEW_PAIRS = 8  # too few to tell what is usual
_SAME_ORGAN = 0.95  # correlation within the boxes of the labels; patients of the Left Atrium that differ end at 0.86
_FULL = 0.9  # share of foreground; labels of the Left Atrium have at most 0.19

_ADVICE = {
    "list": "Take the list again from where the data set came from.",
    "count": "Take the list again from where the data set came from.",
    "order": "The first lines are the labelled cases: numbers on another order are not comparable. Restore the list.",
    "overlap": "Remove the case from one of the lists.",
    "patient": "Move all cases of the patient to one side, or name the overlap beside every number.",
    "missing": "Copy the file again, or take the name off the list.",
    "extra": "Harmless; move the files away if they should not be there.",
    "unreadable": "Copy the file again; it was probably cut off.",
    "label": "Copy the file again; if it is your own, repair the label.",
    "constant": "Copy the file again; nothing can be learnt from one value.",
    "changed": "Copy the file again, or name the change beside every number.",
    "duplicate": "Keep one of them, on one side of the split.",
    "same scan": "Keep one of them, on one side of the split.",
    "same label": "Look at both: if they are of one patient, keep them on one side; else one has the wrong label.",
    "near duplicate": "Look at both: if they are of one patient, keep them on one side of the split.",
}


@dataclass(frozen=True)
class Finding:
    """One thing about the data: its kind, where it is (case or file), what it is and what to do about it.

    What is not `serious` is worth knowing, and does not make results wrong.
    """

    kind: str
    where: str
    message: str
    serious: bool = True

    @property
    def advice(self) -> str:
        """What to do."""
        return _ADVICE[self.kind]

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message} {self.advice}"


@dataclass(frozen=True)
class Report:
    """What `verify` found: family, folder, role -> number of cases, and the findings."""

    family: str
    root: Path
    cases: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing serious was found."""
        return not any(finding.serious for finding in self.findings)

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {role}" for role, count in self.cases.items())
        serious = sum(finding.serious for finding in self.findings)
        notes = len(self.findings) - serious
        lines = [f"{self.family} in {self.root}: {counts}; problems: {serious}, notes: {notes}"]
        for finding in sorted(self.findings, key=lambda finding: not finding.serious):
            lines.append(f"  {'problem' if finding.serious else 'note'}, {finding}")
        return "\n".join(lines)


def verify(
    root: Path | str,
    protocol: object,
    *,
    lists: Mapping[str, str | Path] | None = None,
    near: float | None = None,
    progress: bool = True,
) -> Report:
    """Look a data set through: it reads every file, changes nothing and fetches nothing.

    Serious: lists that are missing, name a case twice, overlap, or differ from the public ones; a patient on both
    sides; files that are missing, truncated or changed (against digests of the public values, where the package has
    them); labels that are missing, empty or no classes; an image or a label that is on both sides of the split,
    exactly, cut, turned, mirrored or inverted, or nearly. Worth knowing: files that no list names, labels that are
    nearly all foreground, and copies inside the training cases.

    Args:
        root: folder of the data set.
        protocol: its name or family (`"la/cpu"`, `"acdc"`), a `Family`, or a protocol.
        lists: role -> list file, instead of the family's own. A validation list that lies wholly in the training list
            is taken as cut from it.
        near: absolute correlation of two coarse images, of volumes in every orientation, from which on they count as
            near duplicates; None is the family's. It compares whole images, and volumes within the boxes of their
            labels too (there from 0.95 on, if `near` is less), so it finds scans of one patient that were cropped alike
            or outlined alike, not every one.
        progress: show a bar.

    Raises:
        DataError: there is no such data set.
        ValueError: an unknown protocol, roles in `lists` that there are not, or `near` outside of [0, 1].
    """
    family = family_of(protocol)
    if lists is not None:
        check_roles(lists)
    near = family.near if near is None else near
    check_range(near, 0.0, 1.0, name="near")
    root = family.find(root)
    findings: list[Finding] = []
    names = _read_lists(root, family, lists, findings)
    _check_names(family, names, findings)
    known = _known(family)
    prints: list[tuple[str, str, Fingerprint]] = []
    cases = [(role, family.case(root, name, role)) for role, group in names.items() for name in group]
    for role, case in _shown(cases, progress):
        volume = _read(case, family, findings)
        if volume is None:
            continue
        if case.id in known:
            _compare(case, volume, known[case.id], findings)
        side = "train" if role in ("train", "labelled", "unlabelled") else role
        prints += [(side, f"{case.id}{part}", mark) for part, mark in _fingerprints(volume, family, role)]
    _check_extra(root, family, names, findings)
    _check_copies(prints, near, findings, slices=bool(family.volume_file))
    return Report(family.name, root, {role: len(group) for role, group in names.items()}, tuple(findings))


def _read_lists(
    root: Path, family: Family, lists: Mapping[str, str | Path] | None, findings: list[Finding]
) -> dict[str, list[str]]:
    """Role -> names, each once, validation cases taken out of the training list if all of them are in it."""
    names: dict[str, list[str]] = {}
    for role, file in (family.lists if lists is None else lists).items():
        path = root / file
        try:
            names[role] = read_list(path)
        except DataError as error:
            findings.append(Finding("list", path.name, f"{error}."))
            names[role] = _usable_names(path)
        expected = family.counts.get(role)
        if lists is None and names[role] and expected not in (None, len(names[role])):
            findings.append(Finding("count", path.name, f"{len(names[role])} cases; the public list has {expected}."))
    public = list(_known(family))
    for line, (own, there) in enumerate(zip(names.get("train", []), public), start=1):
        if own != there:
            findings.append(Finding("order", f"train list, line {line}", f"{own!r}; the public list has {there!r}."))
            break
    held = set(names.get("val", []))
    if held and held <= set(names.get("train", [])):
        names["train"] = [name for name in names["train"] if name not in held]
        if not names["train"]:
            findings.append(
                Finding("list", "val list", "it holds all of the training list: nothing is left to train on.")
            )
    return names


def _usable_names(path: Path) -> list[str]:
    """Names in a list with faults: each once, those that are paths out of the data folder left out."""
    if not path.is_file() or path.stat().st_size > LIST_BYTES:
        return []
    usable = []
    for name in dict.fromkeys(map(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines())):
        with suppress(DataError):
            usable.append(check_name(name, path))
    return usable


def _check_names(family: Family, names: Mapping[str, list[str]], findings: list[Finding]) -> None:
    for (first, ours), (second, theirs) in combinations(names.items(), 2):
        for case in sorted(set(ours) & set(theirs)):
            findings.append(Finding("overlap", case, f"in both the {first} and the {second} list."))
        if {first, second} <= {"labelled", "unlabelled"}:
            continue
        here, there = ({family.patient_of(name) for name in group} for group in (ours, theirs))
        for patient in sorted((here & there) - (set(ours) & set(theirs))):
            findings.append(Finding("patient", patient, f"has cases in both the {first} and the {second} list."))
        for group in family.same_patient:
            if here & group and there & group and len((here | there) & group) > 1:
                lists = " and ".join(
                    f"{', '.join(sorted(side & group))} in the {role} list"
                    for role, side in ((first, here), (second, there))
                )
                told = f"known to be one patient; {lists}."
                findings.append(Finding("patient", ", ".join(sorted((here | there) & group)), told))


def _read(case: Case, family: Family, findings: list[Finding]) -> Volume | None:
    """Read a case and note what is wrong with it; None if the image is of no use."""
    if not case.image.is_file():
        findings.append(Finding("missing", case.id, f"there is no file {case.image}."))
        return None
    try:
        volume = load_la(case, classes=family.classes)
    except DataError as wrong:
        try:
            volume = load_la(case, with_label=False)
        except DataError as error:
            findings.append(Finding("unreadable", case.id, f"{error}."))
            return None
        findings.append(Finding("label", case.id, f"{wrong}."))
    else:
        # a slice may lie beside the organ, a volume may not
        if volume.label is not None and volume.label.ndim == 3 and not volume.label.any():
            findings.append(Finding("label", case.id, "the label has no foreground."))
        elif volume.label is not None and (share := float((volume.label > 0).mean())) > _FULL:
            findings.append(Finding("label", case.id, f"{share:.0%} of the label is foreground.", serious=False))
    if volume.image.min() == volume.image.max():
        findings.append(Finding("constant", case.id, f"the image is {float(volume.image.min())} everywhere."))
        return None
    return volume


def _compare(case: Case, volume: Volume, public: tuple[str, str], findings: list[Finding]) -> None:
    for name, array, digest in zip(("image", "label"), (volume.image[0], volume.label), public):
        if array is not None and array_digest(array) != digest:
            findings.append(Finding("changed", case.id, f"the values of its {name} are not those of the public file."))


def _fingerprints(volume: Volume, family: Family, role: str) -> list[tuple[str, Fingerprint]]:
    image = volume.image[0]
    if family.volume_file and role in ("val", "test"):  # training cases are slices of such volumes
        return [(f" slice {k}", Fingerprint.of(part)) for k, part in enumerate(image) if np.ptp(part)]
    return [("", Fingerprint.of(image, volume.label if image.ndim == 3 else None))]


def _check_extra(root: Path, family: Family, names: Mapping[str, list[str]], findings: list[Finding]) -> None:
    listed = {family.case(root, name, role).image for role, group in names.items() for name in group}
    patterns = dict.fromkeys(family.pattern(role) for role in names)
    there = {path for pattern in patterns for path in root.glob(pattern.format("*")) if path.suffix == ".h5"}
    if extra := sorted(str(path.relative_to(root)) for path in there - listed):
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        findings.append(Finding("extra", ", ".join(extra[:3]) + more, "in no list.", serious=False))


def _check_copies(
    prints: list[tuple[str, str, Fingerprint]], near: float, findings: list[Finding], *, slices: bool
) -> None:
    pictures = np.array([mark.picture for _, _, mark in prints])
    organs = np.array([mark.label_picture for _, _, mark in prints])
    shares = {} if slices else _shared_values([mark for _, _, mark in prints])
    for index, (side, case, mark) in enumerate(prints):
        whole, turned = likeness(pictures[:index], mark.picture, turned=not slices)
        inside, turned_inside = likeness(organs[:index], mark.label_picture, turned=not slices)
        for before, (other_side, other, theirs) in enumerate(prints[:index]):
            across = side != other_side
            where = f"{other} ({other_side}) and {case} ({side})"
            share = shares.get((before, index), 0.0)
            if mark.digest == theirs.digest:
                findings.append(Finding("duplicate", where, "the images have the same values.", across))
            elif share > _SAME_SCAN:
                told = f"the images share {share:.0%} of their intensities: one scan, cropped or mirrored."
                findings.append(Finding("same scan", where, told, across))
            elif slices and not across:  # neighbouring slices of one scan are alike
                continue
            elif abs(whole[before]) >= near:
                how = ", one of them turned or mirrored" if turned[before] else ""
                told = f"the images correlate by {whole[before]:.2f}{how}."
                findings.append(Finding("near duplicate", where, told, across))
            elif abs(inside[before]) >= max(near, _SAME_ORGAN):
                how = ", one of them turned or mirrored" if turned_inside[before] else ""
                told = f"the images correlate by {inside[before]:.2f} within the boxes of their labels{how}."
                findings.append(Finding("near duplicate", where, told, across))
            elif mark.label_digest and mark.label_digest == theirs.label_digest:
                findings.append(Finding("same label", where, "the labels have the same values.", across))


def _shared_values(prints: list[Fingerprint]) -> dict[tuple[int, int], float]:
    """Pair -> share of common intensities; nothing where scans have them in common anyway, as CT does.

    That is seen from what most pairs share. Where there are few, a copy is most of them, and every share counts.
    """
    pairs = combinations(range(len(prints)), 2)
    shares = {(i, j): prints[i].shared_values(prints[j]) for i, j in pairs}
    usual = np.quantile(list(shares.values()), 0.25) if len(shares) >= _FEW_PAIRS else 0.0
    return shares if usual <= _SAME_SCAN / 5 else {}


def _known(family: Family) -> dict[str, tuple[str, str]]:
    """Case -> digests of image and label, in the order of the public training list, where the package has them."""
    source = files("ssmis.data") / f"known_{family.name.replace('/', '_')}.tsv"
    if not source.is_file():
        return {}
    rows = csv.reader((line for line in source.read_text().splitlines() if not line.startswith("#")), delimiter="\t")
    return {case: (image, label) for case, image, label in rows}


def _shown(cases: list[tuple[str, Case]], show: bool) -> Iterable[tuple[str, Case]]:
    if not show:
        return cases
    tqdm = require("tqdm", extra="medical", purpose="the progress bar (or progress=False)").tqdm
    shown: Iterable[tuple[str, Case]] = tqdm(cases, desc="verify", unit="case", dynamic_ncols=True)
    return shown
