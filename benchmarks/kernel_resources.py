# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of the device kernels, for cards that need not be here: registers, spills, shared memory.

    python benchmarks/kernel_resources.py [--channels 16 32 64 128 256] [--cards sm_80 sm_90 sm_100 gfx942] [--jobs 2]

Compiles every variant of every kernel in every configuration its pruning rule leaves, for contiguous features,
channels-last ones and sizes that divide by nothing, and prints the table of docs/kernels.md: the worst case. Ends with
an error if a kernel spills, needs more shared memory than the card has, or multiplies 16-bit matrices without matrix
instructions. A spill on an NVIDIA card is what `ptxas -v` calls one, or any stack that `cuobjdump -res-usage` finds.
"""

import argparse
import contextlib
import io
import multiprocessing
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
    """Of a compiled kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes stored and loaded (NVIDIA, `ptxas -v`) or registers (AMD).
        stack: bytes of local memory of a thread (NVIDIA: `cuobjdump -res-usage`).
        shared: bytes of shared memory.
        matrix: matrix instruction, "" if there is none.
    """

    registers: int
    spilled: int
    stack: int
    shared: int
    matrix: str


class Variant(NamedTuple):
    """A kernel as it is launched; `layout` is one of `LAYOUTS`."""

    name: str
    kernel: Any
    config: triton.Config
    constants: dict[str, Any]
    layout: str = "contiguous"


POINTERS = {
    **dict.fromkeys(("features", "gradient", "scaled", "directions"), "*{}"),
    **dict.fromkeys(("labels", "ordered"), "*i64"),
    **dict.fromkeys(("firsts", "sizes", "live", "place", "counts"), "*i32"),
    **dict.fromkeys(
        ("weight", "means", "loss", "slope", "level", "push", "sums", "scale", "largest", "partial"), "*fp32"
    ),
}
SIZES = {"voxels", "rows", "f_volume", "g_volume", "l_volume", "w_volume", "s_volume"}
LAYOUTS = {  # strides that are 1, and integers that are multiples of 16; "odd" is contiguous and divides by nothing
    "contiguous": ({"f_voxel", "g_voxel", "l_voxel", "w_voxel", "s_voxel"}, SIZES | {"f_channel", "g_channel"}),
    "channels last": ({"f_channel", "g_channel", "l_voxel", "w_voxel"}, SIZES | {"f_voxel", "g_voxel", "s_voxel"}),
    "odd": ({"f_voxel", "g_voxel", "l_voxel", "w_voxel"}, {"rows"}),
}


def compile_kernel(variant: Variant, card: str, dtype: str) -> tuple[Any, str]:
    """Compile for a card; return what was compiled and what `ptxas -v` said."""
    kernel, config = variant.kernel, variant.config
    units, multiples = LAYOUTS[variant.layout]
    constants = {**dict.fromkeys(units & set(kernel.arg_names), 1), **variant.constants, **config.kwargs}
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        kind = "fp32" if name == "inverse_temperature" else POINTERS.get(name, "i32").format(dtype)
        signature[name] = "constexpr" if name in constants else kind
        if name not in constants and (kind.startswith("*") or name in multiples):
            attributes[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if CARDS[card].target.backend == "cuda" and config.maxnreg:
        options["maxnreg"] = config.maxnreg
    log = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.compilation.always_compile = True  # what is cached has no log
        triton.knobs.nvidia.dump_ptxas_log = True
        return triton.compile(source, target=CARDS[card].target, options=options), log.getvalue()


def resources(variant: Variant, card: str, dtype: str) -> Resources:
    """Compile for a card and read what the compiler reports."""
    compiled, log = compile_kernel(variant, card, dtype)
    read = amd_report if CARDS[card].target.backend == "hip" else nvidia_report
    registers, spilled, stack, text = read(compiled, log)
    matrix = next((name for name in CARDS[card].matrix if name in text), "")
    return Resources(registers, spilled, stack, compiled.metadata.shared, matrix)


def amd_report(compiled: Any, _: str) -> tuple[int, int, int, str]:
    """Registers, spilled registers, stack, assembly: from the metadata of the code object."""
    text = compiled.asm["amdgcn"]
    found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\n", text)}
    spilled = found["vgpr_spill_count"] + found["sgpr_spill_count"]
    return found["vgpr_count"], spilled, found["private_segment_fixed_size"], text


def nvidia_report(compiled: Any, log: str) -> tuple[int, int, int, str]:
    """Registers, spilled bytes, stack, assembly: from `ptxas -v` and from the finished code."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    used = re.findall(r"Used (\d+) registers", log)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", report)}
    if len(frames) != 1 or used != [str(found["REG"])]:
        raise RuntimeError(f"ptxas and cuobjdump do not tell of the same kernel:\n{log}\n{report}")
    stack, stores, loads = map(int, frames[0])
    return found["REG"], stores + loads, max(stack, found["STACK"]) + found["LOCAL"], compiled.asm["ptx"]


def variants(card: str, dtype: str, width: int) -> Iterator[Variant]:
    """All that can be launched, the default configuration first; of flags that only add work, all are set.

    "running maximum" is what cold cosines and inner products take, and 16-bit features with a gradient always.
    """
    hip = CARDS[card].target.backend == "hip"
    base = {"E": width, "NORMALIZE": True, "PRECISION": device.precision(DTYPES[dtype], width, hip)}
    every = {"WEIGHTED": True, "WITH_LOSS": True, "WITH_GRADIENT": True, "WITH_STATE": True, "FIXED": False}
    fixed = {"FIXED": True} if dtype == "fp32" else {"FIXED": True, "WITH_GRADIENT": False}
    for config, layout in product(device.configurations(width, 65536, DTYPES[dtype], hip), LAYOUTS):
        for denominator in ("all", "negatives"):
            own = {**base, "NEGATIVES": denominator == "negatives"}
            forward = f"forward, {denominator}", kernels.forward_kernel, config
            if layout == "contiguous":
                yield Variant(*forward, {**own, **every, **fixed}, layout)
            yield Variant(*forward, {**own, **every}, layout)
            yield Variant(f"keys, {denominator}", kernels.keys_kernel, config, own, layout)
    scale, means = triton.Config({"BLOCK_V": device.scale_block(width)}), triton.Config({"BLOCK_M": 64})
    for layout in LAYOUTS:
        yield Variant("scale", kernels.scale_kernel, scale, {"E": width}, layout)
    yield Variant("class means", kernels.class_means_kernel, means, {"E": width})


def complaints(found: Resources, card: str, dtype: str, name: str) -> list[str]:
    """What is wrong with a kernel; nothing if it is fit for the card."""
    wrong = []
    if found.spilled:
        wrong.append(f"spills {found.spilled}")
    if found.stack:
        wrong.append(f"has a stack of {found.stack} bytes")
    if found.shared > CARDS[card].shared * 1024:
        wrong.append(f"needs {found.shared} bytes of shared memory; {card} has {CARDS[card].shared} KiB")
    if dtype != "fp32" and not found.matrix and name.startswith(("forward", "keys")):
        wrong.append("has no matrix instruction")
    return wrong


def survey(job: tuple[int, str, str]) -> tuple[dict[str, list[Resources]], list[str]]:
    """Resources of every variant by kernel, and complaints, for a width, a dtype and a card."""
    width, dtype, card = job
    kinds: dict[str, list[Resources]] = {}
    wrong = []
    for variant in variants(card, dtype, width):
        found = resources(variant, card, dtype)
        kinds.setdefault(variant.name, []).append(found)
        why = complaints(found, card, dtype, variant.name)
        place = f"{variant.name}, {variant.layout}, E {width}, {dtype}, {card}, {variant.config}"
        wrong += [f"{place}: {one}" for one in why]
    return kinds, wrong


def cell(every: list[Resources]) -> str:
    """Largest of all variants."""
    registers, spilled, stack, shared = (max(column) for column in list(zip(*every))[:4])
    matrix = ", ".join(sorted({one.matrix.split(".")[0] for one in every} - {""}))
    return f"{registers} / {max(spilled, stack)} / {shared / 1024:.0f} {matrix}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--cards", nargs="+", default=list(CARDS), choices=CARDS)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    wrong, total = [], 0
    print(f"Triton {triton.__version__}. Largest of all configurations, flags and layouts:")
    print("registers of a thread / spills or stack / KiB of shared memory, matrix instructions.\n")
    print(f"| kernel | E | dtype | {' | '.join(args.cards)} |")
    print("|---|---|---|" + "---|" * len(args.cards))
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        results = pool.imap(survey, product(args.channels, DTYPES, args.cards))
        for width, dtype in product(args.channels, DTYPES):
            table: dict[str, list[str]] = {}
            for _ in args.cards:
                kinds, why = next(results)
                wrong += why
                for name, every in kinds.items():
                    table.setdefault(name, []).append(cell(every))
                    total += len(every)
            for name, columns in table.items():
                print(f"| {name} | {width} | {dtype} | {' | '.join(columns)} |", flush=True)
    print(f"\n{total} compilations, {len(wrong)} complaints")
    sys.exit("\n".join(wrong) or 0)  # "" would be an error


if __name__ == "__main__":
    main()
