# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Voxel contrast on a GPU: what one program of each kernel does. Tables, configurations and launches are elsewhere.

Keys come sorted by class, slots that take no part last, so the keys of a class are a range of slots and a voxel needs
two integers: the first slot of its class and how many there are. Exponents are in base 2. Products of features and keys
are of the features' dtype, sums in float32. A tile is `(BLOCK_V voxels, E channels)` or `(BLOCK_M keys, E)`, with E
padded to a power of two; similarities exist as `(BLOCK_V, BLOCK_M)` in registers only.
"""

import triton
import triton.language as tl

from ssmis.kernels.triton_parts import (
    LOG2_E,
    align,
    attend,
    inverse_length,
    judge,
    locate,
    member,
    repel,
    store_nothing,
    tile,
)


@triton.jit
def class_means_kernel(directions, firsts, sizes, means, E: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean key of a class, `means[first slot]`; no other row is read."""
    slot = tl.program_id(0)
    size = tl.load(sizes + slot)
    if (tl.load(firsts + slot) != slot) | (size == 0):
        return
    channel = tl.arange(0, E)
    total = tl.zeros([E], tl.float32)
    for start in range(0, size, BLOCK_M):
        own = start + tl.arange(0, BLOCK_M)
        rows = tl.load(tile(directions, slot + own, E, channel, 1), mask=(own < size)[:, None], other=0)
        total += tl.sum(rows.to(tl.float32), 0)
    tl.store(means + slot.to(tl.int64) * E + channel, total / size)


@triton.jit
def forward_kernel(
    features, f_volume, f_channel, f_voxel,
    labels, l_volume, l_voxel,
    weight, w_volume, w_voxel,
    directions, means, ordered, sizes, live,
    loss, gradient, g_volume, g_channel, g_voxel, slope, place, level, push,
    sums, counts,
    channels, voxels, rows, ignore_index, inverse_temperature,
    E: tl.constexpr, NORMALIZE: tl.constexpr, NEGATIVES: tl.constexpr, WEIGHTED: tl.constexpr,
    WITH_LOSS: tl.constexpr, WITH_GRADIENT: tl.constexpr, WITH_STATE: tl.constexpr,
    FIXED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Losses of a block of voxels and temperature times their gradient by direction, in one pass over the keys.

    "negatives" passes a second time over the blocks that hold keys of the voxels' own classes. Written besides: sums,
    counts, `slope`, one over the length of the features (0: no gradient), and for the gradient of the keys `place`, the
    first slot of the class (-1: does not count), `level`, the log-sum-exp, and `push`, the sum of the derivatives by
    the positives.
    """
    program = tl.program_id(0)
    volume, voxel = locate(program, voxels, BLOCK_V)
    flat = volume * voxels + voxel  # of what is stored contiguously
    within = voxel < voxels
    keys = tl.load(live)
    first, size, labelled, counted, own_weight = judge(
        labels, weight, ordered, sizes, keys, rows, within,
        volume * l_volume + voxel * l_voxel, volume * w_volume + voxel * w_voxel, ignore_index, NEGATIVES, WEIGHTED,
    )  # fmt: skip
    tl.store(sums + 2 * program + 1, tl.sum(own_weight, 0))
    tl.store(counts + 2 * program, tl.sum(counted.to(tl.int32), 0))
    tl.store(counts + 2 * program + 1, tl.sum((labelled & (counted == 0)).to(tl.int32), 0))

    channel = tl.arange(0, E)
    there = within[:, None] & (channel < channels)[None, :]
    if tl.max(counted.to(tl.int32), 0) == 0:
        target = tile(gradient + volume * g_volume, voxel, g_voxel, channel, g_channel)
        store_nothing(
            sums + 2 * program, loss, slope, place, target, flat, within, there,
            WITH_LOSS, WITH_GRADIENT, WITH_STATE, E, BLOCK_V,
        )  # fmt: skip
        return

    source = tile(features + volume * f_volume, voxel, f_voxel, channel, f_channel)
    own = tl.load(source, mask=there & counted[:, None], other=0)
    inverse = inverse_length(own, counted, NORMALIZE)
    to_bits = inverse * (inverse_temperature * LOG2_E)
    top, total, pulled = attend(
        own, to_bits, inverse_temperature, first, size, keys, directions, channel,
        E, NEGATIVES, WITH_GRADIENT, FIXED, PRECISION, BLOCK_V, BLOCK_M,
    )  # fmt: skip
    total = tl.where(counted, total, 1.0)
    summit = tl.where(counted, top + tl.log2(total), 0.0)
    if NEGATIVES:
        own_loss, pushed, pulled = repel(
            own, to_bits, pulled, total, summit, first, size, counted, rows, directions, channel,
            E, WITH_GRADIENT, WITH_GRADIENT or WITH_STATE, PRECISION, BLOCK_V, BLOCK_M,
        )  # fmt: skip
    else:
        own_loss, pulled = align(
            own, to_bits, pulled, total, summit, first, counted, means, channel, E, WITH_GRADIENT
        )  # fmt: skip
    own_loss = tl.where(counted, own_loss, 0.0)
    tl.store(sums + 2 * program, tl.sum(own_loss * own_weight, 0))
    if WITH_LOSS:
        tl.store(loss + flat, own_loss, mask=within)
    if WITH_GRADIENT:
        if NORMALIZE:
            direct = own.to(tl.float32) * inverse[:, None]
            pulled -= direct * tl.sum(direct * pulled, 1)[:, None]
        target = tile(gradient + volume * g_volume, voxel, g_voxel, channel, g_channel)
        tl.store(target, tl.where(counted[:, None], pulled, 0.0).to(own.dtype), mask=there)
    if WITH_GRADIENT or WITH_STATE:
        tl.store(slope + flat, inverse, mask=within)
    if WITH_STATE:
        tl.store(place + flat, tl.where(counted, first, -1), mask=within)
        tl.store(level + flat, summit, mask=within)
        if NEGATIVES:
            tl.store(push + flat, pushed, mask=within)


@triton.jit
def scale_kernel(
    gradient, g_volume, g_channel, g_voxel, slope, scale, s_volume, s_voxel, scaled, channels, voxels,
    E: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Gradient of the features: that by the directions, times what the forward pass could not know."""
    volume, voxel = locate(tl.program_id(0), voxels, BLOCK_V)
    within = voxel < voxels
    channel = tl.arange(0, E)
    there = within[:, None] & (channel < channels)[None, :]
    factor = tl.load(slope + volume * voxels + voxel, mask=within, other=0)
    factor *= tl.load(scale + volume * s_volume + voxel * s_voxel, mask=factor != 0, other=0)
    offset = volume * g_volume
    own = tl.load(tile(gradient + offset, voxel, g_voxel, channel, g_channel), mask=there, other=0)
    own = (own.to(tl.float32) * factor[:, None]).to(own.dtype)
    tl.store(tile(scaled + offset, voxel, g_voxel, channel, g_channel), own, mask=there)


@triton.jit
def keys_kernel(
    features, f_volume, f_channel, f_voxel, slope, place, level, push, scale, s_volume, s_voxel, largest,
    directions, sizes, live, partial, channels, volumes, voxels, rows, inverse_temperature,
    E: tl.constexpr, NORMALIZE: tl.constexpr, NEGATIVES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradient by a block of keys over one part of the voxels, relative to `largest`: `partial[part, slots]`."""
    slot = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, E)
    key = tl.load(tile(directions, slot, E, channel, 1))
    unit = 1.0 / tl.load(largest)  # keeps the second product inside the range of half precision
    blocks = volumes * tl.cdiv(voxels, BLOCK_V)
    per_part = tl.cdiv(blocks, tl.num_programs(1))
    begin = tl.program_id(1) * per_part
    end = tl.minimum(begin + per_part, blocks)
    end = tl.where(tl.program_id(0) * BLOCK_M < tl.load(live), end, begin)
    total = tl.zeros([BLOCK_M, E], tl.float32)
    for block in range(begin, end):
        volume, voxel = locate(block, voxels, BLOCK_V)
        flat = volume * voxels + voxel
        first = tl.load(place + flat, mask=voxel < voxels, other=-1)
        counted = first >= 0
        if tl.max(first, 0) >= 0:
            own = tl.load(
                tile(features + volume * f_volume, voxel, f_voxel, channel, f_channel),
                mask=counted[:, None] & (channel < channels)[None, :],
                other=0,
            )
            inverse = tl.load(slope + flat, mask=counted, other=0)
            summit = tl.load(level + flat, mask=counted, other=0)
            size = tl.load(sizes + first, mask=counted, other=1)
            share = 1.0 / size.to(tl.float32)
            bits = tl.dot(own, tl.trans(key), input_precision=PRECISION)
            bits *= (inverse * (inverse_temperature * LOG2_E))[:, None]
            power = tl.exp2(bits - summit[:, None])
            mine = member(slot[None, :], first[:, None], size[:, None])
            if NEGATIVES:
                pushed = tl.load(push + flat, mask=counted, other=0)
                power = tl.where(mine, -1.0 / (1.0 + power), pushed[:, None] * power) * share[:, None]
            else:
                power -= tl.where(mine, share[:, None], 0.0)
            own_scale = tl.load(scale + volume * s_volume + voxel * s_voxel, mask=counted, other=0) * unit
            direct = (own.to(tl.float32) * (inverse * own_scale)[:, None]).to(own.dtype)
            total = tl.dot(tl.trans(power.to(own.dtype)), direct, total, input_precision=PRECISION)
    tl.store(tile(partial + tl.program_id(1).to(tl.int64) * rows * E, slot, E, channel, 1), total)
