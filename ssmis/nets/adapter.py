# SPDX-License-Identifier: Apache-2.0
"""Any third-party network that returns logits, as one that returns a `NetOutput`."""

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssmis.nets.conv import protect_small_maps
from ssmis.nets.output import NetOutput


class NetAdapter(nn.Module):
    """Wrap a module that maps images `(B, C, *S)` to logits `(B, K, *S)`, alone or among other outputs.

    The module may return the logits as a tensor, in a tuple or list (deep supervision: the first entry), in a mapping,
    or as a deep-supervision stack `(B, N, K, *S)`. Further outputs that look like logits of the same classes go into
    `heads` under their key or position. Heads and features that are coarser than the images are upsampled linearly.

    Args:
        module: the network.
        features: dotted name of a submodule whose output becomes `features`. What in-place layers behind it do to
            this output is seen; if it runs several times in one pass, the last output counts.
        logits: key or position of the logits; default: the key "logits" of a mapping, position 0 of a tuple.
        classes: K, for recipes that keep class prototypes.
        channels: of the features, likewise.

    The module's convolutions are changed in place to compute small maps in float32 on a CPU (`ssmis.nets.conv`).

    Raises:
        ValueError: `features` names no submodule; in forward: the output holds no logits that fit the images, or the
            named submodule did not run or gave no map.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        features: str | None = None,
        logits: str | int | None = None,
        classes: int | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        protect_small_maps(module)
        self.module = module
        self.classes = classes
        self.channels = channels
        self.features = features
        self.logits = logits
        self._capture = _Capture()
        if features is not None:
            layers = dict(module.named_modules())
            layers.pop("")  # the module itself
            if features not in layers:
                near = difflib.get_close_matches(features, layers, n=3, cutoff=0.3)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; see module.named_modules()"
                raise ValueError(f"features is {features!r}, which {type(module).__name__} does not have{hint}")
            layers[features].register_forward_hook(self._capture)

    if TYPE_CHECKING:
        __call__: Callable[..., NetOutput]  # torch says that any module returns Any

    def forward(self, images: Tensor) -> NetOutput:
        """Run the module on images `(B, C, *S)`."""
        self._capture.value = None
        returned = self.module(images)
        captured, self._capture.value = self._capture.value, None
        named = _named_outputs(returned, images)
        name = str(("logits" if isinstance(returned, Mapping) else 0) if self.logits is None else self.logits)
        if name not in named:
            raise ValueError(f"logits is {name!r}, which the module does not return; it returns {list(named)}")
        logits = named.pop(name)
        _check_logits(logits, images)
        heads = {
            key: _resize(other, images)
            for key, other in named.items()
            if isinstance(other, Tensor) and other.ndim == logits.ndim and other.shape[:2] == logits.shape[:2]
        }
        return NetOutput(logits, self._features(captured, images), (), heads)

    def _features(self, captured: Any, images: Tensor) -> Tensor | None:
        if self.features is None:
            return None
        if captured is None:
            raise ValueError(f"features is {self.features!r}, a layer that did not run; name one that forward calls")
        if not isinstance(captured, Tensor) or captured.ndim != images.ndim or captured.shape[0] != images.shape[0]:
            raise ValueError(
                f"features is {self.features!r}, a layer that gives {_describe(captured)}; "
                f"expected a map (B, E, *S) with B = {images.shape[0]} and {images.ndim - 2} spatial axes"
            )
        return _resize(captured, images)


class _Capture:
    """A forward hook that keeps the output; an object and not a closure, so that a deep copy hooks its own copy."""

    def __init__(self) -> None:
        self.value: Any = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.value = output


def _named_outputs(returned: Any, images: Tensor) -> dict[str, Any]:
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items()}
    if isinstance(returned, Tensor) and returned.ndim == images.ndim + 1:
        returned = returned.unbind(1)
    if isinstance(returned, tuple | list):
        return {str(i): value for i, value in enumerate(returned)}
    return {"0": returned}


def _check_logits(logits: Any, images: Tensor) -> None:
    expected = f"expected floating-point logits ({images.shape[0]}, K >= 2, {', '.join(map(str, images.shape[2:]))})"
    if (
        not isinstance(logits, Tensor)
        or not logits.is_floating_point()
        or logits.ndim != images.ndim
        or logits.shape[0] != images.shape[0]
        or logits.shape[1] < 2
        or logits.shape[2:] != images.shape[2:]
    ):
        raise ValueError(f"the module returned {_describe(logits)} as logits; {expected}")


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _resize(tensor: Tensor, images: Tensor) -> Tensor:
    if tensor.shape[2:] == images.shape[2:]:
        return tensor
    return F.interpolate(tensor, size=images.shape[2:], mode="bilinear" if images.ndim == 4 else "trilinear")
