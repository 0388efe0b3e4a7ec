# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of the device kernels, for cards that need not be here: registers, spills, shared memory.

    python benchmarks/kernel_resources.py [--channels 16 32 64 128 256] [--cards sm_80 sm_90 sm_100 gfx942]

Compiles every kernel in every configuration its pruning rule leaves, and prints the table of docs/kernels.md: the worst
case over configurations. Ends with an error if a kernel spills, needs more shared memory than the card has, or
multiplies 16-bit matrices without matrix instructions.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssmis.kernels import triton_kernels as kernels
from ssmis.kernels import triton_voxel_contrast as device

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Card(NamedTuple):
    """Compilation target, shared memory of a program in KiB, matrix instructions (the newest first)."""

    target: GPUTarget
    shared: int
    matrix: tuple[str, ...]


CARDS = {
    "sm_80": Card(GPUTarget("cuda", 80, 32), 163, ("mma.sync",)),
    "sm_90": Card(GPUTarget("cuda", 90, 32), 227, ("wgmma.mma_async", "mma.sync")),
    "sm_100": Card(GPUTarget("cuda", 100, 32), 227, ("tcgen05.mma", "mma.sync")),
    "gfx942": Card(GPUTarget("hip", "gfx942", 64), 64, ("v_mfma",)),
}


class Resources(NamedTuple):
    """Registers of a thread, spilled bytes or registers, bytes of shared memory, matrix instruction ("": none)."""

    registers: int
    spilled: int
    shared: int
    matrix: str


POINTERS = {
    **dict.fromkeys(("features", "gradient", "scaled", "directions"), "*{}"),
    **dict.fromkeys(("labels", "ordered"), "*i64"),
    **dict.fromkeys(("firsts", "sizes", "live", "place", "counts"), "*i32"),
    **dict.fromkeys(
        ("weight", "means", "loss", "slope", "level", "push", "sums", "scale", "largest", "partial"), "*fp32"
    ),
}
DIVISIBLE = {"voxels", "rows", "f_volume", "f_channel", "g_volume", "g_channel", "l_volume", "w_volume", "s_volume"}
UNIT_STRIDES = {"f_voxel", "g_voxel", "l_voxel", "w_voxel", "s_voxel"}


def compile_kernel(kernel: Any, card: str, dtype: str, config: triton.Config, **constants: Any) -> Any:
    """Compile for a card, with sizes and strides as contiguous features have them."""
    constants = {**dict.fromkeys(UNIT_STRIDES & set(kernel.arg_names), 1), **constants, **config.kwargs}
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        kind = "fp32" if name == "inverse_temperature" else POINTERS.get(name, "i32").format(dtype)
        signature[name] = "constexpr" if name in constants else kind
        if name not in constants and (kind.startswith("*") or name in DIVISIBLE):
            attributes[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if CARDS[card].target.backend == "cuda" and config.maxnreg:
        options["maxnreg"] = config.maxnreg
    return triton.compile(source, target=CARDS[card].target, options=options)


def resources(compiled: Any, card: str) -> Resources:
    """Read what the compiler reports: on NVIDIA cards a spill shows as stack."""
    if CARDS[card].target.backend == "hip":
        text = compiled.asm["amdgcn"]
        found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\n", text)}
        spilled = found["vgpr_spill_count"] + found["sgpr_spill_count"] + found["private_segment_fixed_size"]
        registers = found["vgpr_count"]
    else:
        text = compiled.asm["ptx"]
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            report = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
        found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", report)}
        registers, spilled = found["REG"], found["STACK"] + found["LOCAL"]
    matrix = next((name for name in CARDS[card].matrix if name in text), "")
    return Resources(registers, spilled, compiled.metadata.shared, matrix)


def variants(card: str, dtype: str, width: int) -> Iterator[tuple[str, Any, triton.Config, dict[str, Any]]]:
    """Name, kernel, configuration and constants, the default first; of the flags, those that keep most in registers."""
    hip = CARDS[card].target.backend == "hip"
    base = {"E": width, "NORMALIZE": True, "PRECISION": device.precision(DTYPES[dtype], width, hip)}
    flags = {"WEIGHTED": True, "WITH_LOSS": True, "WITH_GRADIENT": True, "WITH_STATE": True, "FIXED": dtype == "fp32"}
    for config in device.configurations(width, 65536, DTYPES[dtype], hip):
        for denominator in ("all", "negatives"):
            own = {**base, "NEGATIVES": denominator == "negatives"}
            yield f"forward, {denominator}", kernels.forward_kernel, config, {**own, **flags}
            yield f"keys, {denominator}", kernels.keys_kernel, config, own
    block = device.scale_block(width)
    yield "scale", kernels.scale_kernel, triton.Config({"BLOCK_V": block}), {"E": width}
    yield "class means", kernels.class_means_kernel, triton.Config({"BLOCK_M": 64}), {"E": width}


def complaints(found: Resources, card: str, dtype: str, name: str) -> list[str]:
    """What is wrong with a kernel; nothing if it is fit for the card."""
    wrong = []
    if found.spilled:
        wrong.append(f"spills {found.spilled}")
    if found.shared > CARDS[card].shared * 1024:
        wrong.append(f"needs {found.shared} bytes of shared memory; {card} has {CARDS[card].shared} KiB")
    if dtype != "fp32" and not found.matrix and name.startswith(("forward", "keys")):
        wrong.append("has no matrix instruction")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--cards", nargs="+", default=list(CARDS), choices=CARDS)
    args = parser.parse_args()
    wrong = []
    print(f"Triton {triton.__version__}. Largest of all configurations:")
    print("registers of a thread / spills / KiB of shared memory, matrix instructions.\n")
    print(f"| kernel | E | dtype | {' | '.join(args.cards)} |")
    print("|---|---|---|" + "---|" * len(args.cards))
    for width, dtype in product(args.channels, DTYPES):
        table: dict[str, list[str]] = {}
        for card in args.cards:
            kinds: dict[str, list[Resources]] = {}
            for name, kernel, config, constants in variants(card, dtype, width):
                found = resources(compile_kernel(kernel, card, dtype, config, **constants), card)
                kinds.setdefault(name, []).append(found)
                why = complaints(found, card, dtype, name)
                wrong += [f"{name}, E {width}, {dtype}, {card}, {config}: {one}" for one in why]
            for name, every in kinds.items():
                registers, spilled, shared = (max(column) for column in list(zip(*every))[:3])
                matrix = ", ".join(sorted({one.matrix.split(".")[0] for one in every} - {""}))
                table.setdefault(name, []).append(f"{registers} / {spilled} / {shared / 1024:.0f} {matrix}".strip())
        for name, columns in table.items():
            print(f"| {name} | {width} | {dtype} | {' | '.join(columns)} |", flush=True)
    sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
