# SPDX-License-Identifier: Apache-2.0
"""What the machine has for this package, and what it lacks."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from ssmis.engine.runtime import environment, pick_device, pick_precision

EXTRAS = {
    "medical": ("nibabel", "scipy", "h5py", "matplotlib", "jsonargparse", "tqdm", "PIL", "safetensors"),
    "timm": ("timm",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "triton": ("triton",),
}
_NAMES = {"PIL": "pillow"}


def examine() -> tuple[list[str], bool]:
    """Lines to print, and whether data can be read and nets trained."""
    facts = environment()
    device = pick_device()
    precision = pick_precision("auto", device)
    lines = [
        f"ssmis {_version('ssmis')}, Python {facts['python']}, {facts['system']} {facts['machine']}",
        f"torch {torch.__version__} on {device}: {', '.join(facts['gpus']) or facts['cpu_capability']}, "
        f"{facts['threads']} threads of {os.cpu_count()} cores; precision auto is {precision.name}",
        f"disk: {shutil.disk_usage('.').free / 2**30:.0f} GB free here",
    ]
    ok = True
    for extra, modules in EXTRAS.items():
        lacking = [_NAMES.get(module, module) for module in modules if find_spec(module) is None]
        have = ", ".join(f"{_NAMES.get(m, m)} {_version(_NAMES.get(m, m))}" for m in modules if find_spec(m))
        lines.append(f"extra {extra}: {have or 'nothing installed'}")
        if lacking:
            lines.append(f'  lacking {", ".join(lacking)}: pip install "ssmis[{extra}]"')
            ok = ok and extra != "medical"
    with torch.no_grad():
        image = torch.rand(1, 1, 8, 8, 8, device=device)
        with precision.autocast():
            result = torch.nn.Conv3d(1, 2, 3, device=device)(image)
    fine = bool(torch.isfinite(result.float()).all())
    lines.append(f"a convolution in {precision.name}: {'fine' if fine else 'gives numbers that are not finite'}")
    return lines, ok and fine


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"
