# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast on a GPU: tables of the keys, configurations of the kernels, and their launches.

The forward pass also makes the gradient by each feature's direction, while the exponentials are at hand; the backward
pass scales it. Only the gradient of the keys computes similarities a second time, in parts that are added in a fixed
order.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ssmis._vectors import SHORTEST
from ssmis.kernels.triton_kernels import class_means_kernel, forward_kernel, keys_kernel, scale_kernel

SMALLEST_V = 16  # no BLOCK_V is below
_LARGEST_EXPONENT = 40.0  # exp(-80) is a normal number of float32


class Tables(NamedTuple):
    """Keys sorted by class and padded to R slots, a power of two from 16; slots that take no part come last.

    Attributes:
        directions: `(R, E)` in the features' dtype, normalised if asked for, E padded like R.
        ordered: `(R,)` labels in rising order.
        firsts: int32 `(R,)`, first slot of the class; `sizes`: its number of keys, 0 for a slot that takes no part.
        live: int32 scalar, how many slots take part.
        wide: `(R, channels)`, the directions in float32; `lengths`: `(R, 1)`, their divisor, infinite if too short.
        order: `(R,)`, where each slot came from.
    """

    directions: Tensor
    ordered: Tensor
    firsts: Tensor
    sizes: Tensor
    live: Tensor
    wide: Tensor
    lengths: Tensor
    order: Tensor


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass; empty where nobody asked for it.

    Attributes:
        losses: `(B, V)`, before weights.
        gradient: like the features: temperature times the derivative of each voxel's loss by its direction.
        slope: `(B, V)`, one over the length of the features, 0 for a voxel without gradient.
        place: int32 `(B, V)`, first slot of the voxel's class, -1 for a voxel that does not count.
        level: `(B, V)`, base-2 log-sum-exp; `push`: `(B, V)`, sum of the derivatives by the positives ("negatives").
    """

    losses: Tensor
    gradient: Tensor
    slope: Tensor
    place: Tensor
    level: Tensor
    push: Tensor


def padded(size: int) -> int:
    """Smallest power of two from 16 that holds `size`; 16 is the least a matrix instruction takes."""
    return max(16, triton.next_power_of_2(size))


def prepare(keys: Tensor, key_labels: Tensor, *, ignore_index: int, normalize: bool, dtype: torch.dtype) -> Tables:
    """Sort, normalise and pad keys `(M, E)`, without a look at their values on the host."""
    rows, channels = padded(len(keys)), keys.shape[1]
    labels = key_labels.new_full((rows,), ignore_index)
    labels[: len(keys)] = key_labels
    dead = labels == ignore_index
    ordered, order = labels.masked_fill(dead, torch.iinfo(labels.dtype).max).sort(stable=True)
    wide = keys.new_zeros(rows, channels, dtype=torch.float32)
    wide[: len(keys)] = keys
    wide = wide.masked_fill(dead[:, None], 0)[order]
    lengths = torch.ones_like(wide[:, :1])
    if normalize:
        lengths = wide.square().sum(1, keepdim=True).sqrt()
        lengths = lengths.masked_fill(lengths < SHORTEST, math.inf)
        wide = wide / lengths
    directions = wide.new_zeros(rows, padded(channels), dtype=dtype)
    directions[:, :channels] = wide
    firsts = torch.searchsorted(ordered, ordered, out_int32=True)
    sizes = torch.searchsorted(ordered, ordered, right=True, out_int32=True) - firsts
    live = (~dead).sum(dtype=torch.int32)
    return Tables(directions, ordered, firsts, sizes.masked_fill(dead[order], 0), live, wide, lengths, order)


# widest channels, float32 -> (voxels, keys, warps) that the compiler spills on no card; the first is the default
_BLOCKS = {
    (16, False): [(128, 32, 8), (64, 32, 4), (128, 16, 8), (64, 16, 4)],
    (32, False): [(64, 32, 8), (128, 32, 8), (64, 16, 8)],
    (64, False): [(64, 32, 8), (32, 32, 4), (64, 16, 8)],
    (256, False): [(32, 16, 8), (16, 16, 4)],
    (16, True): [(128, 16, 8), (64, 16, 4)],
    (32, True): [(32, 16, 4)],
    (64, True): [(32, 32, 8), (32, 16, 8)],
    (256, True): [(16, 16, 8)],
}
_HIP = torch.version.hip is not None


def configurations(width: int, rows: int, dtype: torch.dtype, hip: bool = _HIP) -> list[triton.Config]:
    """What is worth timing for E padded to `width` and keys to `rows`: no spills, no block wider than the keys."""
    kind = min(limit for limit, _ in _BLOCKS if limit >= width), dtype == torch.float32
    blocks = [(16, 16, 4)] if hip and kind == (256, True) else _BLOCKS[kind]
    registers = None if hip else 255  # unasked, ptxas spills a few to fit another program
    return [
        triton.Config({"BLOCK_V": voxels, "BLOCK_M": keys}, num_warps=warps, num_stages=2, maxnreg=registers)
        for voxels, keys, warps in blocks
        if keys <= rows
    ]


def _prune(_: list[triton.Config], named: dict[str, Any], **more: Any) -> list[triton.Config]:
    named = {**named, **more}
    return configurations(named["E"], named["rows"], named["features"].dtype)


def _tuned(kernel: Any, key: list[str], **options: Any) -> Any:
    every = [triton.Config({"BLOCK_V": 16, "BLOCK_M": 16}), triton.Config({"BLOCK_V": 32, "BLOCK_M": 16})]  # replaced
    return triton.autotune(every, key=key, prune_configs_by={"early_config_prune": _prune}, **options)(kernel)


_TUNED = {
    forward_kernel: _tuned(
        forward_kernel,
        ["E", "rows", "NEGATIVES", "WITH_GRADIENT", "WITH_STATE"],
        reset_to_zero=["sums", "counts"],
    ),
    keys_kernel: _tuned(keys_kernel, ["E", "rows", "NEGATIVES"]),
}


def _launch(kernel: Any, grid: Callable[[dict[str, Any]], tuple[int, ...]], **arguments: Any) -> None:
    # timing would choose differently from run to run, and with the configuration changes the order of sums
    if triton.knobs.runtime.interpret or torch.are_deterministic_algorithms_enabled():
        kernel[grid](**arguments, **_prune([], arguments)[0].all_kwargs())
    else:
        _TUNED[kernel][grid](**arguments)


def _strides(prefix: str, tensor: Tensor) -> dict[str, int]:
    names = ("volume", "channel", "voxel") if tensor.ndim == 3 else ("volume", "voxel")
    return {f"{prefix}_{name}": stride for name, stride in zip(names, tensor.stride())}


def precision(dtype: torch.dtype, width: int, hip: bool = _HIP) -> str:
    """How float32 is multiplied: as three products of TF32, but as it is where hardware can (AMD) or registers end."""
    return "tf32x3" if dtype == torch.float32 and width <= 64 and not hip else "ieee"


def forward(
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    tables: Tables,
    *,
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
    with_losses: bool,
    with_gradient: bool,
    with_state: bool,
) -> tuple[Tensor, Tensor, Saved]:
    """Weighted losses of features `(B, E, V)` and weights, added up (2,); voxels that count and that do not (2,)."""
    volumes, channels, voxels = features.shape
    entries = (volumes * triton.cdiv(voxels, SMALLEST_V), 2)  # one for each program, whatever the configuration
    sums, counts = features.new_zeros(entries, dtype=torch.float32), labels.new_zeros(entries, dtype=torch.int32)

    def room(wanted: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        return features.new_empty(labels.shape if wanted else 0, dtype=dtype)

    saved = Saved(
        losses=room(with_losses),
        gradient=torch.empty_like(features) if with_gradient else features.new_empty(0, 0, 0),
        slope=room(with_gradient or with_state),
        place=room(with_state, torch.int32),
        level=room(with_state).zero_(),  # blocks with nothing to do do not write it
        push=room(with_state and denominator == "negatives").zero_(),
    )
    means = torch.empty_like(tables.directions, dtype=torch.float32)
    narrow = normalize and 1 / temperature <= _LARGEST_EXPONENT
    if features.numel() > 0:
        with torch.cuda.device_of(features):
            class_means_kernel[(len(means),)](
                tables.directions, tables.firsts, tables.sizes, means, E=means.shape[1], BLOCK_M=64
            )
            _launch(
                forward_kernel,
                lambda config: (volumes * triton.cdiv(voxels, config["BLOCK_V"]),),
                features=features, **_strides("f", features), labels=labels, **_strides("l", labels),
                weight=weight, **_strides("w", labels if weight is None else weight),
                directions=tables.directions, means=means, ordered=tables.ordered, sizes=tables.sizes,
                live=tables.live, loss=saved.losses, gradient=saved.gradient, **_strides("g", saved.gradient),
                slope=saved.slope, place=saved.place, level=saved.level, push=saved.push, sums=sums, counts=counts,
                channels=channels, voxels=voxels, rows=len(means), ignore_index=ignore_index,
                inverse_temperature=1 / temperature, E=means.shape[1], NORMALIZE=normalize,
                NEGATIVES=denominator == "negatives", WEIGHTED=weight is not None, WITH_LOSS=with_losses,
                WITH_GRADIENT=with_gradient, WITH_STATE=with_state,
                FIXED=narrow and not (with_gradient and features.dtype != torch.float32),
                PRECISION=precision(features.dtype, means.shape[1]),
            )  # fmt: skip
    return sums.sum(0), counts.sum(0, dtype=torch.int64), saved


def scale_block(width: int) -> int:
    """Voxels of a program of `scale_kernel`."""
    return 2048 // width


def features_gradient(saved: Saved, scale: Tensor) -> Tensor:
    """Gradient of the features, `scale` `(B, V)` times what the forward pass saved."""
    scaled = torch.empty_like(saved.gradient)
    volumes, channels, voxels = scaled.shape
    block = scale_block(padded(channels))
    if scaled.numel() > 0:
        with torch.cuda.device_of(scaled):
            scale_kernel[(volumes * triton.cdiv(voxels, block),)](
                saved.gradient, *saved.gradient.stride(), saved.slope, scale, *scale.stride(), scaled,
                channels, voxels, E=padded(channels), BLOCK_V=block,
            )  # fmt: skip
    return scaled


def keys_gradient(
    features: Tensor,
    keys: Tensor,
    tables: Tables,
    saved: Saved,
    scale: Tensor,
    *,
    temperature: float,
    normalize: bool,
    denominator: str,
) -> Tensor:
    """Gradient of the keys `(M, E)` for the losses times `scale` `(B, V)`."""
    (volumes, channels, voxels), (rows, width) = features.shape, tables.directions.shape
    largest = scale.abs().amax() if scale.numel() > 0 else scale.new_ones(())
    largest = largest.where(largest != 0, 1)
    parts = max(1, min(2**16 // rows, volumes * voxels // 1024))
    partial = features.new_empty(parts, rows, width, dtype=torch.float32)
    with torch.cuda.device_of(features):
        _launch(
            keys_kernel,
            lambda config: (rows // config["BLOCK_M"], parts),
            features=features, **_strides("f", features), slope=saved.slope, place=saved.place, level=saved.level,
            push=saved.push, scale=scale, **_strides("s", scale), largest=largest, directions=tables.directions,
            sizes=tables.sizes, live=tables.live, partial=partial, channels=channels, volumes=volumes, voxels=voxels,
            rows=rows, inverse_temperature=1 / temperature, E=width, NORMALIZE=normalize,
            NEGATIVES=denominator == "negatives", PRECISION=precision(features.dtype, width),
        )  # fmt: skip
    gradient = partial.sum(0)[:, :channels] * largest
    if normalize:
        gradient = (gradient - tables.wide * (tables.wide * gradient).sum(1, keepdim=True)) / tables.lengths
    gradient = gradient.masked_fill((tables.sizes == 0)[:, None], 0)
    return torch.empty_like(gradient).index_copy_(0, tables.order, gradient)[: len(keys)].to(keys.dtype)
