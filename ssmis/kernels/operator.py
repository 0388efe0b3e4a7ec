# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast as a torch operator: what autograd and `torch.compile` see of the chunked path.

A scalar loss computes its gradient in the forward pass, while each chunk is in cache, and saves it; backward only
multiplies. For `reduction="none"` the upstream gradient differs from voxel to voxel, so backward makes the pass.
"""

from typing import Any

import torch
from torch import Tensor

from ssmis.kernels.chunked import classify, contrast, prepare_keys


def accumulation_dtype(features: Tensor, keys: Tensor) -> torch.dtype:
    """Return the dtype the contrast is computed in: the wider of both, at least float32."""
    return torch.promote_types(torch.promote_types(features.dtype, keys.dtype), torch.float32)


def _contrast(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    weight: Tensor | None,
    upstream: Tensor | None,
    *,
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
    reduction: str,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # loss, counted (B, V), gradients of features, keys and weight; `upstream` (B, V) multiplies the unreduced loss
    dtype = accumulation_dtype(features, keys)
    if keys.device.type == "cpu":  # here a look at the values costs nothing: unwritten slots are not multiplied
        live = (key_labels != ignore_index).nonzero().squeeze(1)
    else:
        live = torch.arange(len(keys), device=keys.device)
    own_weight = labels.new_ones(labels.shape, dtype=dtype) if weight is None else weight.to(dtype)
    grad_features = grad_keys = None
    if len(live) == 0:
        losses, counted = own_weight.new_zeros(labels.shape), torch.zeros_like(labels, dtype=torch.bool)
        total = own_weight.new_ones(())
    else:
        table = prepare_keys(keys[live], key_labels[live], ignore_index=ignore_index, normalize=normalize, dtype=dtype)
        classes, counted = classify(labels, table, ignore_index=ignore_index, denominator=denominator)
        own_weight = own_weight.where(counted, 0)
        total = own_weight.sum()
        total = total.where(total > 0, 1) if reduction == "mean" else torch.ones_like(total)
        scale = (own_weight if upstream is None else own_weight * upstream) / total
        losses, grad_features, grad_keys = contrast(
            features,
            classes,
            counted,
            table,
            temperature=temperature,
            normalize=normalize,
            denominator=denominator,
            scale=scale if with_gradient else None,
        )
    loss = losses * own_weight
    if reduction != "none":
        loss = loss.sum() / total
    none = losses.new_empty(0)
    if not with_gradient:
        return loss, counted, none, none.clone(), none.clone()
    if grad_features is None or grad_keys is None:
        grad_features, grad_keys = (
            torch.zeros_like(features, dtype=dtype),
            keys.new_zeros(0, keys.shape[1], dtype=dtype),
        )
    grad_keys = keys.new_zeros(keys.shape, dtype=dtype).index_copy(0, live, grad_keys)
    grad_weight = none
    if weight is not None:
        offset = loss * (own_weight.sum() > 0) if reduction == "mean" else 0.0
        grad_weight = (((losses if upstream is None else losses * upstream) - offset) / total).where(counted, 0)
    return loss, counted, grad_features, grad_keys, grad_weight


@torch.library.custom_op("ssmis::voxel_contrast", mutates_args=())
def voxel_contrast_op(
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
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, counts of valid and skipped voxels, gradients (empty unless `with_gradient`) for features `(B, E, V)`."""
    with torch.autocast(features.device.type, enabled=False):
        loss, counted, *gradients = _contrast(
            features,
            labels,
            keys,
            key_labels,
            weight,
            None,
            temperature=temperature,
            ignore_index=ignore_index,
            normalize=normalize,
            denominator=denominator,
            reduction=reduction,
            with_gradient=with_gradient and reduction != "none",
        )
    skipped = (labels != ignore_index) & ~counted
    return loss, counted.sum(), skipped.sum(), gradients[0], gradients[1], gradients[2]


@torch.library.custom_op("ssmis::voxel_contrast_backward", mutates_args=())
def voxel_contrast_backward_op(
    upstream: Tensor,
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    weight: Tensor | None,
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the unreduced loss, weighted by `upstream` `(B, V)`."""
    with torch.autocast(features.device.type, enabled=False):
        _, _, grad_features, grad_keys, grad_weight = _contrast(
            features,
            labels,
            keys,
            key_labels,
            weight,
            upstream,
            temperature=temperature,
            ignore_index=ignore_index,
            normalize=normalize,
            denominator=denominator,
            reduction="none",
            with_gradient=True,
        )
    return grad_features, grad_keys, grad_weight


def _empty_gradients(features: Tensor, keys: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(features, keys)
    grad_weight = features.new_empty(0 if weight is None else weight.shape, dtype=dtype)
    return torch.empty_like(features, dtype=dtype), keys.new_empty(keys.shape, dtype=dtype), grad_weight


@voxel_contrast_op.register_fake
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
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(features, keys)
    loss = features.new_empty(labels.shape if reduction == "none" else (), dtype=dtype)
    valid, skipped = labels.new_empty(()), labels.new_empty(())
    if with_gradient and reduction != "none":
        return loss, valid, skipped, *_empty_gradients(features, keys, weight)
    none = features.new_empty(0, dtype=dtype)
    return loss, valid, skipped, none, torch.empty_like(none), torch.empty_like(none)


@voxel_contrast_backward_op.register_fake
def _(
    upstream: Tensor,
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    weight: Tensor | None,
    temperature: float,
    ignore_index: int,
    normalize: bool,
    denominator: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(features, keys, weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, labels, keys, key_labels, weight, *settings, reduction, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.settings, ctx.reduction = settings, reduction
    ctx.dtypes = features.dtype, keys.dtype, None if weight is None else weight.dtype
    if reduction == "none":
        ctx.save_for_backward(features, labels, keys, key_labels, weight)
    else:
        ctx.save_for_backward(*output[3:])


def _backward(ctx: Any, upstream: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if any(other is not None for other in others):
        raise RuntimeError("voxel_contrast has no second derivative: its gradient is computed in the forward pass")
    rest = (None,) * 6
    if upstream is None:
        return None, None, None, None, None, *rest
    if ctx.reduction == "none":
        gradients = voxel_contrast_backward_op(upstream, *ctx.saved_tensors, *ctx.settings)
    else:
        gradients = tuple(upstream * saved for saved in ctx.saved_tensors)
    features, keys, weight = ctx.dtypes
    grad_weight = None if weight is None else gradients[2].to(weight)
    return gradients[0].to(features), None, gradients[1].to(keys), None, grad_weight, *rest


voxel_contrast_op.register_autograd(_backward, setup_context=_setup_context)
