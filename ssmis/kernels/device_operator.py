# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast on a GPU as a torch operator: what autograd and `torch.compile` see of the device code.

The gradient by the features' directions is made in the forward pass, in the features' dtype and before any scale, so
that half precision keeps its range; backward scales it. Triton is imported when the operator first runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssmis.kernels.operator import once_differentiable


@torch.library.custom_op("ssmis::voxel_contrast_device", mutates_args=())
def voxel_contrast_device_op(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    weight: Tensor | None,
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
    reduction: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, counts of valid and skipped voxels, divisor, and the six tensors of `Saved`, for features `(B, E, V)`.

    `needs` says which of features, keys and weight will want a gradient.
    """
    from ssmis.kernels import triton_voxel_contrast as device

    tables = device.prepare(keys, key_labels, ignore_index=ignore_index, normalize=normalize, dtype=features.dtype)
    sums, counts, saved = device.forward(
        features,
        labels,
        weight,
        tables,
        temperature=temperature,
        ignore_index=ignore_index,
        normalize=normalize,
        denominator=denominator,
        with_losses=reduction == "none" or needs[2],
        with_gradient=needs[0],
        with_state=needs[1] or needs[2],
    )
    total = sums[1].where(sums[1] > 0, 1) if reduction == "mean" else torch.ones_like(sums[1])
    if reduction == "none":
        loss = saved.losses.clone() if weight is None else saved.losses * weight.where(saved.losses != 0, 0)
    else:
        loss = sums[0] / total
    return loss, counts[0].clone(), counts[1].clone(), total, *saved


@torch.library.custom_op("ssmis::voxel_contrast_device_backward", mutates_args=())
def voxel_contrast_device_backward_op(
    upstream: Tensor,
    features: Tensor | None,
    keys: Tensor,
    key_labels: Tensor,
    weight: Tensor | None,
    saved: Sequence[Tensor],
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
    reduction: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, keys and weight, empty where nobody needs them; `saved` is loss, divisor and `Saved`."""
    from ssmis.kernels import triton_voxel_contrast as device

    loss, total, state = saved[0], saved[1], device.Saved(*saved[2:])
    scale = (upstream / (total * temperature)).expand(state.slope.shape)
    if weight is not None or reduction == "none":
        own = scale if weight is None else scale * weight
        scale = own.where(state.slope != 0, 0)  # whatever stands there where the voxel does not count
    grad_features, grad_keys, grad_weight = (upstream.new_empty(0) for _ in range(3))
    if needs[0]:
        grad_features = device.features_gradient(state, scale)
    if features is not None:
        grad_keys = device.keys_gradient(
            features,
            keys,
            device.prepare(keys, key_labels, ignore_index=ignore_index, normalize=normalize, dtype=features.dtype),
            state,
            scale,
            temperature=temperature,
            normalize=normalize,
            denominator=denominator,
        )
    if weight is not None and needs[2]:
        offset = loss if reduction == "mean" else 0.0
        grad_weight = ((state.losses - offset) * (upstream / total)).where(state.place >= 0, 0).to(weight.dtype)
    return grad_features, grad_keys, grad_weight


@voxel_contrast_device_op.register_fake
def _(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    weight: Tensor | None,
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
    reduction: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def room(wanted: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        return features.new_empty(labels.shape if wanted else 0, dtype=dtype)

    state = needs[1] or needs[2]
    return (
        features.new_empty(labels.shape if reduction == "none" else (), dtype=torch.float32),
        *(features.new_empty((), dtype=torch.int64) for _ in range(2)),
        features.new_empty((), dtype=torch.float32),
        room(reduction == "none" or needs[2]),
        torch.empty_like(features) if needs[0] else features.new_empty(0, 0, 0),
        room(needs[0] or state),
        room(state, torch.int32),
        room(state),
        room(state and denominator == "negatives"),
    )  # type: ignore[return-value]


@voxel_contrast_device_backward_op.register_fake
def _(
    upstream: Tensor,
    features: Tensor | None,
    keys: Tensor,
    key_labels: Tensor,
    weight: Tensor | None,
    saved: Sequence[Tensor],
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
    reduction: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    none = upstream.new_empty(0)
    return (
        torch.empty_like(saved[3]) if needs[0] else none,
        keys.new_empty(keys.shape) if features is not None else none.clone(),
        weight.new_empty(weight.shape) if weight is not None and needs[2] else none.clone(),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, _, keys, key_labels, weight, *settings, needs = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.settings, ctx.needs = settings, needs
    loss, _, _, *saved = output
    ctx.save_for_backward(features if needs[1] else None, keys, key_labels, weight, loss, *saved)


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * 6
    if upstream is None:
        return None, None, None, None, None, *rest
    features, keys, key_labels, weight, *saved = ctx.saved_tensors
    gradients = voxel_contrast_device_backward_op(
        upstream, features, keys, key_labels, weight, saved, *ctx.settings, ctx.needs
    )
    first, second, third = once_differentiable(
        gradient if need else None for gradient, need in zip(gradients, ctx.needs)
    )
    return first, None, second, None, third, *rest


voxel_contrast_device_op.register_autograd(_backward, setup_context=_setup_context)
