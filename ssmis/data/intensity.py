# SPDX-License-Identifier: Apache-2.0
"""Changes of intensity with explicit parameters, one value a volume; images are `(B, C, *S)`, z-scored or not."""

import torch
import torch.nn.functional as F
from torch import Tensor


def adjust_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """Map each channel to [0, 1], raise it to the power `gamma` `(B,)` and map it back to its own range."""
    low, high = _extremes(images)
    span = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    return ((images - low) / span).clamp(0, 1).pow(_wide(gamma, images)) * (high - low) + low


def adjust_brightness(images: Tensor, shift: Tensor) -> Tensor:
    """Add `shift` `(B,)`, in standard deviations of each channel."""
    deviation = images.flatten(2).std(2, correction=0).reshape(_per_channel(images))
    return images + _wide(shift, images) * deviation


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Stretch each channel by `factor` `(B,)` about its mean."""
    mean = images.flatten(2).mean(2).reshape(_per_channel(images))
    return torch.lerp(mean, images, _wide(factor, images))


def add_noise(images: Tensor, noise: Tensor, deviation: Tensor) -> Tensor:
    """Add `noise` (standard normal, shaped like `images`) times `deviation` `(B,)`, in units of the images."""
    return images + noise * _wide(deviation, images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur, standard deviation `sigma` `(B,)` in voxels, borders repeated, cut off at 2 voxels.

    Two voxels are enough for `sigma` up to 1; a larger one acts like a slightly smaller one. 0 changes nothing.
    """
    reach = 2
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    width = sigma.to(images).clamp_min(1e-3)[:, None]
    weights = (-0.5 * (offsets / width) ** 2).exp()
    weights = weights / weights.sum(1, keepdim=True)  # (B, 2 * reach + 1)
    for axis in range(2, images.ndim):
        length = images.shape[axis]
        index = torch.arange(-reach, length + reach, device=images.device).clamp(0, length - 1)
        padded = images.index_select(axis, index)
        images = images * _wide(weights[:, reach], images)
        for near in range(reach):  # the kernel is symmetric: one product for two neighbours
            pair = padded.narrow(axis, near, length) + padded.narrow(axis, 2 * reach - near, length)
            images = torch.addcmul(images, pair, _wide(weights[:, near], images))
    return images


def bias_field(images: Tensor, field: Tensor) -> Tensor:
    r"""Multiply by a smooth field, as the coils of a scanner do: $(x - \min x)\,e^{f} + \min x$ in each channel.

    Args:
        images: `(B, C, *S)`.
        field: $f$ on a coarse grid, `(B, 1, *s)`; interpolated linearly to `*S`.
    """
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[images.ndim - 2]
    gain = F.interpolate(field.to(images), size=images.shape[2:], mode=mode, align_corners=True).exp()
    low = images.flatten(2).amin(2).reshape(_per_channel(images))
    return (images - low) * gain + low


def coarse_field(noise: Tensor, strength: Tensor) -> Tensor:
    """Centre `noise` `(B, 1, *s)` and scale it to the greatest magnitude `strength` `(B,)`.

    As the logarithm of a gain, a strength of log 2 halves or doubles at most.
    """
    centred = noise - noise.flatten(1).mean(1).reshape(-1, *[1] * (noise.ndim - 1))
    peak = (
        centred.abs().flatten(1).amax(1).clamp_min(torch.finfo(noise.dtype).tiny).reshape(-1, *[1] * (noise.ndim - 1))
    )
    return centred / peak * _wide(strength, noise)


def _extremes(images: Tensor) -> tuple[Tensor, Tensor]:
    low, high = images.flatten(2).aminmax(dim=2)
    return low.reshape(_per_channel(images)), high.reshape(_per_channel(images))


def _per_channel(images: Tensor) -> tuple[int, ...]:
    return (*images.shape[:2], *[1] * (images.ndim - 2))


def _wide(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images).reshape(-1, *[1] * (images.ndim - 1))
