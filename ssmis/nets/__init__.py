# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks; every net returns a `NetOutput`."""

from ssmis.nets.adapter import NetAdapter
from ssmis.nets.attention_gate import CrossAttentionGate
from ssmis.nets.base import EncoderDecoder
from ssmis.nets.conv import Conv2d, Conv3d, protect_small_maps
from ssmis.nets.ema import EMA
from ssmis.nets.fusion import FusedNets, FusionHead, GatedFusion
from ssmis.nets.heads import ProjectionHead, SegmentationHead
from ssmis.nets.output import NetOutput
from ssmis.nets.resnet_unet import ResNetUNet
from ssmis.nets.timm_unet import TimmUNet
from ssmis.nets.unet import UNet
from ssmis.nets.vnet import VNet

__all__ = [
    "EMA",
    "Conv2d",
    "Conv3d",
    "CrossAttentionGate",
    "EncoderDecoder",
    "FusedNets",
    "FusionHead",
    "GatedFusion",
    "NetAdapter",
    "NetOutput",
    "ProjectionHead",
    "ResNetUNet",
    "SegmentationHead",
    "TimmUNet",
    "UNet",
    "VNet",
    "protect_small_maps",
]
