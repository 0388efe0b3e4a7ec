# SPDX-License-Identifier: Apache-2.0
"""Contrast of voxel features with labelled keys: the public function."""

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from numbers import Integral, Real
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssmis._checks import check_choice, check_labels
from ssmis.kernels import reference
from ssmis.kernels.device_operator import voxel_contrast_device_op
from ssmis.kernels.operator import voxel_contrast_op

Denominator = Literal["all", "negatives"]
ContrastReduction = Literal["mean", "sum", "none"]
Implementation = Literal["auto", "torch", "reference", "triton"]


class VoxelContrastStats(NamedTuple):
    """Int64 scalars on the device: voxels that count, and labelled voxels skipped for want of a key or a negative."""

    valid: Tensor
    skipped: Tensor


@overload
def voxel_contrast(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float = ...,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    normalize: bool = ...,
    denominator: Denominator = ...,
    reduction: ContrastReduction = ...,
    return_stats: Literal[False] = ...,
    impl: Implementation = ...,
) -> Tensor: ...


@overload
def voxel_contrast(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float = ...,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    normalize: bool = ...,
    denominator: Denominator = ...,
    reduction: ContrastReduction = ...,
    return_stats: Literal[True],
    impl: Implementation = ...,
) -> tuple[Tensor, VoxelContrastStats]: ...


def voxel_contrast(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float = 0.1,
    weight: Tensor | None = None,
    ignore_index: int = -1,
    normalize: bool = True,
    denominator: Denominator = "all",
    reduction: ContrastReduction = "mean",
    return_stats: bool = False,
    impl: Implementation = "auto",
) -> Tensor | tuple[Tensor, VoxelContrastStats]:
    r"""Multi-positive InfoNCE of every voxel against a small set of keys, without a voxels x keys matrix in memory.

    With $s_{vm} = \cos(f_v, k_m) / \tau$ and $P(v)$ the keys of the voxel's class, $N(v)$ those of other classes:
    "all": $\ell_v = \log \sum_m e^{s_{vm}} - \frac{1}{|P|} \sum_{p \in P} s_{vp}$;
    "negatives": $\ell_v = \frac{1}{|P|} \sum_{p \in P} \log (1 + e^{\mathrm{LSE}_{n \in N} s_{vn} - s_{vp}})$, which
    can reach 0 where "all" is floored at $\log |P|$.

    Args:
        features: `(B, E, *S)`, any strides; half precision is computed in float32, on a GPU from products of 16-bit
            numbers.
        labels: integer `(B, *S)`.
        keys: `(M, E)`; M may be 0.
        key_labels: integer `(M,)`; a slot with `ignore_index` takes no part.
        temperature: tau > 0.
        weight: `(B, *S)`, non-negative, of each voxel; None is 1.
        ignore_index: label of voxels and slots that take no part.
        normalize: cosine of features and keys, else their inner product. A vector shorter than 1e-12 has no direction:
            its cosines are 0 and it gets no gradient.
        denominator: "all" or "negatives".
        reduction: "mean" is $\sum_v w_v \ell_v / \sum_v w_v$ over the voxels that count, "sum" its numerator, "none"
            gives $w_v \ell_v$ `(B, *S)`.
        return_stats: also return `VoxelContrastStats(valid, skipped)`.
        impl: "torch" is the chunked path, "triton" device code, "reference" the slow definition; "auto" is "triton" on
            a GPU where `reasons` finds nothing against it, else "torch".

    Returns:
        The loss in float32 (float64 for float64 inputs), and the statistics if asked for.

    Raises:
        ValueError: types, shapes, dtypes or devices that do not fit, a number out of range, or an unknown choice.
        RuntimeError: `impl="triton"` cannot run here; the message has every reason. Also a second derivative, one in
            forward mode, and the transforms of `torch.func`.

    Gradient: to features (exactly zero where a voxel does not count), keys and weight; not twice differentiable.
    Empty case: a voxel whose class has no key (or, for "negatives", no key of another class) is skipped; with no voxel
        left the loss is an attached zero.
    Paper: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (arXiv 2004.11362), is "all". Differs from the
        paper: keys are given, not the other anchors.

    >>> keys = torch.eye(2)
    >>> voxel_contrast(keys[:, :, None], torch.tensor([[0], [1]]), keys, torch.tensor([0, 1]), temperature=1.0)
    tensor(0.3133)
    """
    _check_types({"features": features, "labels": labels, "keys": keys, "key_labels": key_labels, "weight": weight})
    _check(features, labels, keys, key_labels, weight)
    _check_numbers(temperature, ignore_index, normalize)
    check_choice(denominator, ("all", "negatives"), name="denominator")
    check_choice(reduction, ("mean", "sum", "none"), name="reduction")
    check_choice(impl, ("auto", "torch", "reference", "triton"), name="impl")
    if impl == "triton" and (found := reasons(features, keys)):
        raise RuntimeError(f"impl='triton' cannot run: {'; '.join(found)}")
    if impl == "auto":
        impl = "torch" if features.device.type == "cpu" or reasons(features, keys) else "triton"
    flat, flat_labels, key_labels = features.flatten(2), labels.flatten(1).long(), key_labels.long()
    flat_weight = None if weight is None else weight.flatten(1)
    if impl == "reference":
        with torch.autocast(features.device.type, enabled=False):
            losses, counted = reference.voxel_losses(
                flat,
                flat_labels,
                keys,
                key_labels,
                temperature=temperature,
                ignore_index=ignore_index,
                normalize=normalize,
                denominator=denominator,
            )
            loss = reference.reduce(losses, counted, flat_weight, reduction)
        valid, skipped = counted.sum(), ((flat_labels != ignore_index) & ~counted).sum()
    else:
        _refuse_tangents(features, keys, weight)
        grad_enabled = torch.is_grad_enabled()
        needs = [grad_enabled and tensor is not None and tensor.requires_grad for tensor in (features, keys, weight)]
        settings = (float(temperature), ignore_index, normalize, denominator, reduction)
        tensors = (flat, flat_labels, keys, key_labels, flat_weight)
        if impl == "triton":
            tensors = (*tensors[:4], None if flat_weight is None else flat_weight.float())
            loss, valid, skipped = voxel_contrast_device_op(*tensors, *settings, needs)[:3]
        else:
            loss, valid, skipped = voxel_contrast_op(*tensors, *settings, needs)[:3]
    if reduction == "none":
        loss = loss.view(labels.shape)
    return (loss, VoxelContrastStats(valid, skipped)) if return_stats else loss


def reasons(features: Tensor, keys: Tensor) -> list[str]:
    """Why `impl="triton"` cannot run on these features and keys; an empty list if it can."""
    found = _lacking(features.device)
    for name, tensor in (("features", features), ("keys", keys)):
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            found.append(f"{name} is {tensor.dtype}; expected float32, float16 or bfloat16")
    if features.shape[1] > 256:
        found.append(f"features has {features.shape[1]} channels; expected at most 256")
    if len(keys) > 65536:
        found.append(f"keys has {len(keys)} rows; expected at most 65536")
    if _interpreted() and features.dtype == torch.bfloat16:
        found.append("the Triton interpreter has no bfloat16 products; expected float32 or float16")
    return found


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def _lacking(device: torch.device) -> list[str]:
    found = []
    if find_spec("triton") is None:
        found.append('triton is not installed (pip install "ssmis[triton]")')
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            found.append(f"{device} is older than compute capability 8.0")
    elif not _interpreted():
        found.append(f"features are on {device}, not on a GPU, and TRITON_INTERPRET=1 is not set")
    return found


def _refuse_tangents(*tensors: Tensor | None) -> None:
    if torch.compiler.is_compiling():
        return
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            'voxel_contrast has no derivative in forward mode (jvp); expected backward, or impl="reference"'
        )


def _check_types(tensors: Mapping[str, object]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) and not (name == "weight" and tensor is None):
            raise ValueError(f"{name} is of type {type(tensor).__name__}; expected a tensor")


def _check_numbers(temperature: object, ignore_index: object, normalize: object) -> None:
    if isinstance(temperature, Tensor):
        raise ValueError("temperature is a tensor; expected a number > 0: no gradient reaches it")
    if not isinstance(temperature, Real) or not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature is {temperature!r}; expected a finite number > 0")
    if not isinstance(ignore_index, Integral) or not -(2**63) <= int(ignore_index) < 2**63:
        raise ValueError(f"ignore_index is {ignore_index!r}; expected an integer of at most 64 bits")
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize is {normalize!r}; expected True or False")


def _check(features: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, weight: Tensor | None) -> None:
    if features.ndim < 3 or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(
            f"features is {features.dtype} of shape {tuple(features.shape)}; expected floating point (B, E, *S), E > 0"
        )
    check_labels(labels, features, maps_name="features")
    if keys.ndim != 2 or keys.shape[1] != features.shape[1] or not keys.is_floating_point():
        raise ValueError(
            f"keys is {keys.dtype} of shape {tuple(keys.shape)}; "
            f"expected floating point (M, {features.shape[1]}) to match features {tuple(features.shape)}"
        )
    if key_labels.shape != keys.shape[:1] or key_labels.is_floating_point() or key_labels.is_complex():
        raise ValueError(
            f"key_labels is {key_labels.dtype} of shape {tuple(key_labels.shape)}; "
            f"expected integer ({len(keys)},) to match keys {tuple(keys.shape)}"
        )
    if weight is not None and (weight.shape != labels.shape or not weight.is_floating_point()):
        raise ValueError(
            f"weight is {weight.dtype} of shape {tuple(weight.shape)}; "
            f"expected floating point {tuple(labels.shape)} to match labels"
        )
    for name, tensor in (("labels", labels), ("keys", keys), ("key_labels", key_labels), ("weight", weight)):
        if tensor is not None and tensor.device != features.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {features.device} to match features")
