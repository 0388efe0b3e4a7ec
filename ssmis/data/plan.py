# SPDX-License-Identifier: Apache-2.0
"""What happens to an image before a net sees it, decided from the training cases and kept with the run."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmis._checks import check_choice
from ssmis.data.cases import Case, DataError, Volume, check_size
from ssmis.data.regrid import resample_labels, resample_maps, resampled_size
from ssmis.data.scans import case_labels, case_scan
from ssmis.data.texts import read_json

INTENSITIES = ("zscore", "clip", "unit")
VERSION = 1
NET_BYTES = 2**31  # of one convolution at each level


@dataclass(frozen=True)
class Channel:
    """How one channel is normalised.

    Attributes:
        name: such as "MRI".
        kind: "zscore": by mean and deviation of each volume; "clip": to `low`..`high`, then by the training cases'
            `mean` and `std`; "unit": `low`..`high` becomes 0..1.
        nonzero: "zscore" only: the mean and deviation are of the voxels above the least value, and what is at that
            value becomes 0 (images whose background was cut away).
        low: of "clip" and "unit".
        high: likewise.
        mean: of "clip".
        std: of "clip".
    """

    name: str = ""
    kind: str = "zscore"
    nonzero: bool = False
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unknown kind."""
        check_choice(self.kind, INTENSITIES, name="intensity")

    def apply(self, image: Tensor) -> Tensor:
        """Normalise float32 `(*S)`, in place."""
        if self.kind == "clip":
            return image.clamp_(self.low, self.high).sub_(self.mean).div_(max(self.std, 1e-8))
        if self.kind == "unit":
            return image.sub_(self.low).div_(max(self.high - self.low, 1e-8))
        if not self.nonzero:
            return image.sub_(image.mean()).div_(image.std(correction=0).clamp_min(1e-8))
        inside = image > image.min()
        values = image[inside]
        if not len(values):
            return image.zero_()
        image.sub_(values.mean()).div_(values.std(correction=0).clamp_min(1e-8))
        return image.mul_(inside)


@dataclass(frozen=True)
class Plan:
    """Preprocessing, patch, batch and shape of the nets for a data set.

    Volumes are canonical (axes right, anterior, superior), pictures as they are.

    Attributes:
        dims: 2 or 3 spatial axes.
        channels: one entry a channel.
        label_values: value in the files of each class; class 0 is the background.
        label_names: name of each class.
        spacing_mm: of the training grid.
        size: median size of the training cases on it.
        patch: training patch and inference window.
        batch: labelled, and as many unlabelled, patches a step.
        pooling: factor of each axis from level to level of the nets.
        kernels: kernel of each axis at each level.
        widths: channels of the nets at each level.
        notes: what was decided, and why.
        sized: whether the size of the training voxels was known; where not, 1 stands for one. None: a plan of before.
        one_piece: foreground classes that are one piece in the training labels, but for specks. None: a plan of before.
    """

    dims: int
    channels: tuple[Channel, ...]
    label_values: tuple[int, ...]
    label_names: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    size: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    pooling: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    notes: tuple[str, ...] = field(default=())
    sized: bool | None = None
    one_piece: tuple[int, ...] | None = None

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.label_values)

    @property
    def needs_size(self) -> bool:
        """Whether an image whose voxel size nobody knows cannot be brought to the training grid."""
        return min(self.spacing_mm) < 1 if self.sized is None else self.sized

    def training_size(self, size: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, ...]:
        """Size on the training grid of an image of this size and spacing."""
        return resampled_size(size, spacing_mm, self.spacing_mm)

    def prepare(self, image: NDArray[Any] | Tensor, spacing_mm: Sequence[float], *, name: str = "image") -> Tensor:
        """Normalise and resample an image for the nets.

        Args:
            image: `(C, *S)` of any real type, canonical; one channel stands for all if they are of the same kind.
            spacing_mm: of `*S`.
            name: of the image, for messages.

        Returns:
            float32 `(C, *training_size)`; the input stays as it is.

        Raises:
            DataError: another number of axes or channels, voxels that are NaN or infinite, or a size on the training
                grid that no scan has.
        """
        if image.ndim != self.dims + 1 or len(spacing_mm) != self.dims:
            raise DataError(
                f"{name} has shape {tuple(image.shape)} and spacing {tuple(spacing_mm)}; "
                f"expected (C, *S) and a spacing with {self.dims} spatial axes"
            )
        count = len(self.channels)
        if len(image) not in (1, count) or (len(image) != count and len({c.kind for c in self.channels}) > 1):
            raise DataError(f"{name} has {len(image)} channels; expected {count} ({', '.join(self.channel_names)})")
        values = _float32(image)
        total = values.sum(dtype=torch.float64)
        if not torch.isfinite(total):
            bad = int((~torch.isfinite(values)).sum())
            if bad:
                raise DataError(f"{name} has {bad} NaN or infinite voxels of {values.numel()}")
        for channel, own in zip(self.channels, values):
            channel.apply(own)
        if len(values) != count:
            values = values.expand(count, *values.shape[1:])
        size = self.training_size(values.shape[1:], spacing_mm)
        check_size(size, f"{name} of voxels of {tuple(spacing_mm)} mm, on a grid of {self.spacing_mm}")
        return resample_maps(values, size)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, their numbers where they have none."""
        return tuple(channel.name or f"channel {index}" for index, channel in enumerate(self.channels))

    def classes_of(self, labels: NDArray[Any], *, name: str = "label") -> NDArray[Any]:
        """Class indices of label values: uint8, or int16 where some voxels are -1 (not annotated).

        Raises:
            DataError: a value that is no class.
        """
        values, inverse = np.unique(labels, return_inverse=True)
        table = {value: index for index, value in enumerate(self.label_values)} | {-1: -1}
        wrong = [value for value in values.tolist() if value not in table]
        if wrong:
            raise DataError(f"{name}: the label has values {wrong[:8]}; expected {list(self.label_values)}")
        classes = np.array([table[value] for value in values.tolist()], dtype=np.int16)
        mapped = classes[inverse].reshape(labels.shape)
        return mapped if (values == -1).any() else mapped.astype(np.uint8)

    def values_of(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Label values of class indices, in the smallest unsigned type that holds them."""
        if self.label_values == tuple(range(self.classes)):
            return classes.astype(np.uint8, copy=False)
        kind = next(kind for kind in (np.uint8, np.uint16, np.int32) if np.iinfo(kind).max >= max(self.label_values))
        return np.array(self.label_values, dtype=kind)[classes]

    def load(self, case: Case, *, with_label: bool = True) -> Volume:
        """Decode a case onto the training grid, normalised; as `Cache.build` wants it."""
        scan = case_scan(case)
        spacing = scan.grid.canonical_spacing_mm
        image = self.prepare(scan.image, spacing, name=f"{case.image}: the image")
        size = tuple(image.shape[1:])
        label = None
        labels = case_labels(case, scan.grid) if with_label else None
        if labels is not None:
            classes = self.classes_of(labels, name=str(case.label))
            label = resample_labels(torch.from_numpy(classes), size).numpy()
        on_grid = tuple(mm * old / new for mm, old, new in zip(spacing, scan.grid.canonical_shape, size))
        return Volume(image.numpy(), label, on_grid)

    def load_raw(self, case: Case, *, with_label: bool = True) -> Volume:
        """Decode a case on its own grid, canonical, not normalised; labels are class indices."""
        scan = case_scan(case)
        labels = case_labels(case, scan.grid) if with_label else None
        classes = None if labels is None else self.classes_of(labels, name=str(case.label))
        return Volume(scan.image, classes, scan.grid.canonical_spacing_mm)

    def save(self, path: Path | str) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """Build from what `asdict` or a JSON file gives.

        Raises:
            ValueError, KeyError, TypeError: an entry is missing, unknown, or cannot be one of a plan.
        """
        own = {name: _tuples(value) for name, value in values.items() if name not in ("version", "channels")}
        plan = cls(channels=tuple(Channel(**channel) for channel in values["channels"]), **own)
        _check_sound(plan)
        return plan

    @classmethod
    def read(cls, path: Path | str) -> "Plan":
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it is none of this kind.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; expected a run folder that ssmis train wrote")
        try:
            values = read_json(path)
            if values["version"] > VERSION:
                raise DataError(f"{path} has version {values['version']}; this ssmis reads up to {VERSION}")
            return cls.from_dict(values)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot be read as a plan ({error!r})") from error


def _float32(image: NDArray[Any] | Tensor) -> Tensor:
    """A float32 copy in memory order, whatever byte order, strides or type the image has."""
    if isinstance(image, Tensor):
        return image.to(torch.float32, copy=True)
    return torch.from_numpy(np.array(image, dtype=np.float32, order="C"))


def _check_sound(plan: Plan) -> None:
    """Raise ValueError for what no plan has, before nets of it are built."""

    def whole(value: Any, most: int = 2**31) -> bool:
        return type(value) is int and 0 < value <= most

    def real(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value)

    def each(value: Any, length: int, fits: Callable[[Any], bool]) -> bool:
        return isinstance(value, tuple) and len(value) == length and all(map(fits, value))

    axes, levels = plan.dims, len(plan.widths) if isinstance(plan.widths, tuple) else 0
    classes = len(plan.label_values) if isinstance(plan.label_values, tuple) else 0
    sound = {
        "dims": axes in (2, 3) and type(axes) is int,
        "channels": 0 < len(plan.channels) <= 1024
        and all(
            isinstance(own.name, str) and all(map(real, (own.low, own.high, own.mean, own.std))) and own.std >= 0
            for own in plan.channels
        ),
        "label_values": 1 < classes <= 2**16 and all(type(value) is int and value >= 0 for value in plan.label_values),
        "label_names": each(plan.label_names, classes, lambda name: isinstance(name, str)),
        "spacing_mm": each(plan.spacing_mm, axes, lambda mm: real(mm) and mm > 0),
        "size": each(plan.size, axes, whole),
        "patch": each(plan.patch, axes, whole),
        "batch": whole(plan.batch),
        "sized": plan.sized is None or type(plan.sized) is bool,
        "one_piece": plan.one_piece is None
        or (isinstance(plan.one_piece, tuple) and all(whole(index, classes - 1) for index in plan.one_piece)),
        "widths": 0 < levels <= 16 and each(plan.widths, levels, lambda width: whole(width, 2**16)),
        **{
            name: each(value, count, lambda own: each(own, axes, lambda length: whole(length, 64)))
            for name, value, count in (("pooling", plan.pooling, levels - 1), ("kernels", plan.kernels, levels))
        },
    }
    for name, fine in sound.items():
        if not fine:
            raise ValueError(f"{name} is {str(getattr(plan, name))[:200]}, which is none of a plan")
    check_size(plan.patch, "patch")
    weights = sum(4 * width**2 * math.prod(kernel) for width, kernel in zip(plan.widths, plan.kernels))
    if weights > NET_BYTES:
        raise ValueError(f"widths are {plan.widths}, convolutions of {weights} bytes; expected at most {NET_BYTES}")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
