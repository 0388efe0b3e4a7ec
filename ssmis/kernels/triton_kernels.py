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

_SHORTEST = tl.constexpr(1e-12)  # as in reference.py
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-1e30)  # a running maximum below every similarity, yet finite: its differences stay numbers


@triton.jit
def _tile(base, rows, row_stride, columns, column_stride):
    return base + rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride


@triton.jit
def _member(slots, first, size):
    # unsigned, a slot before the first is far above the size: one comparison instead of two
    return (slots - first).to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def _place(block, voxels, BLOCK_V: tl.constexpr):
    """Volume and voxels of a block; blocks do not cross volumes."""
    per_volume = tl.cdiv(voxels, BLOCK_V)
    voxel = (block % per_volume).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    return (block // per_volume).to(tl.int64), voxel


@triton.jit
def _classify(label, ordered, sizes, rows):
    """First slot of each voxel's class and its number of keys, 0 if it has none, by bisection of the sorted labels."""
    first = tl.zeros_like(label).to(tl.int32)
    stride = rows  # a power of two
    while stride > 0:
        ahead = first + stride
        passed = tl.load(ordered + ahead - 1, mask=ahead <= rows, other=0)
        first = tl.where((ahead <= rows) & (passed < label), ahead, first)
        stride //= 2
    found = tl.load(ordered + first, mask=first < rows, other=0)
    size = tl.load(sizes + first, mask=(first < rows) & (found == label), other=0)
    return first, size


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
        rows = tl.load(_tile(directions, slot + own, E, channel, 1), mask=(own < size)[:, None], other=0)
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
    volume, voxel = _place(tl.program_id(0), voxels, BLOCK_V)
    flat = volume * voxels + voxel  # of what is stored contiguously
    within = voxel < voxels
    label = tl.load(labels + volume * l_volume + voxel * l_voxel, mask=within, other=0).to(tl.int64)
    first, size = _classify(label, ordered, sizes, rows)
    labelled = within & (label != ignore_index)
    keys = tl.load(live)
    counted = labelled & (size > 0)
    if NEGATIVES:
        counted &= size < keys
    size = tl.where(counted, size, 0)
    own_weight = tl.where(counted, 1.0, 0.0)
    if WEIGHTED:
        own_weight = tl.load(weight + volume * w_volume + voxel * w_voxel, mask=counted, other=0).to(tl.float32)

    program = tl.program_id(0)
    tl.store(sums + 2 * program + 1, tl.sum(own_weight, 0))
    tl.store(counts + 2 * program, tl.sum(counted.to(tl.int32), 0))
    tl.store(counts + 2 * program + 1, tl.sum((labelled & (counted == 0)).to(tl.int32), 0))

    channel = tl.arange(0, E)
    there = within[:, None] & (channel < channels)[None, :]
    if tl.max(counted.to(tl.int32), 0) == 0:
        nothing = tl.zeros([BLOCK_V], tl.float32)
        tl.store(sums + 2 * program, 0.0)
        if WITH_LOSS:
            tl.store(loss + flat, nothing, mask=within)
        if WITH_GRADIENT:
            target = _tile(gradient + volume * g_volume, voxel, g_voxel, channel, g_channel)
            tl.store(target, tl.zeros([BLOCK_V, E], gradient.dtype.element_ty), mask=there)
        if WITH_GRADIENT or WITH_STATE:
            tl.store(slope + flat, nothing, mask=within)
        if WITH_STATE:
            tl.store(place + flat, tl.full([BLOCK_V], -1, tl.int32), mask=within)
        return

    own = tl.load(
        _tile(features + volume * f_volume, voxel, f_voxel, channel, f_channel),
        mask=there & counted[:, None],
        other=0,
    )
    inverse = tl.where(counted, 1.0, 0.0)
    if NORMALIZE:
        wide = own.to(tl.float32)
        length = tl.sqrt(tl.sum(wide * wide, 1))
        short = length < _SHORTEST
        inverse = tl.where(short, 0.0, 1.0 / tl.where(short, 1.0, length))
    to_bits = inverse * (inverse_temperature * _LOG2_E)

    column = tl.arange(0, BLOCK_M)
    top = tl.full([BLOCK_V], _LOWEST, tl.float32)
    if FIXED:  # no cosine exceeds 1
        top = tl.zeros([BLOCK_V], tl.float32) + inverse_temperature * _LOG2_E
    total = tl.zeros([BLOCK_V], tl.float32)
    pulled = tl.zeros([BLOCK_V, E], tl.float32)
    for start in range(0, keys, BLOCK_M):
        slot = start + column
        key = tl.load(_tile(directions, slot, E, channel, 1))
        bits = tl.dot(own, tl.trans(key), input_precision=PRECISION) * to_bits[:, None]
        bits += tl.where(slot < keys, 0.0, float("-inf"))[None, :]
        if NEGATIVES:
            bits = tl.where(_member(slot[None, :], first[:, None], size[:, None]), float("-inf"), bits)
        if FIXED:
            power = tl.exp2(bits - top[:, None])
        else:
            higher = tl.maximum(top, tl.max(bits, 1))
            power = tl.exp2(bits - higher[:, None])
            shrink = tl.exp2(top - higher)
            total *= shrink
            pulled *= shrink[:, None]
            top = higher
        total += tl.sum(power, 1)
        if WITH_GRADIENT:
            pulled = tl.dot(power.to(own.dtype), key, pulled, input_precision=PRECISION)
    total = tl.where(counted, total, 1.0)
    summit = tl.where(counted, top + tl.log2(total), 0.0)

    if NEGATIVES:
        own_loss = tl.zeros([BLOCK_V], tl.float32)
        pushed = tl.zeros([BLOCK_V], tl.float32)
        away = tl.zeros([BLOCK_V, E], tl.float32)
        low = tl.min(tl.where(counted, first, rows), 0)
        high = tl.max(tl.where(counted, first + size, 0), 0)
        for start in range(low // BLOCK_M * BLOCK_M, high, BLOCK_M):
            slot = start + column
            key = tl.load(_tile(directions, slot, E, channel, 1))
            bits = tl.dot(own, tl.trans(key), input_precision=PRECISION) * to_bits[:, None]
            against = summit[:, None] - bits
            small = tl.exp2(-tl.abs(against))
            above = 1.0 + small
            rest = (small - (above - 1.0)) / above  # what rounding took from the sum
            terms = tl.maximum(against, 0.0) * _LN_2 + (tl.log(above) + rest)
            member = _member(slot[None, :], first[:, None], size[:, None])
            own_loss += tl.sum(tl.where(member, terms, 0.0), 1)
            if WITH_GRADIENT or WITH_STATE:
                odds = tl.where(member, tl.where(against > 0, 1.0, small) / above, 0.0)
                pushed += tl.sum(odds, 1)
                if WITH_GRADIENT:
                    away = tl.dot(odds.to(own.dtype), key, away, input_precision=PRECISION)
        share = 1.0 / tl.maximum(size, 1).to(tl.float32)
        own_loss *= share
        if WITH_GRADIENT:
            pulled = ((pushed / total)[:, None] * pulled - away) * share[:, None]
    else:
        mean = tl.load(_tile(means, first, E, channel, 1), mask=counted[:, None], other=0)
        own_loss = (summit - tl.sum(own.to(tl.float32) * mean, 1) * to_bits) * _LN_2
        if WITH_GRADIENT:
            pulled = pulled / total[:, None] - mean
    own_loss = tl.where(counted, own_loss, 0.0)
    tl.store(sums + 2 * program, tl.sum(own_loss * own_weight, 0))
    if WITH_LOSS:
        tl.store(loss + flat, own_loss, mask=within)
    if WITH_GRADIENT:
        if NORMALIZE:
            direct = own.to(tl.float32) * inverse[:, None]
            pulled -= direct * tl.sum(direct * pulled, 1)[:, None]
        target = _tile(gradient + volume * g_volume, voxel, g_voxel, channel, g_channel)
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
    volume, voxel = _place(tl.program_id(0), voxels, BLOCK_V)
    within = voxel < voxels
    channel = tl.arange(0, E)
    there = within[:, None] & (channel < channels)[None, :]
    factor = tl.load(slope + volume * voxels + voxel, mask=within, other=0)
    factor *= tl.load(scale + volume * s_volume + voxel * s_voxel, mask=factor != 0, other=0)
    offset = volume * g_volume
    own = tl.load(_tile(gradient + offset, voxel, g_voxel, channel, g_channel), mask=there, other=0)
    own = (own.to(tl.float32) * factor[:, None]).to(own.dtype)
    tl.store(_tile(scaled + offset, voxel, g_voxel, channel, g_channel), own, mask=there)


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
    key = tl.load(_tile(directions, slot, E, channel, 1))
    unit = 1.0 / tl.load(largest)  # keeps the second product inside the range of half precision
    blocks = volumes * tl.cdiv(voxels, BLOCK_V)
    per_part = tl.cdiv(blocks, tl.num_programs(1))
    begin = tl.program_id(1) * per_part
    end = tl.minimum(begin + per_part, blocks)
    end = tl.where(tl.program_id(0) * BLOCK_M < tl.load(live), end, begin)
    total = tl.zeros([BLOCK_M, E], tl.float32)
    for block in range(begin, end):
        volume, voxel = _place(block, voxels, BLOCK_V)
        flat = volume * voxels + voxel
        first = tl.load(place + flat, mask=voxel < voxels, other=-1)
        counted = first >= 0
        if tl.max(first, 0) >= 0:
            own = tl.load(
                _tile(features + volume * f_volume, voxel, f_voxel, channel, f_channel),
                mask=counted[:, None] & (channel < channels)[None, :],
                other=0,
            )
            inverse = tl.load(slope + flat, mask=counted, other=0)
            summit = tl.load(level + flat, mask=counted, other=0)
            size = tl.load(sizes + first, mask=counted, other=1)
            share = 1.0 / size.to(tl.float32)
            bits = tl.dot(own, tl.trans(key), input_precision=PRECISION)
            bits *= (inverse * (inverse_temperature * _LOG2_E))[:, None]
            power = tl.exp2(bits - summit[:, None])
            member = _member(slot[None, :], first[:, None], size[:, None])
            if NEGATIVES:
                pushed = tl.load(push + flat, mask=counted, other=0)
                power = tl.where(member, -1.0 / (1.0 + power), pushed[:, None] * power) * share[:, None]
            else:
                power -= tl.where(member, share[:, None], 0.0)
            own_scale = tl.load(scale + volume * s_volume + voxel * s_voxel, mask=counted, other=0) * unit
            direct = (own.to(tl.float32) * (inverse * own_scale)[:, None]).to(own.dtype)
            total = tl.dot(tl.trans(power.to(own.dtype)), direct, total, input_precision=PRECISION)
    tl.store(_tile(partial + tl.program_id(1).to(tl.int64) * rows * E, slot, E, channel, 1), total)
