# SPDX-License-Identifier: Apache-2.0
"""What the cases of a data set are like, file by file, and what is wrong with them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmis.data.cases import Case, DataError
from ssmis.data.components import largest_sizes
from ssmis.data.fingerprint import array_digest, coarse_picture
from ssmis.data.layouts import Dataset
from ssmis.data.scans import case_labels, case_scan

NEAR = 0.998  # correlation of coarse pictures from which on two images are near duplicates
MOST_CLASSES = 255
OTHER_UNIT = 10.0  # times the usual length of a voxel
_SMOOTH = 20  # values of a picture's label from which on it may have soft edges
_SAMPLE = 200_000  # voxels a case that statistics look at
_FOREGROUND = 20_000

Progress = Callable[[Iterable[Case]], Iterable[Case]]


@dataclass(frozen=True)
class Issue:
    """One finding: its kind, the file or case, what it is; `serious` where training would break or learn wrongly."""

    kind: str
    where: str
    message: str
    serious: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What one case is like.

    Attributes:
        case: the case.
        shape: canonical, without channels.
        spacing_mm: canonical.
        orientation: of the file's axes.
        channels: number of them.
        kind: type of the stored values.
        low: 0.5 % quantile of each channel.
        high: 99.5 % quantile of each channel.
        mean: of each channel.
        std: of each channel.
        floor: share of the voxels that have the least value, of each channel.
        foreground: sampled intensities inside the label, `(C, n)`.
        volumes: label value -> voxels; None if unlabelled.
        digest: of the values.
        picture: coarse picture of the first channel.
        largest: label value above 0 -> voxels of its largest component; None if unlabelled, or of too many values.
    """

    case: Case
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    channels: int
    kind: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    floor: tuple[float, ...]
    foreground: NDArray[np.float32]
    volumes: Mapping[int, int] | None
    digest: str
    picture: NDArray[np.float64] = field(repr=False)
    largest: Mapping[int, int] | None = None


def survey(
    dataset: Dataset, cases: Sequence[Case] | None = None, *, progress: Progress | None = None
) -> tuple[list[CaseFacts], list[Issue]]:
    """Read `cases` (default: all of the data set) once: the facts of those that can be read, and every finding."""
    cases = dataset.cases if cases is None else cases
    facts, issues = [], [Issue("left over", str(dataset.root), note, serious=False) for note in dataset.notes]
    for case in cases if progress is None else progress(cases):
        try:
            own, found = _look(case, dataset)
        except DataError as error:
            where, _, told = str(error).partition(": ")
            issues.append(Issue("unreadable", where, told or str(error)))
            continue
        facts.append(own)
        issues += found
    if not any(case.labelled for case in cases):
        issues.append(Issue("labels", str(dataset.root), "no case has a label; at least one is needed"))
    issues += _across(facts, dataset)
    return facts, issues


def _look(case: Case, dataset: Dataset) -> tuple[CaseFacts, list[Issue]]:
    issues = []
    name = _within(case.image, dataset)
    scan = case_scan(case)
    image, grid = scan.image, scan.grid
    shape, spacing = grid.canonical_shape, grid.canonical_spacing_mm
    if image.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite for the nets
            image = image.astype(np.float32, copy=False)
    flat = image.reshape(len(image), -1)
    if image.dtype.kind == "f":
        bad = int(image.size - np.isfinite(image).sum())
        if bad:
            issues.append(Issue("not finite", name, f"the image has {bad} NaN or infinite voxels of {image.size}"))
    step = max(1, flat.shape[1] // _SAMPLE)
    sample = np.nan_to_num(flat[:, ::step].astype(np.float32), posinf=0, neginf=0)
    low, high = (np.quantile(sample, q, axis=1).tolist() for q in (0.005, 0.995))
    if any(channel.min() == channel.max() for channel in image):
        issues.append(Issue("constant", name, "a channel of the image has one value everywhere"))
    if min(shape) > 1 and max(shape) / min(shape) > 50:
        issues.append(Issue("shape", name, f"the shape {shape} is long and thin", serious=False))
    volumes, largest = None, None
    foreground = np.zeros((len(image), 0), np.float32)
    if case.label is not None:
        try:
            labels = case_labels(case, grid)
        except DataError as error:
            labels = None
            kind = "geometry" if "away from" in str(error) or "shape" in str(error) else "label"
            issues.append(Issue(kind, _within(case.label, dataset), str(error).partition(": ")[2]))
        if labels is not None:
            values, counts = np.unique(labels, return_counts=True)
            volumes = dict(zip(values.tolist(), counts.tolist()))
            if len(volumes) <= MOST_CLASSES:
                largest = largest_sizes(labels, values=[value for value in volumes if value > 0])
            inside = np.flatnonzero(labels.ravel() > 0)
            foreground = flat[:, inside[:: max(1, len(inside) // _FOREGROUND)]].astype(np.float32)
            where = _within(case.label, dataset)
            issues += _label_issues(where, volumes, dataset.label_names, picture=len(shape) == 2)
    return CaseFacts(
        case, shape, spacing, grid.orientation, len(image), str(scan.image.dtype), tuple(low), tuple(high),
        tuple(sample.mean(1).tolist()), tuple(sample.std(1).tolist()),
        tuple((sample == sample.min(1, keepdims=True)).mean(1).tolist()),
        foreground, volumes, array_digest(image.astype(np.float32)), coarse_picture(np.nan_to_num(image[0])),
        largest,
    ), issues  # fmt: skip


def _label_issues(name: str, volumes: Mapping[int, int], declared: Mapping[int, str], *, picture: bool) -> list[Issue]:
    issues = []
    two = sum(sorted(volumes.values())[-2:]) / sum(volumes.values())
    unknown = [value for value in volumes if value not in declared and value > 0]
    if declared and unknown:
        told = f"the label has values {unknown[:8]}, which dataset.json does not declare ({sorted(declared)})"
        issues.append(Issue("label values", name, told))
    elif len(volumes) > MOST_CLASSES or (name.lower().endswith((".jpg", ".jpeg")) and len(volumes) > 2):
        told = f"the label has {len(volumes)} different values; it is an image, or was saved as JPEG"
        issues.append(Issue("label values", name, told))
    elif picture and not declared and len(volumes) > _SMOOTH and two > 0.9:
        told = f"the label has {len(volumes)} different values, and two of them cover {two:.0%} of it"
        issues.append(Issue("label values", name, f"{told}; it was smoothed or saved as JPEG: expected one a class"))
    if not any(value > 0 for value in volumes):
        issues.append(Issue("empty label", name, "the label has no foreground", serious=False))
    return issues


def _across(facts: Sequence[CaseFacts], dataset: Dataset) -> list[Issue]:
    """What only shows when cases are compared."""
    root, issues = str(dataset.root), []
    for name, values in (("channels", [f.channels for f in facts]), ("axes", [len(f.shape) for f in facts])):
        usual = Counter(values).most_common(1)[0][0] if values else 0
        for own, value in zip(facts, values):
            if value != usual:
                issues.append(Issue(name, _within(own.case.image, dataset), f"{value} {name}; most cases have {usual}"))
    for name, counter in (
        ("orientation", Counter(own.orientation for own in facts)),
        ("spacing", Counter("x".join(f"{mm:.3g}" for mm in own.spacing_mm) for own in facts)),
    ):
        if len(counter) > 1:
            told = ", ".join(f"{value} ({count})" for value, count in counter.most_common(4))
            more = f" and {len(counter) - 4} more" if len(counter) > 4 else ""
            what = "turned to RAS" if name == "orientation" else "resampled to one"
            issues.append(Issue(f"mixed {name}", root, f"mixed {name}: {told}{more}; {what} on reading", serious=False))
    lengths = [float(np.prod(own.spacing_mm)) ** (1 / len(own.spacing_mm)) for own in facts]
    for own, length in zip(facts, lengths):
        if not 1 / OTHER_UNIT < length / float(np.median(lengths)) < OTHER_UNIT:
            mm = " x ".join(f"{value:.3g}" for value in own.spacing_mm)
            told = f"voxels of {mm} mm; in most cases they are about {np.median(lengths):.3g} mm long: another unit?"
            issues.append(Issue("spacing", _within(own.case.image, dataset), told))
    pictures = [own for own in facts if own.orientation == "picture"]
    bare = [own for own in pictures if not own.case.spacing_mm]
    for own in bare if len(bare) < len(pictures) else ():
        told = "the size of its pixels is not known; other pictures have one, in pixel_size.csv or the table"
        issues.append(Issue("spacing", _within(own.case.image, dataset), told))
    scales = [max(abs(own.low[0]), abs(own.high[0])) for own in facts]
    if scales and max(scales) > 100 * max(np.median(scales), 1e-12):
        worst = facts[int(np.argmax(scales))].case.image.name
        told = f"intensities reach {max(scales):.3g} in {worst}, and {np.median(scales):.3g} in the median case"
        issues.append(Issue("intensity scale", root, f"{told}; each volume is normalised by itself", serious=False))
    named = set(dataset.label_names) - {0}
    present = {value for own in facts for value in own.volumes or {}}
    if any(own.volumes for own in facts) and named - present:
        told = f"the label values {sorted(named - present)} are declared, and no case has them"
        issues.append(Issue("missing class", root, told, serious=False))
    return issues + _copies(facts, dataset)


def _copies(facts: Sequence[CaseFacts], dataset: Dataset) -> list[Issue]:
    issues: list[Issue] = []
    pictures = np.array([own.picture for own in facts if len(own.shape) == len(facts[0].shape)])
    if len(pictures) != len(facts):
        return issues
    for index, own in enumerate(facts):
        for before in np.flatnonzero(pictures[:index] @ own.picture >= NEAR).tolist():
            other, where = facts[before], _within(own.case.image, dataset)
            if own.digest == other.digest:
                told = f"has the same values as {other.case.image.name}"
                issues.append(Issue("duplicate", where, told, serious=False))
            else:
                told = f"is nearly {other.case.image.name} (correlation {pictures[before] @ own.picture:.4f})"
                issues.append(Issue("near duplicate", where, told, serious=False))
    return issues


def _within(path: Path, dataset: Dataset) -> str:
    """The path as a person in the data's folder would write it."""
    base = dataset.root if dataset.root.is_dir() else dataset.root.parent
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
