# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast as a torch operator: what autograd and `torch.compile` see of the chunked path.

A scalar loss computes its gradient in the forward pass, while each chunk is in cache, and saves it (on a CPU only that
of voxels that count, one after another); backward multiplies it and gives each voxel its own. For `reduction="none"`
the upstream gradient differs from voxel to voxel, so backward makes the pass.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmis.kernels.chunked import PART, classify, contrast, prepare_keys, unpack
from ssmis.kernels.keys import keep


def accumulation_dtype(features: Tensor, keys: Tensor) -> torch.dtype:
    """Return the dtype the contrast is computed in: the wider of both, at least float32."""
    return torch.promote_types(torch.promote_types(features.dtype, keys.dtype), torch.float32)


def storage_dtype(features: Tensor, keys: Tensor) -> torch.dtype:
    """Return the dtype the gradient of the features is kept in between the passes: bfloat16 has the range for it."""
    return torch.bfloat16 if features.dtype == torch.bfloat16 else accumulation_dtype(features, keys)


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
    needs: Sequence[bool],
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # loss, counted (B, V), gradients of features, keys and weight, empty where not needed; `upstream` (B, V) multiplies
    # the unreduced loss; with `places` the gradient of the features is packed unless every voxel counts
    dtype, storage = accumulation_dtype(features, keys), storage_dtype(features, keys)
    if keys.device.type == "cpu":  # here a look at the values costs nothing: unwritten slots are not multiplied
        live = (key_labels != ignore_index).nonzero().squeeze(1)
    else:
        live = torch.arange(len(keys), device=keys.device)
    own_weight = torch.ones_like(labels, dtype=dtype) if weight is None else weight.to(dtype)
    grad_features = grad_keys = None
    if len(live) == 0:
        losses, counted = own_weight.new_zeros(labels.shape), torch.zeros_like(labels, dtype=torch.bool)
        own_weight, total = torch.zeros_like(losses), own_weight.new_ones(())
        if places is not None:
            places.zero_()
    else:
        table = prepare_keys(keys[live], key_labels[live], ignore_index=ignore_index, normalize=normalize, dtype=dtype)
        classes, counted = classify(labels, table, ignore_index=ignore_index, denominator=denominator)
        own_weight = keep(own_weight, counted)
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
            scale=scale if needs[0] or needs[1] else None,
            with_keys=needs[1],
            storage=storage,
            places=places,
        )
    loss = losses * own_weight
    if reduction != "none":
        loss = loss.sum() / total
    gradients = [losses.new_empty(0) for _ in range(3)]
    if needs[0]:
        gradients[0] = torch.zeros_like(features, dtype=storage) if grad_features is None else grad_features
    if needs[1]:
        gradients[1] = keys.new_zeros(keys.shape, dtype=dtype)
        if grad_keys is not None:
            gradients[1].index_copy_(0, live, grad_keys)
    if weight is not None and needs[2]:
        offset = loss * (own_weight.sum() > 0) if reduction == "mean" else 0.0
        gradients[2] = (((losses if upstream is None else losses * upstream) - offset) / total).where(counted, 0)
    return loss, counted, gradients[0], gradients[1], gradients[2]


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
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, counts of valid and skipped voxels, gradients for features `(B, E, V)`, keys and weight, and places.

    `needs` says which of the three will want a gradient; the others are empty, as all are for reduction "none". On a
    CPU, if some voxels do not count, the gradient of the features is packed, and places are for `unpack`.
    """
    needs = [need and reduction != "none" for need in needs]
    places = _places(features, needs)
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
            needs=needs,
            places=places if len(places) else None,
        )
    valid = counted.count_nonzero()  # all are labelled
    skipped = (labels != ignore_index).count_nonzero() - valid
    return loss, valid, skipped, gradients[0], gradients[1], gradients[2], places


def _places(features: Tensor, needs: Sequence[bool]) -> Tensor:
    packs = needs[0] and features.device.type == "cpu"
    return features.new_zeros((len(features), features.shape[2]) if packs else (0, 0), dtype=torch.int32)


@torch.library.custom_op("ssmis::voxel_contrast_unpack", mutates_args=())
def voxel_contrast_unpack_op(
    upstream: Tensor, saved: Tensor, places: Tensor, valid: Tensor, dtype: torch.dtype
) -> Tensor:
    """Gradient of the features in `dtype`, times a scalar; packed where there are places and not all are valid."""
    if len(places) and int(valid) < places.numel():
        return unpack(saved, places, upstream, dtype)
    return _scaled(saved, upstream, dtype)


@voxel_contrast_unpack_op.register_fake
def _(upstream: Tensor, saved: Tensor, places: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(saved, dtype=dtype)


def _hands_over(upstream: Tensor, saved: Tensor, places: Tensor, valid: Tensor, dtype: torch.dtype) -> bool:
    """Whether what was saved is the gradient as it is, as after `loss.backward()`, and nobody will ask for it again."""
    if type(upstream) is not Tensor or upstream.device.type != "cpu":  # traced, or not to be waited for
        return False
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)  # not public
    if keeps_graph() or saved.dtype != dtype or int(valid) < places.numel():
        return False
    try:
        return float(upstream) == 1
    except RuntimeError:  # a batch of gradients (`is_grads_batched`, `vmap`)
        return False


def _scaled(saved: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    if saved.dtype == dtype:
        return saved * upstream  # in this order: a scalar that comes first is rounded to half precision by torch
    rounded = torch.empty_like(saved, dtype=dtype)
    for own, out in zip(saved.split(PART, 2), rounded.split(PART, 2)):
        out.copy_(upstream * own)  # no second copy of all in float32
    return rounded


class _Once(torch.autograd.Function):
    """A value that something asked for a derivative of; it has none."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, wanted: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("voxel_contrast has no second derivative: its gradient is computed in the forward pass")


def once_differentiable(gradients: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients as a backward pass returns them; a derivative of one, where the pass keeps a graph, is an error."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    wanted = torch.zeros((), requires_grad=True)
    return tuple(None if gradient is None else _Once.apply(gradient, wanted) for gradient in gradients)


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
    needs: Sequence[bool],
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
            needs=needs,
        )
    return grad_features, grad_keys, grad_weight


def _empty_gradients(
    features: Tensor, keys: Tensor, weight: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(features, keys)
    empty = [features.new_empty(0, dtype=dtype) for _ in range(3)]
    return (
        torch.empty_like(features, dtype=storage_dtype(features, keys)) if needs[0] else empty[0],
        keys.new_empty(keys.shape, dtype=dtype) if needs[1] else empty[1],
        features.new_empty(weight.shape, dtype=dtype) if weight is not None and needs[2] else empty[2],
    )


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
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(features, keys)
    loss = features.new_empty(labels.shape if reduction == "none" else (), dtype=dtype)
    valid, skipped = labels.new_empty(()), labels.new_empty(())
    needs = [need and reduction != "none" for need in needs]
    return loss, valid, skipped, *_empty_gradients(features, keys, weight, needs), _places(features, needs)


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
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(features, keys, weight, needs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, labels, keys, key_labels, weight, *settings, reduction, needs = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.settings, ctx.reduction, ctx.needs = settings, reduction, needs
    ctx.dtypes = features.dtype, keys.dtype, None if weight is None else weight.dtype
    if reduction == "none":
        ctx.save_for_backward(features, labels, keys, key_labels, weight)
    else:
        ctx.save_for_backward(output[1], *output[3:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * 6
    if upstream is None:
        return None, None, None, None, None, *rest
    if ctx.reduction == "none":
        gradients = voxel_contrast_backward_op(upstream, *ctx.saved_tensors, *ctx.settings, ctx.needs)
    else:
        valid, first, second, third, places = ctx.saved_tensors
        if ctx.needs[0] and not _hands_over(upstream, first, places, valid, ctx.dtypes[0]):
            first = voxel_contrast_unpack_op(upstream, first, places, valid, ctx.dtypes[0])
        gradients = first, upstream * second, upstream * third
    features, keys, weight = once_differentiable(
        gradient.to(dtype) if need else None for gradient, dtype, need in zip(gradients, ctx.dtypes, ctx.needs)
    )
    return features, None, keys, None, weight, *rest


voxel_contrast_op.register_autograd(_backward, setup_context=_setup_context)
