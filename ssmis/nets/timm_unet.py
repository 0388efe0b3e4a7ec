# SPDX-License-Identifier: Apache-2.0
"""A 2-D U-Net over any timm encoder that gives feature maps."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmis._optional import require
from ssmis.nets.base import EncoderDecoder, check_widths
from ssmis.nets.blocks import conv_stack
from ssmis.registry import NETS, Example


class TimmEncoder(nn.Module):
    """A timm model with `features_only=True`; its maps come out as `(B, C, H, W)` from fine to coarse.

    Args:
        name: name of the model in timm.
        in_channels: channels of the images.
        pretrained: load weights (timm downloads them and adapts the first layer to `in_channels`).
        options: further arguments of `timm.create_model`.
    """

    def __init__(self, name: str, in_channels: int, *, pretrained: bool, options: Mapping[str, Any]) -> None:
        super().__init__()
        timm = require("timm", extra="timm", purpose="2-D encoders")
        if ":" not in name and not timm.is_model(name):  # a colon: "hf-hub:..." or "local-dir:..."
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; see timm.list_models()"
            raise ValueError(f"encoder is {name!r}, which timm does not have{hint}")
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}; expected at least 1")
        self.model = timm.create_model(
            name, pretrained=pretrained, features_only=True, in_chans=in_channels, **dict(options)
        )
        self.channels: list[int] = self.model.feature_info.channels()
        self.strides: list[int] = self.model.feature_info.reduction()
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps from fine to coarse."""
        maps: list[Tensor] = self.model(images)
        return [level.permute(0, 3, 1, 2) for level in maps] if self.channels_last else maps


class InterpolatingDecoder(nn.Module):
    """Upsample, concatenate the encoder's map where there is one, convolve twice; down to stride 1.

    Args:
        channels: channels of the encoder's maps from fine to coarse.
        strides: their strides; the finest may be larger than 1, and neighbours may be equal.
        widths: output channels at strides 1, 2, 4, ...; the last one serves all coarser levels.
        norm: see `norm_layer`.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], widths: Sequence[int], *, norm: str) -> None:
        super().__init__()
        skips = list(zip(strides[:-1], channels[:-1]))[::-1]  # from coarse to fine
        stride = skips[-1][0] if skips else strides[-1]
        while stride > 1:
            stride = stride // 2 if stride % 2 == 0 else 1
            skips.append((stride, 0))
        self.factors: list[int] = []
        stacks = []
        current, width = strides[-1], channels[-1]
        for stride, skip in skips:
            after = widths[min(round(math.log2(stride)), len(widths) - 1)]
            stacks.append(conv_stack(width + skip, after, 2, norm=norm, dims=2))
            self.factors.append(current // stride)
            current, width = stride, after
        self.stacks = nn.ModuleList(stacks)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Join maps from fine to coarse into `(B, widths[0], H, W)` at full resolution."""
        *skips, features = maps
        skips.reverse()
        for i, (factor, stack) in enumerate(zip(self.factors, self.stacks, strict=True)):
            if factor > 1:
                features = F.interpolate(features, scale_factor=factor, mode="nearest")
            features = stack(torch.cat([skips[i], features], dim=1) if i < len(skips) else features)
        return features


@NETS.register("timm_unet", example=Example(create={"encoder": "mobilenetv3_small_050"}, dims=(2,)))
class TimmUNet(EncoderDecoder):
    """A U-Net in 2-D with an encoder from timm.

    Args:
        encoder: name of a timm model that supports `features_only=True`, such as "resnet18" or "convnext_atto".
        in_channels: channels of the images.
        classes: K >= 2, with the background.
        pretrained: start from timm's weights, which are downloaded.
        widths: channels of the decoder at strides 1, 2, 4, ...; the last one serves all coarser levels.
        norm: norm of the decoder, "batch", "instance", "group" or "none"; the encoder keeps its own.
        dropout: probability of dropping a channel after the last decoder block.
        encoder_options: further arguments of `timm.create_model`, for example `{"img_size": 256}` for encoders of a
            fixed image size, or `{"drop_path_rate": 0.1}`.

    Raises:
        ImportError: timm is missing; the message has the pip line.
        ValueError: an argument is out of range or timm has no such model; for images, see `EncoderDecoder`.
    """

    def __init__(
        self,
        encoder: str = "resnet18",
        in_channels: int = 1,
        classes: int = 2,
        *,
        pretrained: bool = False,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        norm: str = "batch",
        dropout: float = 0.0,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_widths(widths)
        maps = TimmEncoder(encoder, in_channels, pretrained=pretrained, options=encoder_options or {})
        super().__init__(
            maps,
            InterpolatingDecoder(maps.channels, maps.strides, widths, norm=norm),
            in_channels=in_channels,
            classes=classes,
            channels=widths[0],
            dims=2,
            widths=maps.channels,
            strides=maps.strides,
            norm=norm,
            dropout=dropout,
        )
