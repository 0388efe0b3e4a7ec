# SPDX-License-Identifier: Apache-2.0
"""Soft-edged shapes, smooth noise and a scanner, from which phantoms are made."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def ellipsoid(points: Tensor, centre: Any, radii: Any) -> Tensor:
    """Roughly the signed distance to an ellipsoid, negative inside."""
    radii = torch.as_tensor(np.asarray(radii), dtype=torch.float32)
    offset = (points - torch.as_tensor(np.asarray(centre), dtype=torch.float32)) / radii
    return (offset.norm(dim=-1) - 1) * radii.min()


def tube(points: Tensor, start: Any, end: Any, radius: float) -> tuple[Tensor, Tensor]:
    """Signed distance to a tube with round ends, and the length along it."""
    first = torch.as_tensor(start, dtype=torch.float32)
    axis = torch.as_tensor(end, dtype=torch.float32) - first
    length = axis.norm()
    offset = points - first
    along = (offset @ (axis / length)).clamp(0, float(length))
    across = (offset - along[..., None] * (axis / length)).norm(dim=-1)
    return across - radius, along


def paint(image: Tensor, sdf: Tensor, value: float) -> Tensor:
    """Fill the inside with `value`, with a soft edge of about a voxel."""
    return torch.lerp(image, torch.full_like(image, float(value)), torch.sigmoid(-sdf * 60))


def smooth_noise(random: np.random.Generator, size: Sequence[int], knots: int) -> Tensor:
    """Smooth noise of standard deviation near 1 with `knots` knots an axis."""
    coarse = torch.from_numpy(random.standard_normal((1, 1, knots, knots, knots))).float()
    fine = F.interpolate(coarse, size=tuple(size), mode="trilinear", align_corners=True)[0, 0]
    return fine * 1.5


def scan(image: Tensor, random: np.random.Generator) -> Tensor:
    """Bias field, blur, gamma, noise and scale of one scanner."""
    size = image.shape
    image = image.clamp_min(0) * (smooth_noise(random, size, 3) * random.uniform(0.05, 0.6)).exp()
    width = random.uniform(0.35, 0.9)
    kernel = torch.exp(-0.5 * (torch.arange(-2, 3) / width) ** 2)
    kernel = kernel / kernel.sum()
    volume = F.pad(image[None, None], (2,) * 6, mode="replicate")
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 5
        volume = F.conv3d(volume, kernel.reshape(shape))
    image = volume[0, 0]
    image = (image / image.max()).pow(float(np.exp(random.uniform(np.log(0.5), np.log(2.0)))))
    # The magnitude of a complex signal: noise is Rician, and never negative in the dark.
    noise = torch.from_numpy(random.standard_normal((2, *size), dtype=np.float32)) * random.uniform(0.02, 0.15)
    image = ((image + noise[0]) ** 2 + noise[1] ** 2).sqrt()
    return (image - image.mean()) / image.std(correction=0)
