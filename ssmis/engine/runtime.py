# SPDX-License-Identifier: Apache-2.0
"""Device, precision, memory layout, seeds, and a description of the machine."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssmis._checks import check_choice

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
_filling: Any = torch.utils.deterministic  # its attribute is made at import
# options of glibc's mallopt, by their numbers in malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to run on: "auto" is a CUDA or ROCm GPU if there is one, else the CPU.

    Raises:
        ValueError: the device named is not available here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise ValueError(f"device is {name!r}, which is not available here: {str(error).splitlines()[0]}") from error
    return device


@dataclass(frozen=True)
class Precision:
    """A number format for forward passes: "bf16", "fp16" (needs loss scaling) or "fp32"."""

    name: str
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the heavy operations."""
        return _DTYPES[self.name]

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients can underflow, so that the loss must be scaled."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which forward passes run in this precision; does nothing for fp32."""
        dtype = torch.bfloat16 if self.name == "fp32" else self.dtype  # CPU autocast refuses fp32 even when disabled
        return torch.autocast(self.device_type, dtype=dtype, enabled=self.name != "fp32")


def pick_precision(name: str = "auto", device: torch.device | str = "cpu") -> Precision:
    """Return the precision for `device`: "auto" is bf16 where the hardware multiplies it natively, else fp16 on a GPU
    and fp32 on a CPU.

    Raises:
        ValueError: an unknown name, or fp16 on a CPU.
    """
    check_choice(name, PRECISIONS, name="precision")
    kind = torch.device(device).type
    if name == "fp16" and kind == "cpu":
        raise ValueError("precision is 'fp16' on a CPU; expected 'bf16' or 'fp32' there")
    if name == "auto":
        if kind == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            name = "bf16" if kind == "cpu" and cpu_has_fast_bf16() else "fp32"
    return Precision(name, kind)


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm BF16) and oneDNN is there to use it.

    Without, bf16 is emulated and slower than fp32. Where this version of torch cannot tell, the answer is no.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    names = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
    flags: dict[str, Any] = {}
    if hasattr(torch.cpu, "get_capabilities"):
        flags = dict(torch.cpu.get_capabilities())
    probes = (getattr(torch.cpu, probe, None) for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(flags.get(name) for name in names) or any(probe() for probe in probes if probe is not None)


def memory_format_for(module: nn.Module) -> torch.memory_format:
    """Return the faster layout for a net: channels last with BatchNorm, contiguous with InstanceNorm or without norm.

    Nets that mix 2-D and 3-D convolutions stay contiguous.
    """
    layers = list(module.modules())
    has_batch_norm = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    has_instance_norm = any(isinstance(layer, nn.modules.instancenorm._InstanceNorm) for layer in layers)
    dims = {layer.weight.ndim - 2 for layer in layers if isinstance(layer, nn.modules.conv._ConvNd)}
    if has_instance_norm or not has_batch_norm:
        return torch.contiguous_format
    if dims == {2}:
        return torch.channels_last
    return torch.channels_last_3d if dims == {3} else torch.contiguous_format


def apply_memory_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the convolution weights in `memory_format`, in place; every other tensor is left as it is."""
    rank = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format)
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd) and rank in (None, layer.weight.ndim):
            layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)


@contextmanager
def freed_memory_kept(*, when: bool) -> Iterator[None]:
    """Let this process keep the memory that it frees, where the C library is glibc; afterwards it is given back.

    A step frees and takes the same maps as the one before it; glibc would return them to the system each time, which
    then clears every page anew. Maps above 32 MiB, the most that glibc lets one set, are returned all the same. The
    options of the allocator stay as they were set here.
    """
    if not when or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for option, size in ((_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26), (_M_MMAP_THRESHOLD, 2**25)):
        library.mallopt(option, size)
    try:
        yield
    finally:
        library.malloc_trim(0)


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Start counting the peak memory anew, where the system lets a process do so (CUDA; Linux)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """Return the peak memory since the last reset in MiB: allocated by torch on a GPU, else resident in the process.

    It is nan where the system does not tell (Windows).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def seed_everything(key: int) -> None:
    """Seed torch's global generators (CPU and devices) from any integer; `nn.Dropout` takes no generator of its own."""
    torch.manual_seed(key % 2**63)


@contextmanager
def deterministic(*, when: bool = True) -> Iterator[None]:
    """Context in which torch takes algorithms that give the same bits each time, and raises where it has none.

    On a CPU they are what it takes anyway, at the same number of threads. `CUBLAS_WORKSPACE_CONFIG` is set for GPUs if
    it is not; it counts only if nothing used the GPU before.

    Args:
        when: false does nothing.
    """
    if not when:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, benchmark = _filling.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    _filling.fill_uninitialized_memory = False  # a check, not a matter of results
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        _filling.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark


def environment() -> dict[str, Any]:
    """Describe what a result depends on: versions, hardware and threads; no names of machines, users or folders."""
    packages = {}
    for name in ("ssmis", "torch", "numpy", "einops", "scipy", "h5py", "nibabel", "timm", "triton"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": packages,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "gpus": gpus,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_fast_bf16": cpu_has_fast_bf16(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
