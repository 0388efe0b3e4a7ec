# SPDX-License-Identifier: Apache-2.0
"""The forward pass that all built-in nets share: check, pad, encode, decode, classify, crop."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssmis._checks import check_choice, check_range
from ssmis.nets.blocks import NORMS, Size, channel_dropout, check_dims, crop, pad_to_multiple, per_axis
from ssmis.nets.heads import SegmentationHead
from ssmis.nets.output import NetOutput


class EncoderDecoder(nn.Module):
    """An encoder that gives maps from fine to coarse, a decoder that joins them at full resolution, a 1^dims head.

    Images whose sizes do not divide by the coarsest stride are padded with zeros at the end of each axis. Outputs are
    cropped back: logits and features to the size of the images, a pyramid map of stride s to `ceil(size / s)`.

    Args:
        encoder: padded images `(B, C, *S)` -> list of maps from fine to coarse.
        decoder: such a list -> features `(B, E, *S)`.
        in_channels: C.
        classes: K >= 2, with the background.
        channels: E.
        dims: number of spatial dimensions, 2 or 3.
        widths: channels of the encoder's maps, kept as `pyramid_channels`.
        strides: strides of the encoder's maps, one number or one an axis; the last one is the coarsest.
        norm: norm of the encoder and decoder, to refuse images that leave it nothing to normalise.
        dropout: probability with which a feature channel is dropped before the head, in [0, 1].
        bottleneck_dropout: the same for the coarsest map before the decoder; `pyramid` holds it undropped.

    Raises:
        ValueError: an argument is out of range; in forward: the images have another number of axes or channels, or
            are so small that the norm sees one value a channel.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        in_channels: int,
        classes: int,
        channels: int,
        dims: int,
        widths: Sequence[int],
        strides: Sequence[Size],
        norm: str,
        dropout: float = 0.0,
        bottleneck_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_dims(dims)
        check_choice(norm, NORMS, name="norm")
        check_range(dropout, 0.0, 1.0, name="dropout")
        self.in_channels = in_channels
        self.classes = classes
        self.channels = channels
        self.dims = dims
        self.norm = norm
        self.pyramid_channels = tuple(widths)
        self.strides = tuple(stride if isinstance(stride, int) else tuple(stride) for stride in strides)
        self.encoder = encoder
        self.bottleneck_dropout = channel_dropout(bottleneck_dropout, dims=dims)
        self._batch_norms = any(isinstance(module, _BatchNorm) for module in encoder.modules())  # a timm encoder's own
        self.decoder = decoder
        self.dropout = channel_dropout(dropout, dims=dims)
        self.head = SegmentationHead(channels, classes, dims=dims)

    if TYPE_CHECKING:
        __call__: Callable[..., NetOutput]  # torch says that any module returns Any

    def forward(self, images: Tensor) -> NetOutput:
        """Segment images `(B, C, *S)`."""
        check_images(images, channels=self.in_channels, dims=self.dims)
        size = images.shape[2:]
        padded = pad_to_multiple(images, self.strides[-1])
        self._check_coarsest(images, padded)
        maps = list(self.encoder(padded))
        features = self.decoder([*maps[:-1], self.bottleneck_dropout(maps[-1])])
        logits = self.head(self.dropout(features))
        pyramid = [
            crop(level, [-(-n // s) for n, s in zip(size, per_axis(stride, dims=self.dims))])
            for level, stride in zip(maps, self.strides, strict=True)
        ]
        return NetOutput(crop(logits, size), crop(features, size), tuple(pyramid))

    def _check_coarsest(self, images: Tensor, padded: Tensor) -> None:
        values = padded.shape[2:].numel() // math.prod(per_axis(self.strides[-1], dims=self.dims))
        alone = self.training and values * images.shape[0] == 1
        if (values == 1 and self.norm == "instance") or (alone and self.norm == "batch"):
            norm, instead = self.norm, "use fewer levels, norm='group' or norm='none'"
        elif alone and self._batch_norms:
            norm, instead = "batch", "more than one a step: the encoder has a norm of its own"
        else:
            return
        raise ValueError(
            f"images has shape {tuple(images.shape)}, which leaves one value a channel at the coarsest level "
            f"(stride {self.strides[-1]}) for norm {norm!r}; expected larger images, or {instead}"
        )


def check_widths(widths: Sequence[int]) -> None:
    """Raise ValueError unless `widths` has two or more entries, all of them >= 1."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths is {tuple(widths)}; expected at least 2 channel counts of 1 or more")


def check_images(images: Tensor, *, channels: int, dims: int) -> None:
    """Raise ValueError unless `images` is `(B, channels, *S)` with `dims` spatial axes."""
    if images.ndim != dims + 2:
        raise ValueError(
            f"images has shape {tuple(images.shape)} with {images.ndim} axes; "
            f"expected {dims + 2}: (B, {channels}, {'H, W' if dims == 2 else 'D, H, W'})"
        )
    if images.shape[1] != channels:
        raise ValueError(f"images has {images.shape[1]} channels (shape {tuple(images.shape)}); expected {channels}")
