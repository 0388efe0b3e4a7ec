# SPDX-License-Identifier: Apache-2.0
"""Files in, label maps out, each on the grid of its file."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmis.data import Case, DataError, Plan, Scan
from ssmis.data.layout_tables import pixel_sizes
from ssmis.data.layout_volumes import bare_stem
from ssmis.data.scans import case_scan, write_map
from ssmis.data.suffixes import HDF5, says_size, stem_of, suffix_of
from ssmis.engine.distributed import parse_shard, shard
from ssmis.engine.infer import Predictor
from ssmis.engine.segmentation import Segmentation
from ssmis.engine.train import progress_of
from ssmis.engine.trained import run_folders
from ssmis.options import PredictOptions, gathered

_CHANNEL = re.compile(r"_(\d{4})$")
_RESULT = re.compile(r"_(prob\d*|uncertainty)$")


@dataclass(frozen=True)
class Written:
    """What was written for one image."""

    case: str
    labels: Path
    probs: tuple[Path, ...] = ()
    uncertainty: Path | None = None


def predict_files(
    run: str | Path | PredictOptions,
    inputs: Sequence[str | Path] = (),
    tell: Callable[[str], object] = lambda text: None,
    **options: Any,
) -> list[Written]:
    """Segment files with a trained run; `ssmis predict` is this function.

    Args:
        run: run folder, or all options in one object.
        inputs: files or folders.
        tell: called with a line for each file.
        options: of `PredictOptions`.

    Returns:
        What was written, an entry an image; none if a shard has no image.

    Raises:
        DataError: no such run, no image among the inputs, a file that cannot be read or does not fit the training (the
            others are segmented first), a result that is there already, two results of one name, or `out` is the
            folder of an image.
        ValueError: an option that is out of range.
    """
    if inputs or not isinstance(run, PredictOptions):
        options["inputs"] = [str(path) for path in inputs]
    chosen = gathered(PredictOptions, run, options)
    part = None if chosen.shard is None else parse_shard(chosen.shard)
    folders = run_folders([chosen.run, *(chosen.ensemble or [])])
    predictor = Predictor.load(
        folders, flips=chosen.flips, device=chosen.device, overlap=chosen.overlap, batch_size=chosen.batch_size,
        memory_gb=chosen.memory_gb,
    )  # fmt: skip
    plan = predictor.plan
    assert plan is not None
    cases = find_inputs(chosen.inputs, plan, spacing_mm=chosen.spacing_mm or (), tell=tell)
    results = _results(cases, plan, chosen)
    if part is not None:
        cases = shard(cases, *part)
    out = Path(chosen.out)
    folder = out.resolve()
    for path in (path for case in cases for path in (case.image, *case.channels)):
        if path.absolute().parent.resolve() == folder or path.resolve().parent == folder:
            raise DataError(f"{out}: this is the folder of the image {path.name}; choose another one with --out")
    cases = _without_result(cases, results, chosen, tell)
    bar = progress_of(chosen.progress and len(cases) > 1, "predict")
    written: list[Written] = []
    refused: list[DataError] = []
    for case in cases if bar is None else bar(cases):
        try:
            done = predict_case(predictor, case, out, prob=chosen.prob, uncertainty=chosen.uncertainty,
                                largest=chosen.largest)  # fmt: skip
        except DataError as error:  # the next image is another matter
            if len(cases) == 1:
                raise
            refused.append(error)
            tell(str(error))
            continue
        written.append(done)
        tell(f"{case.image} -> {done.labels}")
    if refused:
        told = f"{len(refused)} of {len(cases)} images could not be segmented"
        told += f" (the others are in {out}): " if written else ": "
        told += str(refused[0]) if len(refused) == 1 else "".join(f"\n  {error}" for error in refused)
        raise DataError(told) from refused[0]
    return written


def _results(cases: Sequence[Case], plan: Plan, chosen: PredictOptions) -> dict[str, list[list[Path]]]:
    """Case -> the files it may get, label map first: those of a volume, and those of a picture.

    Raises:
        DataError: two cases would write one file, such as the uncertainty of `a` and the labels of `a_uncertainty`.
    """
    results: dict[str, list[list[Path]]] = {}
    owners: dict[str, str] = {}
    for case in cases:
        ends = {".nii.gz": ["_prob"], ".png": [f"_prob{value}" for value in plan.label_values]}
        for suffix, probs in ends.items():
            names = ["", *(probs if chosen.prob else []), *(["_uncertainty"] if chosen.uncertainty else [])]
            files = [case.id + name + suffix for name in names]
            results.setdefault(case.id, []).append([Path(chosen.out) / file for file in files])
            for file in files:
                if owners.setdefault(file, case.id) != case.id:
                    raise DataError(
                        f"{case.image}: a result of case {case.id!r} would have the name {file}, as one of case "
                        f"{owners[file]!r}; rename an image, or segment them into different folders"
                    )
    return results


def _without_result(
    cases: list[Case],
    results: dict[str, list[list[Path]]],
    chosen: PredictOptions,
    tell: Callable[[str], object],
) -> list[Case]:
    """The cases to segment: with `resume`, those that lack the label map or another file that is asked for."""
    if chosen.overwrite and chosen.resume:
        raise ValueError("overwrite and resume are both set; expected one: resume keeps the results that are there")
    there = [files[0] for case in cases for files in results[case.id] if files[0].exists()]
    if there and not (chosen.overwrite or chosen.resume):
        raise DataError(
            f"{there[0]} is there already; add --resume to keep it, --overwrite to replace it, or "
            "choose another folder with --out"
        )
    if there and chosen.resume:
        left = [case for case in cases if not any(all(map(Path.exists, files)) for files in results[case.id])]
        tell(f"{len(cases) - len(left)} of {len(cases)} results are there already")
        return left
    return cases


def predict_case(
    predictor: Predictor, case: Case, out: Path, *, prob: bool = False, uncertainty: bool = False, largest: bool = False
) -> Written:
    """Segment the image of a case into `out`, on its own grid."""
    plan = predictor.plan
    assert plan is not None
    scan = case_scan(case)
    grid = scan.grid
    spacing = grid.canonical_spacing_mm
    image, flat = _fitting(scan, plan)
    temporary = out / f".{case.id}.probs.tmp"
    store: bool | NDArray[np.float32] = False
    try:
        if prob:
            out.mkdir(parents=True, exist_ok=True)
            store = np.memmap(temporary, np.float32, "w+", shape=(plan.classes, *image.shape[1:]))
        found = predictor.segment(image, spacing[: plan.dims], uncertainty=uncertainty, probs=store, largest=largest)
        return _write(found, case.id, out, scan, plan, flat=flat)
    except ValueError as error:
        raise DataError(f"{case.image}: {error}") from error
    finally:
        del store
        temporary.unlink(missing_ok=True)


def find_inputs(
    inputs: Sequence[str | Path],
    plan: Plan,
    *,
    spacing_mm: Sequence[float] = (),
    tell: Callable[[str], object] = lambda text: None,
) -> list[Case]:
    """Find the images among files and folders: one case each, its channels together.

    Labels (`a_seg`) and results (`a_prob`, `a_uncertainty`) that lie in a folder beside their image `a` are left out,
    and told; named by themselves they are images.

    Raises:
        DataError: a path that is not there, no image at all, two images of one name, a case without all channels, or
            a picture whose pixels nobody knows the size of, for a run that was trained with sizes.
    """
    files: list[tuple[Path, tuple[float, ...]]] = []
    for path in map(Path, inputs):
        if path.is_dir():
            sizes = pixel_sizes(path) or pixel_sizes(path.parent)
            found = sorted(p for p in path.iterdir() if (suffix_of(p) or p.suffix in HDF5) and p.name[0] != ".")
            found = [p for p in found if suffix_of(p) != ".img" or not p.with_suffix(".hdr").exists()]  # one pair
            if not found:
                raise DataError(f"{path}: there is no image in this folder itself; folders inside are not looked into")
            if besides := _besides(found):
                told = ", ".join(file.name for file in besides[:3]) + " ..." * (len(besides) > 3)
                tell(f"{path}: labels or results beside their image, left out: {len(besides)} ({told})")
                found = [file for file in found if file not in set(besides)]
            files += [(file, tuple(spacing_mm) or sizes.get(file.name, ())) for file in found]
        elif path.is_file():
            sizes = pixel_sizes(path.parent) or pixel_sizes(path.parent.parent)
            files.append((path, tuple(spacing_mm) or sizes.get(path.name, ())))
        else:
            raise DataError(f"{path}: there is no such file or folder")
    if not files:
        raise DataError("there is no input; name image files or folders of them")
    several = len(plan.channels) > 1 and all(_CHANNEL.search(stem_of(path)) for path, _ in files)
    cases: dict[str, list[tuple[Path, tuple[float, ...]]]] = {}
    for path, spacing in files:
        name = stem_of(path) if suffix_of(path) else path.stem
        cases.setdefault(_CHANNEL.sub("", name) if several else name, []).append((path, spacing))
    result = []
    for name, own in cases.items():
        paths = sorted(path for path, _ in own)
        expected = len(plan.channels) if several else 1
        if len(paths) != expected:
            told = f"{expected} channel files" if several else "images of different names"
            raise DataError(f"{paths[0]}: case {name!r} has {len(paths)} files; expected {told}")
        silent = not says_size(paths[0])
        spacing = own[0][1] if silent or spacing_mm else ()
        if silent and not spacing and plan.needs_size:
            raise DataError(
                f"{paths[0]}: the size of its pixels is not known, and the run works on "
                f"{' x '.join(f'{mm:.3g}' for mm in plan.spacing_mm)} mm; name it with --spacing_mm, or in "
                "pixel_size.csv beside it"
            )
        result.append(Case(name, paths[0], None, spacing, channels=tuple(paths[1:])))
    return result


def _besides(files: Sequence[Path]) -> list[Path]:
    """Files that are named as the label or a result of another one."""
    names = {name for file in files for name in (stem_of(file), _CHANNEL.sub("", stem_of(file)))}
    bare = {file: _RESULT.sub("", bare_stem(file)) for file in files}
    return [file for file in files if bare[file] != stem_of(file) and bare[file] in names]


def _fitting(scan: Scan, plan: Plan) -> tuple[NDArray[Any], bool]:
    """The image with the plan's axes; a volume of one slice stands for a picture."""
    image = scan.image
    if plan.dims == 2 and image.ndim == 4 and image.shape[3] == 1:
        return image[..., 0], True
    return image, False


def _write(found: Segmentation, name: str, out: Path, scan: Scan, plan: Plan, *, flat: bool) -> Written:
    grid = scan.grid
    suffix = ".png" if grid.affine is None else ".nii.gz"  # in full: a case may be named "a.nii"

    def shaped(array: NDArray[Any]) -> NDArray[Any]:
        return array[..., None] if flat else array

    probs: list[Path] = []
    unsure = None
    if grid.affine is not None:
        if found.probs is not None:
            probs.append(write_map(out / f"{name}_prob{suffix}", shaped(found.probs), grid))
        if found.uncertainty is not None:
            unsure = write_map(out / f"{name}_uncertainty{suffix}", shaped(found.uncertainty), grid)
    else:  # pictures hold whole numbers
        if found.probs is not None:
            for label, own in zip(plan.label_values, found.probs):
                probs.append(write_map(out / f"{name}_prob{label}{suffix}", _as_bytes(own), grid))
        if found.uncertainty is not None:
            unsure = write_map(out / f"{name}_uncertainty{suffix}", _as_bytes(found.uncertainty), grid)
    labels = write_map(out / (name + suffix), shaped(found.labels), grid)  # last: where they are, the rest is
    return Written(name, labels, tuple(probs), unsure)


def _as_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(values * 255).astype(np.uint8)
