# SPDX-License-Identifier: Apache-2.0
"""The nets that recipes train when they are given none, and what is computed for each of several nets."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from ssmis.nets import CrossAttentionGate, FusionHead, GatedFusion, ResNetUNet, TimmUNet, UNet, VNet
from ssmis.recipes._uc_settings import UCSegConfig
from ssmis.uncertainty import vacuity

MOST_TOKENS = 4096  # patches of a gate, each of which looks at all: more take minutes a step


def dual_nets(
    *,
    in_channels: int = 1,
    classes: int = 2,
    dims: int = 3,
    widths: Sequence[int] = (16, 32, 64, 128, 256),
    blocks: Sequence[int] = (3, 4, 6, 3),
    dropout: float = 0.5,
    norm: str = "batch",
    pooling: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
) -> dict[str, nn.Module]:
    """Return the dual-network paper's pair: a ResNet-34 encoder-decoder named "resnet" and a V-Net named "vnet".

    `blocks` are those of the ResNet's stages, one number less than `widths`; other arguments are of both nets.

    Raises:
        ValueError: an argument is out of range, or `blocks` does not fit `widths`.
    """
    shape: dict[str, Any] = {
        "dims": dims,
        "widths": widths,
        "dropout": dropout,
        "norm": norm,
        "pooling": pooling,
        "kernels": kernels,
    }
    return {
        "resnet": ResNetUNet(in_channels, classes, blocks=blocks, **shape),
        "vnet": VNet(in_channels, classes, **shape),
    }


def uc_seg_nets(
    *,
    in_channels: int = 1,
    classes: int = 2,
    dims: int = 3,
    widths: Sequence[int] = (16, 32, 64, 128, 256),
    norm: str | None = None,
    vnet_norm: str | None = None,
    dropout: float = 0.0,
    encoder: str | None = None,
    pretrained: bool = False,
) -> dict[str, nn.Module]:
    """Return the pair of uncertainty-aware cross-training: "unet" and "vnet", or "timm_unet" and "unet" in 2-D.

    Args:
        in_channels: C.
        classes: K.
        dims: number of spatial dimensions.
        widths: channels of both nets; with an encoder of timm, those of its decoder, and of the U-Net at the strides
            that the encoder has no map of.
        norm: of both nets; None is "instance" in 3-D and "batch" in 2-D.
        vnet_norm: of the V-Net; None is `norm`. The public code has "none".
        dropout: of both nets.
        encoder: 2-D only: name of a timm model. The U-Net takes the encoder's channels, since the features of both nets
            are compared level by level.
        pretrained: start the encoder from timm's weights, which are downloaded.

    Raises:
        ValueError: an encoder in 3-D, or one whose strides are not powers of two.
    """
    norm = norm or ("instance" if dims == 3 else "batch")
    if encoder is None:
        vnet = VNet(in_channels, classes, dims=dims, widths=widths, norm=vnet_norm or norm, dropout=dropout)
        return {"unet": UNet(in_channels, classes, dims=dims, widths=widths, norm=norm, dropout=dropout), "vnet": vnet}
    if dims != 2:
        raise ValueError(f"encoder is {encoder!r} with dims {dims}; expected dims 2: timm has 2-D encoders")
    timm_unet = TimmUNet(
        encoder, in_channels, classes, pretrained=pretrained, widths=widths, norm=norm, dropout=dropout
    )
    strides = [stride for stride in timm_unet.strides if isinstance(stride, int)]  # timm has no others
    maps = dict(zip(strides, timm_unet.pyramid_channels))
    depth = max(maps).bit_length()
    if not set(maps) <= {2**i for i in range(depth)}:
        raise ValueError(f"encoder {encoder!r} has maps of strides {list(maps)}; expected powers of two")
    own = [maps.get(2**i, widths[min(i, len(widths) - 1)]) for i in range(depth)]
    return {"timm_unet": timm_unet, "unet": UNet(in_channels, classes, dims=2, widths=own, norm=norm, dropout=dropout)}


def gated_fusion(config: UCSegConfig, *, classes: int, dims: int) -> GatedFusion:
    """Return the gate over vacuity maps with the head of fused logits, as the coefficients of `UCSeg` have them."""
    c = config
    patch = [c.gate_patch] * dims if isinstance(c.gate_patch, int) else c.gate_patch
    for name, counts in (("gate_patch", patch), ("positions", c.positions)):
        if len(counts) != dims:
            raise ValueError(f"{name} is {counts}; expected {dims} numbers, one for each axis")
    gate = CrossAttentionGate(
        dims=dims,
        size=[length * count for length, count in zip(patch, c.positions)],
        patch=c.gate_patch,
        embedding=c.embedding,
        heads=c.gate_heads,
        hidden=c.gate_hidden,
        dropout=c.gate_dropout,
    )
    head = FusionHead(classes, dims=dims, widths=c.fused_widths, activated=c.fused_activated)
    return GatedFusion(gate, head, uncertainty=vacuity)


def gate_arguments(patch: Sequence[int]) -> dict[str, Any]:
    """A gate patch that divides each axis, the largest up to 16 voxels, unless the gate had too many of them."""
    own = [max(size for size in range(1, 17) if length % size == 0) for length in patch]
    if set(own) == {16} or prod(patch) > MOST_TOKENS * prod(own):
        return {}
    return {"gate_patch": own[0] if len(set(own)) == 1 else own}


def two_nets(nets: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    """Return `nets`, by default the paper's pair.

    Raises:
        ValueError: not exactly two nets.
    """
    if nets is None:
        return dual_nets()
    if len(nets) != 2:
        raise ValueError(f"nets are {list(nets)}; expected exactly two")
    return nets


def feature_space(name: str, net: nn.Module) -> tuple[int, int]:
    """Return a net's number of classes and of feature channels, which its bank of prototypes needs.

    Raises:
        ValueError: the net does not tell.
    """
    classes, channels = getattr(net, "classes", None), getattr(net, "channels", None)
    if not isinstance(classes, int) or not isinstance(channels, int):
        raise ValueError(
            f"net {name!r} ({type(net).__name__}) has no integer attributes `classes` and `channels` (of its "
            "features); the bank of prototypes needs them: set them on the net, or pass contrast_weight=0"
        )
    return classes, channels


def encoder_space(nets: Mapping[str, nn.Module], *, levels: int) -> tuple[int, int, tuple[int, ...]]:
    """Return classes, number of dimensions and channels of the `levels` coarsest encoder maps, in which all nets agree.

    Raises:
        ValueError: a net does not tell, has fewer levels, or another number than the first net.
    """
    found: dict[str, tuple[int, int, tuple[int, ...]]] = {}
    for name, net in nets.items():
        own: list[Any] = [getattr(net, attribute, None) for attribute in ("classes", "dims", "pyramid_channels")]
        if None in own:
            raise ValueError(
                f"net {name!r} ({type(net).__name__}) has no attributes `classes`, `dims` and `pyramid_channels` "
                "(of its encoder maps from fine to coarse); set them on the net"
            )
        classes, dims, channels = own
        if len(channels) < levels:
            raise ValueError(f"net {name!r} has {len(channels)} encoder maps; expected at least levels = {levels}")
        found[name] = (classes, dims, tuple(channels[-levels:]))
    (first, space), *others = found.items()
    for name, own_space in others:
        if own_space != space:
            raise ValueError(
                f"net {name!r} has classes, dims and channels of the {levels} coarsest encoder maps {own_space}; "
                f"expected {space} to match net {first!r}: their features are compared level by level"
            )
    return space


def coarse_strides(net: nn.Module, *, levels: int) -> list[Any]:
    """Voxels of a cell of each of the `levels` coarsest encoder maps; None where a net does not tell.

    Raises:
        ValueError: it tells of fewer.
    """
    strides = getattr(net, "strides", None)
    if strides is not None and len(strides) < levels:
        told = f"strides of {type(net).__name__} are {strides}"
        raise ValueError(f"{told}; expected the voxels of a cell of each encoder map, at least {levels}")
    return [None] * levels if strides is None else list(strides[-levels:])


def each(maps: Mapping[str, Tensor], make: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return name -> what `make` makes of its map, once of a map that several names share, as all do with averages."""
    made = {id(one): make(one) for one in {id(one): one for one in maps.values()}.values()}
    return {name: made[id(one)] for name, one in maps.items()}
