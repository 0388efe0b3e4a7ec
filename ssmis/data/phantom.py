# SPDX-License-Identifier: Apache-2.0
"""A made-up heart in MR-like contrast: its left atrium is to be found. For tests, tutorials and quick experiments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmis.data.cases import DataError
from ssmis.data.la import FILE, FOLDER, write_la
from ssmis.data.sampling import batch_key
from ssmis.data.shapes import ellipsoid, paint, scan, smooth_noise, tube

VERSION = 2  # of what a seed gives; raised when that changes
SETTINGS = "phantoms.json"

# Places in units of the shortest axis' half length: right-left, front-back, foot-head, all in the heart's own frame.
_APPENDAGE = ((0.32, -0.12, 0.12), (0.62, -0.38, 0.18))
_VEINS = (
    ((0.29, 0.12, 0.16), (0.86, 0.34, 0.42)),
    ((0.29, 0.14, -0.14), (0.86, 0.44, -0.34)),
    ((-0.29, 0.12, 0.16), (-0.86, 0.30, 0.42)),
    ((-0.29, 0.14, -0.14), (-0.86, 0.40, -0.34)),
    ((-0.31, 0.13, 0.02), (-0.88, 0.36, 0.02)),
)
_CHAMBERS = (  # right atrium, ventricle: centre, radii
    ((-0.60, -0.38, -0.05), (0.27, 0.25, 0.34)),
    ((0.30, -0.70, -0.24), (0.34, 0.26, 0.36)),
)
_VESSELS = (  # descending aorta, ascending aorta, pulmonary artery: ends, radius
    (((0.16, 0.58, -1.6), (0.12, 0.58, 1.6)), 0.12),
    (((-0.06, -0.50, -0.05), (-0.16, -0.48, 1.6)), 0.14),
    (((-0.30, -0.05, 0.68), (0.40, 0.04, 0.70)), 0.10),
)


def atrium_phantom(seed: int, *, size: Sequence[int] = (48, 48, 32)) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw one case: a bent chamber with an appendage and three to five veins, among neighbours of like intensity.

    The label is the chamber, its appendage and the first part of each vein. Right atrium, ventricle, great vessels and
    the ends of the veins are as bright, but not labelled: only their place tells them apart. Pose, size, shape,
    contrast, gamma, bias field, texture, blur and noise vary from case to case.

    Args:
        seed: decides everything.
        size: three lengths of at least 16 voxels.

    Returns:
        Image float32 `(*S)` with mean 0 and standard deviation 1, label uint8 `(*S)`.
    """
    if len(size) != 3 or min(size) < 16:
        raise ValueError(f"size is {tuple(size)}; expected three lengths of at least 16")
    random = np.random.default_rng(batch_key(seed, 0))
    body, heart = _frames(random, size)

    atrium, blood, neighbours = _anatomy(random, heart)
    image = scan(_tissue(random, body, heart, blood, neighbours), random)
    return image.numpy(), (atrium < 0).to(torch.uint8).numpy()


def write_phantoms(
    root: Path | str,
    *,
    labelled: int,
    unlabelled: int = 0,
    test: int = 0,
    size: Sequence[int] = (48, 48, 32),
    seed: int = 0,
) -> Path:
    """Write phantoms in the layout of `ssmis.data.la`, with `train.list` and, if there are any, `test.list`.

    Unlabelled cases have a label on disk too, as those of the real data set do; the split decides who may read it.
    The settings are kept in `phantoms.json`, written last: a second call with the same ones writes only what is gone,
    so that caches of the cases stay valid.

    Raises:
        DataError: `root` holds phantoms of other settings.
    """
    root = Path(root)
    settings = {
        "version": VERSION,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "test": test,
        "size": [int(length) for length in size],
        "seed": seed,
    }
    done = _written(root / SETTINGS, settings)
    names = [f"phantom_{index:04d}" for index in range(labelled + unlabelled + test)]
    for index, name in enumerate(names):
        if not (done and (root / FOLDER / name / FILE).is_file()):
            write_la(root, name, *atrium_phantom(batch_key(seed, index), size=size))
    train = labelled + unlabelled
    for file, part in (("train.list", names[:train]), ("test.list", names[train:])):
        if part and not (done and (root / file).is_file()):
            (root / file).write_text("".join(f"{name}\n" for name in part), encoding="utf-8")
    if not done:
        root.mkdir(parents=True, exist_ok=True)
        (root / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return root


def _written(path: Path, settings: dict[str, Any]) -> bool:
    """Whether phantoms of these settings were written before; DataError if there are others."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none yet, or cut off while it was written
        return False
    if found != settings:
        raise DataError(f"{path}: the phantoms there have settings {found}; expected {settings} (or another folder)")
    return True


def _frames(random: np.random.Generator, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Coordinates `(*S, 3)` of the body, and of the heart: turned, shifted, scaled and gently bent against it."""
    half = np.array(size) / 2
    unit = np.array([half[0], half[1], half[2] * 1.35])  # the field of view is a little flat, as in the real scans
    axes = [torch.from_numpy((np.arange(n) + 0.5 - h) / u).float() for n, h, u in zip(size, half, unit)]
    body = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    x, y, z = np.deg2rad(random.uniform(-1, 1, 3) * (14, 14, 22))
    turn = (
        np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        @ np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        @ np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    ) / random.uniform(0.8, 1.2, (1, 3))
    shift = random.uniform(-0.14, 0.14, 3) * (1, 1, 0.7)
    bend = torch.stack([smooth_noise(random, size, 3) for _ in range(3)], dim=-1) * 0.05
    heart = (body - torch.from_numpy(shift).float()) @ torch.from_numpy(turn).float() + bend
    return body, heart


def _anatomy(random: np.random.Generator, heart: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Signed distances: the labelled atrium, the atrium with whole veins, and the neighbours it is mistaken for."""
    chamber = ellipsoid(heart, (0, 0, 0), _scaled(random, (0.47, 0.32, 0.40)))
    appendage = tube(heart, *_jitter(random, _APPENDAGE, 0.06), random.uniform(0.10, 0.15))[0]
    reach = random.uniform(0.18, 0.32)  # how far along a vein the label goes
    atrium = blood = torch.minimum(chamber, appendage)
    for index in random.permutation(len(_VEINS))[: random.integers(3, len(_VEINS) + 1)]:
        vein, along = tube(heart, *_jitter(random, _VEINS[index], 0.07), random.uniform(0.07, 0.11))
        blood = torch.minimum(blood, vein)
        atrium = torch.minimum(atrium, torch.maximum(vein, along - reach))
    neighbours = [ellipsoid(heart, _at(random, at), _scaled(random, radii)) for at, radii in _CHAMBERS]
    neighbours += [
        tube(heart, *_jitter(random, ends, 0.05), radius * random.uniform(0.85, 1.2))[0] for ends, radius in _VESSELS
    ]
    return atrium, blood, neighbours


def _tissue(
    random: np.random.Generator, body: Tensor, heart: Tensor, blood: Tensor, neighbours: Sequence[Tensor]
) -> Tensor:
    """Paint body, heart, neighbours and blood over each other, each with an intensity of this case."""
    size = blood.shape
    wall = random.uniform(0.04, 0.09)
    near = blood - wall  # neighbours keep a wall's distance from the atrium
    # Mean intensity of each tissue; blood keeps some distance from muscle, and that is all one can count on.
    bright = random.uniform(0.6, 1.0)
    muscle = bright - random.uniform(0.12, 0.5)
    air = random.uniform(0.0, 0.15)
    fat = random.uniform(0.2, 1.4)
    chest = ellipsoid(body, (0, 0.05, 0), (1.25, 1.02, 4.0))
    sac = ellipsoid(heart, (0.02, -0.22, 0), (0.86, 0.78, 0.95))
    image = torch.full(tuple(size), air)
    image = paint(image, chest, fat)
    for side in (-1, 1):
        image = paint(image, ellipsoid(body, (side * 0.78, 0.05, 0.1), (0.46, 0.78, 2.0)), air)
    image = paint(image, ellipsoid(body, (0, 0.88, 0), (0.24, 0.2, 4.0)), random.uniform(0.2, 0.8))
    image = paint(image, sac, muscle)
    image = paint(image, sac.abs() - 0.03, fat * random.uniform(0.4, 1.0))
    image = paint(image, near, muscle)
    for organ in neighbours:
        image = paint(image, torch.maximum(organ, -near), bright + random.normal(0, 0.10))
    scar = smooth_noise(random, size, 8) > random.uniform(0.4, 1.2)  # patches of wall that take up contrast agent
    image = torch.where(scar & (near < 0), torch.tensor(bright * random.uniform(0.7, 1.2)), image)
    image = paint(image, blood, bright)

    for knots in (5, 12):
        image = image + random.uniform(0.02, 0.06) * smooth_noise(random, size, knots)
    return image


def _at(random: np.random.Generator, place: Sequence[float], spread: float = 0.07) -> NDArray[Any]:
    return np.asarray(place) + random.uniform(-spread, spread, 3)


def _jitter(
    random: np.random.Generator, ends: Sequence[Sequence[float]], spread: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    return _at(random, ends[0], spread), _at(random, ends[1], spread)


def _scaled(random: np.random.Generator, radii: Sequence[float]) -> NDArray[Any]:
    return np.asarray(radii) * random.uniform(0.8, 1.2, 3)
