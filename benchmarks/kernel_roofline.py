# SPDX-License-Identifier: Apache-2.0
"""What voxel contrast costs at least on a card, and what its design costs, on paper: bytes, products, exponentials.

    python benchmarks/kernel_roofline.py [--voxels 4.0e6]

Nothing here is measured. A pass takes as long as the slowest of its three parts, as if they overlapped without loss.
"""

import argparse
from itertools import product
from typing import NamedTuple


class Card(NamedTuple):
    """Bytes, bfloat16 matrix operations and exponentials a second (16 a clock on each multiprocessor)."""

    bandwidth: float
    matrix: float
    exponentials: float


CARDS = {
    "H100": Card(3.35e12, 990e12, 16 * 132 * 1.83e9),
    "A100": Card(2.04e12, 312e12, 16 * 108 * 1.41e9),
}


class Work(NamedTuple):
    """Of one voxel: bytes moved, matrix operations, exponentials."""

    bytes: float
    operations: float
    exponentials: float

    def parts(self, card: Card, voxels: float) -> tuple[float, float, float]:
        """Microseconds of bytes, products and exponentials."""
        rates = card.bandwidth, card.matrix, card.exponentials
        return tuple(1e6 * voxels * own / rate for own, rate in zip(self, rates))  # type: ignore[return-value]


def floor(channels: int, keys: int) -> Work:
    """Forward: every feature read once, no padding, no labels."""
    return Work(2 * channels, 2 * channels * keys, keys)


def design(channels: int, keys: int, block: int = 32) -> dict[str, tuple[Work, ...]]:
    """Passes of the kernels, with padding, int64 labels and what is saved; "recompute" is the way not taken."""
    padded = max(16, 1 << (channels - 1).bit_length())
    width = min(block, max(16, 1 << (keys - 1).bit_length()))
    columns = -(-keys // width) * width
    features, labels, slope, level, place = 2 * channels, 8, 4, 4, 4
    once = 2 * padded * columns  # one product of a tile
    return {
        "no gradient": (Work(features + labels, once, columns),),
        "gradient in forward": (
            Work(2 * features + labels + slope, 2 * once, columns),
            Work(2 * features + slope, 0, 0),
        ),
        "recompute": (
            Work(features + labels + level, once, columns),
            Work(2 * features + labels + level, 2 * once, columns),
        ),
        "keys": (Work(features + slope + level + place, 2 * once, columns),),
    }


def time(passes: tuple[Work, ...], card: Card, voxels: float) -> float:
    """Microseconds of passes that run one after the other."""
    return sum(max(own.parts(card, voxels)) for own in passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=float, default=4.0e6)
    voxels = parser.parse_args().voxels
    print(f"Microseconds for {voxels / 1e6:.1f} M voxels in bfloat16, on paper.\n")
    print("| card | E | M | bytes | matrix | exp | forward | over floor | in forward | recompute | keys |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (name, card), channels, keys in product(CARDS.items(), (16, 64), (2, 256, 4096)):
        parts = floor(channels, keys).parts(card, voxels)
        forward, *rest = (time(passes, card, voxels) for passes in design(channels, keys).values())
        cells = [*(f"{part:.0f}" for part in (*parts, forward)), f"{forward / max(parts):.2f}"]
        cells += [f"{own:.0f}" for own in rest]
        print(f"| {name} | {channels} | {keys} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
