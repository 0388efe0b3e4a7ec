# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Steps that the device kernels of voxel contrast are made of; triton_kernels.py says what their tiles are."""

import triton
import triton.language as tl

SHORTEST = tl.constexpr(1e-12)  # as in reference.py
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e30)  # a running maximum below every similarity, yet finite: its differences stay numbers


@triton.jit
def tile(base, rows, row_stride, columns, column_stride):
    """Pointers `(rows, columns)`; offsets have 64 bits."""
    return base + rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride


@triton.jit
def member(slots, first, size):
    """Whether slots are among the `size` from `first`: unsigned, a slot before the first is far above the size."""
    return (slots - first).to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def locate(block, voxels, BLOCK_V: tl.constexpr):
    """Volume and voxels of a block; blocks do not cross volumes."""
    per_volume = tl.cdiv(voxels, BLOCK_V)
    voxel = (block % per_volume).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    return (block // per_volume).to(tl.int64), voxel


@triton.jit
def classify(label, ordered, sizes, rows):
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
def judge(
    labels, weight, ordered, sizes, keys, rows, within, l_offset, w_offset, ignore_index,
    NEGATIVES: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """First slot of each voxel's class, its number of keys, whether it is labelled, whether it counts, its weight."""
    label = tl.load(labels + l_offset, mask=within, other=0).to(tl.int64)
    first, size = classify(label, ordered, sizes, rows)
    labelled = within & (label != ignore_index)
    counted = labelled & (size > 0)
    if NEGATIVES:
        counted &= size < keys
    own_weight = tl.where(counted, 1.0, 0.0)
    if WEIGHTED:
        own_weight = tl.load(weight + w_offset, mask=counted, other=0).to(tl.float32)
    return first, tl.where(counted, size, 0), labelled, counted, own_weight


@triton.jit
def attend(
    own, to_bits, inverse_temperature, first, size, keys, directions, channel,
    E: tl.constexpr, NEGATIVES: tl.constexpr, WITH_GRADIENT: tl.constexpr, FIXED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Shift of the exponents, sum of powers and of powers times keys: a pass over the keys, with NEGATIVES only those
    of other classes."""
    column = tl.arange(0, BLOCK_M)
    top = tl.full([BLOCK_V], LOWEST, tl.float32)
    if FIXED:  # no cosine exceeds 1
        top = tl.zeros([BLOCK_V], tl.float32) + inverse_temperature * LOG2_E
    total = tl.zeros([BLOCK_V], tl.float32)
    pulled = tl.zeros([BLOCK_V, E], tl.float32)
    for start in range(0, keys, BLOCK_M):
        slot = start + column
        key = tl.load(tile(directions, slot, E, channel, 1))
        bits = tl.dot(own, tl.trans(key), input_precision=PRECISION) * to_bits[:, None]
        bits += tl.where(slot < keys, 0.0, float("-inf"))[None, :]
        if NEGATIVES:
            bits = tl.where(member(slot[None, :], first[:, None], size[:, None]), float("-inf"), bits)
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
    return top, total, pulled


@triton.jit
def repel(
    own, to_bits, pulled, total, summit, first, size, counted, rows, directions, channel,
    E: tl.constexpr, WITH_GRADIENT: tl.constexpr, WITH_ODDS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Loss "negatives", sum of its derivatives by the positives, gradient by the direction: a pass over the blocks that
    hold keys of the voxels' own classes."""
    column = tl.arange(0, BLOCK_M)
    loss = tl.zeros([BLOCK_V], tl.float32)
    pushed = tl.zeros([BLOCK_V], tl.float32)
    away = tl.zeros([BLOCK_V, E], tl.float32)
    low = tl.min(tl.where(counted, first, rows), 0)
    high = tl.max(tl.where(counted, first + size, 0), 0)
    for start in range(low // BLOCK_M * BLOCK_M, high, BLOCK_M):
        slot = start + column
        key = tl.load(tile(directions, slot, E, channel, 1))
        bits = tl.dot(own, tl.trans(key), input_precision=PRECISION) * to_bits[:, None]
        against = summit[:, None] - bits
        small = tl.exp2(-tl.abs(against))
        above = 1.0 + small
        rest = (small - (above - 1.0)) / above  # what rounding took from the sum
        terms = tl.maximum(against, 0.0) * LN_2 + (tl.log(above) + rest)
        mine = member(slot[None, :], first[:, None], size[:, None])
        loss += tl.sum(tl.where(mine, terms, 0.0), 1)
        if WITH_ODDS:
            odds = tl.where(mine, tl.where(against > 0, 1.0, small) / above, 0.0)
            pushed += tl.sum(odds, 1)
            if WITH_GRADIENT:
                away = tl.dot(odds.to(own.dtype), key, away, input_precision=PRECISION)
    share = 1.0 / tl.maximum(size, 1).to(tl.float32)
    if WITH_GRADIENT:
        pulled = ((pushed / total)[:, None] * pulled - away) * share[:, None]
    return loss * share, pushed, pulled


@triton.jit
def align(
    own, to_bits, pulled, total, summit, first, counted, means, channel, E: tl.constexpr, WITH_GRADIENT: tl.constexpr
):
    """Loss "all" and its gradient by the direction, from the mean key of each voxel's class."""
    mean = tl.load(tile(means, first, E, channel, 1), mask=counted[:, None], other=0)
    loss = (summit - tl.sum(own.to(tl.float32) * mean, 1) * to_bits) * LN_2
    if WITH_GRADIENT:
        pulled = pulled / total[:, None] - mean
    return loss, pulled


@triton.jit
def inverse_length(own, counted, NORMALIZE: tl.constexpr):
    """One over the length of a voxel's features, 0 without a direction; whether it counts without NORMALIZE."""
    inverse = tl.where(counted, 1.0, 0.0)
    if NORMALIZE:
        wide = own.to(tl.float32)
        length = tl.sqrt(tl.sum(wide * wide, 1))
        short = length < SHORTEST
        inverse = tl.where(short, 0.0, 1.0 / tl.where(short, 1.0, length))
    return inverse


@triton.jit
def store_nothing(
    sums, loss, slope, place, target, flat, within, there,
    WITH_LOSS: tl.constexpr, WITH_GRADIENT: tl.constexpr, WITH_STATE: tl.constexpr,
    E: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """What a block without a voxel that counts leaves."""
    nothing = tl.zeros([BLOCK_V], tl.float32)
    tl.store(sums, 0.0)
    if WITH_LOSS:
        tl.store(loss + flat, nothing, mask=within)
    if WITH_GRADIENT:
        tl.store(target, tl.zeros([BLOCK_V, E], target.dtype.element_ty), mask=there)
    if WITH_GRADIENT or WITH_STATE:
        tl.store(slope + flat, nothing, mask=within)
    if WITH_STATE:
        tl.store(place + flat, tl.full([BLOCK_V], -1, tl.int32), mask=within)
