# SPDX-License-Identifier: Apache-2.0
"""Random augmentation of a whole batch, wherever it lives: a generator draws, the functions beside this file apply."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from ssmis._checks import check_not_negative, check_range
from ssmis.data.geometry import Geometry, affine, affine_matrices
from ssmis.data.intensity import (
    add_noise,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    bias_field,
    coarse_field,
    gaussian_blur,
)

Range = tuple[float, float]
Operation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """Which volumes of a batch are at hand, `start` to `stop` of `count`: random numbers are drawn for all of them."""

    start: int
    stop: int
    count: int

    def of(self, values: Tensor) -> Tensor:
        """Those of a tensor over the whole batch."""
        return values[self.start : self.stop]


@dataclass(frozen=True)
class Intensity:
    """Random changes of intensity; each volume gets each of them with `probability`.

    Attributes:
        probability: chance of each operation, drawn anew for every volume and operation.
        gamma: exponents, drawn evenly in the logarithm.
        brightness: greatest shift, in standard deviations of the image.
        contrast: factors about the mean.
        noise: greatest standard deviation of the noise, in units of the (z-scored) image.
        blur: greatest standard deviation of the blur, in voxels.
        bias: greatest logarithm of the bias field's gain.

    Raises:
        ValueError: a probability outside [0, 1], a negative strength, or a gamma that is not positive and in order.
    """

    probability: float = 0.5
    gamma: Range = (0.8, 1.25)
    brightness: float = 0.1
    contrast: Range = (0.85, 1.2)
    noise: float = 0.05
    blur: float = 0.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would make images that are not finite."""
        check_range(self.probability, 0, 1, name="probability")
        check_not_negative(brightness=self.brightness, noise=self.noise, blur=self.blur, bias=self.bias)
        _check_factors(self.gamma, name="gamma")

    def __call__(self, images: Tensor, generator: Generator, rows: Rows | None = None) -> Tensor:
        """Draw and apply to `(B, C, *S)`; the input stays as it is.

        Args:
            images: `(B, C, *S)`.
            generator: on the CPU.
            rows: which volumes of a larger batch these are; they come out as they would in that one.
        """
        draw = _Draw(rows or Rows(0, len(images), len(images)), generator)
        coarse = draw.rows.of(torch.randn(draw.count, 1, *[4] * (images.ndim - 2), generator=generator))
        field = coarse_field(coarse, draw.uniform(0, self.bias))
        steps: list[tuple[bool, Operation, Tensor]] = [
            (self.bias > 0, bias_field, field),
            (self.gamma != (1, 1), adjust_gamma, draw.log_uniform(*self.gamma)),
            (self.contrast != (1, 1), adjust_contrast, draw.uniform(*self.contrast)),
            (self.brightness > 0, adjust_brightness, draw.uniform(-self.brightness, self.brightness)),
            (self.blur > 0, gaussian_blur, draw.uniform(0, self.blur)),
            (self.noise > 0, draw.add_noise, draw.uniform(0, self.noise)),
        ]
        for active, operation, values in steps:
            chosen = draw.choose(self.probability if active else 0.0)
            if len(chosen):
                there = chosen.to(images.device)
                images = images.index_copy(0, there, operation(images[there], values[chosen]))
            elif operation == draw.add_noise:
                draw.noise_seed()
        return images


@dataclass(frozen=True)
class Augment:
    """Random geometry, the same for image, label and mask, then random intensity.

    Attributes:
        flip_axes: spatial axes that are flipped, each with chance 1/2; axes that do not exist are left out.
        rot90: quarter turns in the plane of the first two spatial axes; half turns only where it is not square, in
            voxels or in mm.
        affine_probability: chance of an affine map, for each volume. It costs an interpolation; labels that come
            from outside are -1.
        degrees: greatest rotation in each plane.
        zoom: range of scale factors.
        shift: greatest shift, as a share of each axis.
        spacing_mm: voxel size of the images, in which a turn of them is rigid; None is cubes.
        intensity: what happens to the intensities.

    Raises:
        ValueError: a probability outside [0, 1], a negative angle or shift, a zoom that is not positive and in order,
            or a voxel size that is none.
    """

    flip_axes: tuple[int, ...] = (0, 1, 2)
    rot90: bool = True
    affine_probability: float = 0.0
    degrees: float = 15.0
    zoom: Range = (0.85, 1.2)
    shift: float = 0.05
    spacing_mm: tuple[float, ...] | None = None
    intensity: Intensity = field(default_factory=Intensity)

    def __post_init__(self) -> None:
        """Refuse what no map could be drawn from."""
        check_range(self.affine_probability, 0, 1, name="affine_probability")
        check_not_negative(degrees=self.degrees, shift=self.shift)
        _check_factors(self.zoom, name="zoom")
        if self.spacing_mm is not None and not all(0 < size < math.inf for size in self.spacing_mm):
            raise ValueError(f"spacing_mm is {self.spacing_mm}; expected sizes above 0")

    @classmethod
    def none(cls) -> "Augment":
        """Change nothing."""
        return cls(flip_axes=(), rot90=False, intensity=Intensity(probability=0.0))

    @classmethod
    def weak(cls) -> "Augment":
        """Flips, quarter turns and slight changes of intensity."""
        return cls()

    @classmethod
    def strong(cls) -> "Augment":
        """Affine maps for every third volume, and gamma, contrast, noise, blur and bias fields that are easy to see."""
        return cls(
            affine_probability=0.3,
            intensity=Intensity(gamma=(0.5, 2.0), brightness=0.5, contrast=(0.6, 1.6), noise=0.25, blur=1.0, bias=0.6),
        )

    def __call__(
        self,
        images: Tensor,
        generator: Generator,
        labels: Tensor | None = None,
        valid: Tensor | None = None,
        rows: Rows | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Geometry and intensity; arguments and result as for `move`."""
        images, labels, valid = self.move(images, generator, labels, valid, rows)
        return self.intensity(images, generator, rows), labels, valid

    def draw(self, images: Tensor, generator: Generator, rows: Rows | None = None) -> Geometry:
        """Draw flips and quarter turns for `(B, C, *S)`."""
        rows = rows or Rows(0, len(images), len(images))
        count, dims = rows.count, images.ndim - 2
        coins = torch.rand(count, dims, generator=generator) < 0.5
        turns = torch.randint(4, (count,), generator=generator).tolist()
        flips = [tuple(axis for axis in self.flip_axes if axis < dims and row[axis]) for row in coins.tolist()]
        square = self.spacing_mm is None or self.spacing_mm[0] == self.spacing_mm[1]
        if images.shape[2] != images.shape[3] or not square:
            turns = [turn // 2 * 2 for turn in turns]
        turns = turns if self.rot90 else [0] * count
        return Geometry(tuple(flips[rows.start : rows.stop]), tuple(turns[rows.start : rows.stop]), dims)

    def move(
        self,
        images: Tensor,
        generator: Generator,
        labels: Tensor | None = None,
        valid: Tensor | None = None,
        rows: Rows | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Only the geometry.

        Args:
            images: `(B, C, *S)`.
            generator: on the CPU, whatever device the images are on.
            labels: int64 `(B, *S)`, -1 where unknown.
            valid: bool `(B, *S)`.
            rows: which volumes of a larger batch these are; they come out as they would in that one.
        """
        geometry = self.draw(images, generator, rows)
        images = geometry.apply(images)
        labels = None if labels is None else geometry.apply(labels)
        valid = None if valid is None else geometry.apply(valid)
        draw = _Draw(rows or Rows(0, len(images), len(images)), generator)
        dims = images.ndim - 2
        degrees = torch.stack([draw.uniform(-self.degrees, self.degrees) for _ in range(1 if dims == 2 else 3)], 1)
        zoom = draw.log_uniform(*self.zoom)
        shifts = torch.stack([draw.uniform(-self.shift, self.shift) * length for length in images.shape[2:]], 1)
        index = draw.choose(self.affine_probability)
        if len(index):
            there = index.to(images.device)
            matrices = affine_matrices(degrees, zoom, shifts, spacing_mm=self.spacing_mm)[index].to(images.device)
            own_labels = None if labels is None else labels[there]
            moved, own_labels, own_valid = affine(
                images[there], matrices, own_labels, None if valid is None else valid[there]
            )
            images = images.index_copy(0, there, moved)
            labels = labels if labels is None or own_labels is None else labels.index_copy(0, there, own_labels)
            valid = valid if valid is None or own_valid is None else valid.index_copy(0, there, own_valid)
        return images, labels, valid


def _check_factors(factors: Range, *, name: str) -> None:
    low, high = factors
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name} is {factors}; expected two factors, 0 < low <= high")


class _Draw:
    """Random parameters, one a volume; drawn on the CPU, so that they are the same on every device.

    They are drawn for the whole batch, and returned for the volumes at hand.
    """

    def __init__(self, rows: Rows, generator: Generator) -> None:
        self.rows = rows
        self.count = rows.count
        self.generator = generator
        self._chosen = torch.zeros(0, dtype=torch.bool)

    def uniform(self, low: float, high: float) -> Tensor:
        return self.rows.of(low + (high - low) * torch.rand(self.count, generator=self.generator))

    def log_uniform(self, low: float, high: float) -> Tensor:
        return self.rows.of(low * (high / low) ** torch.rand(self.count, generator=self.generator))

    def choose(self, probability: float) -> Tensor:
        """Indices of the volumes at hand that are drawn with `probability`."""
        self._chosen = torch.rand(self.count, generator=self.generator) < probability
        return self.rows.of(self._chosen).nonzero().flatten()

    def noise_seed(self) -> int:
        """Seed of the noise; drawn if any volume of the batch was chosen, at hand or not."""
        return int(torch.randint(2**62, (), generator=self.generator)) if bool(self._chosen.any()) else 0

    def add_noise(self, images: Tensor, deviation: Tensor) -> Tensor:
        """Add noise, made where the images are, to the volumes chosen last."""
        own = Generator(images.device).manual_seed(self.noise_seed())
        shape = (int(self._chosen.sum()), *images.shape[1:])  # one stream over all volumes of the batch that are chosen
        noise = torch.randn(shape, generator=own, device=images.device, dtype=images.dtype)
        first = int(self._chosen[: self.rows.start].sum())
        return add_noise(images, noise[first : first + len(images)], deviation)
