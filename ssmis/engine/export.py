# SPDX-License-Identifier: Apache-2.0
"""A trained run to give away: weights without pickle, ONNX, a MONAI bundle."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmis._optional import require
from ssmis.data import DataError
from ssmis.engine.bundle import write_bundle
from ssmis.engine.trained import TrainedRun
from ssmis.nets import CrossAttentionGate
from ssmis.options import ExportOptions, gathered

FORMAT, VERSION = "ssmis.export", 1
FORMATS = ("safetensors", "onnx", "monai")


class Deployed(nn.Module):
    """The nets of a recipe that predict, as one module: images `(B, C, *S)` to probabilities `(B, K, *S)`."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: Tensor) -> Tensor:
        """Mean of the softmax of the nets."""
        probs = [net(images).logits.float().softmax(1) for net in self.nets]
        return torch.stack(probs).mean(0)


def export_run(
    run: str | Path | ExportOptions, tell: Callable[[str], object] = lambda text: None, **options: Any
) -> dict[str, Path]:
    """Export a trained run; `ssmis export` is this function.

    - "safetensors": `model.safetensors` with the weights of the nets that predict, `config.json` with what builds them
      and prepares images. `load_exported` reads it.
    - "onnx": `model.onnx`, prepared images to probabilities; batch and spatial size are free, where sizes divide by
      the coarsest stride of the nets (16), and by the patch of the gate of `uc_seg`. It is compared with torch on two
      sizes before it counts as written. Needs the extra `onnx`.
    - "monai": a bundle folder with `configs/metadata.json`, `configs/inference.json` and `models/model.ts`.

    Args:
        run: run folder, or all options in one object.
        tell: called with a line for each file.
        options: of `ExportOptions`.

    Returns:
        Format -> file or folder.

    Raises:
        DataError: no such run.
        ValueError: an unknown format, or an ONNX model that computes something else than torch.
        ImportError: a format without its package.
    """
    chosen = gathered(ExportOptions, run, options)
    formats = chosen.formats or ["safetensors"]
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"formats has {unknown[0]!r}; expected some of {', '.join(FORMATS)}")
    trained = TrainedRun.read(chosen.run)
    out = Path(chosen.out) if chosen.out else trained.folder / "export"
    out.mkdir(parents=True, exist_ok=True)
    model = Deployed(list(trained.recipe().deployed().values())).eval()
    written: dict[str, Path] = {}
    for name in dict.fromkeys(formats):
        writer = {"safetensors": _safetensors, "onnx": _onnx, "monai": _monai}[name]
        written[name] = writer(model, trained, out)
        tell(f"{name}: {written[name]}")
    return written


def load_exported(folder: Path | str) -> tuple[Deployed, dict[str, Any]]:
    """Read what "safetensors" wrote: the module in eval mode, and `config.json`; runs no code from the files.

    Raises:
        DataError: the files are not there, cannot be read, or do not belong to each other; the message names one.
    """
    from ssmis._options_json import checked
    from ssmis.data import Plan
    from ssmis.data.texts import read_json
    from ssmis.engine.trained import build_recipe
    from ssmis.options import TrainOptions

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: there is no config.json; expected what ssmis export wrote")
    config = read_json(folder / "config.json")
    try:
        if config["format"] != FORMAT or type(config["version"]) is not int or config["version"] > VERSION:
            raise ValueError(
                f"it is {config['format']!r} {config['version']!r}; this ssmis reads {FORMAT} to {VERSION}"
            )
        recipe = build_recipe(checked(TrainOptions, config["options"]), Plan.from_dict(config["plan"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / 'config.json'}: is not what ssmis export wrote ({error})") from error
    model = Deployed(list(recipe.deployed().values()))
    torch_format = require("safetensors.torch", extra="medical", purpose="reading exported weights")
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(torch_format.load_file(path))
    except Exception as error:  # safetensors has an error of its own, torch RuntimeError
        raise DataError(f"{path}: cannot be read as the weights that config.json names ({str(error)[:500]})") from error
    return model.eval(), config


def _safetensors(model: Deployed, trained: TrainedRun, out: Path) -> Path:
    torch_format = require("safetensors.torch", extra="medical", purpose="exporting weights")
    path = out / "model.safetensors"
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    torch_format.save_file(weights, path, metadata={"format": "pt"})
    config = {"format": FORMAT, "version": VERSION, "options": asdict(trained.options), "plan": asdict(trained.plan)}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return path


def _examples(trained: TrainedRun, model: Deployed) -> tuple[Tensor, Tensor]:
    """Images about the patch's size, and larger ones, both of sizes that the pooling and a gate's patch divide."""
    plan = trained.plan
    steps = [math.prod(factors) for factors in zip(*plan.pooling)]
    for gate in (module for module in model.modules() if isinstance(module, CrossAttentionGate)):
        steps = [math.lcm(step, own) for step, own in zip(steps, gate.patch)]
    size = [step * math.ceil(length / step) for length, step in zip(plan.patch, steps)]
    larger = [length + 2 * step for length, step in zip(size, steps)]
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, len(plan.channels), *size, generator=generator)
    return first, torch.randn(1, len(plan.channels), *larger, generator=generator)


def _onnx(model: Deployed, trained: TrainedRun, out: Path) -> Path:
    for package in ("onnx", "onnxscript"):
        require(package, extra="onnx", purpose="exporting ONNX")
    runtime = require("onnxruntime", extra="onnx", purpose="checking the ONNX model")
    path = out / "model.onnx"
    first, other = _examples(trained, model)
    axes = ("height", "width") if trained.plan.dims == 2 else ("depth", "height", "width")
    sizes = {0: "batch", **{axis + 2: name for axis, name in enumerate(axes)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (first,), str(path), dynamo=False, opset_version=17, input_names=["images"],
            output_names=["probs"], dynamic_axes={"images": sizes, "probs": sizes},
        )  # fmt: skip
    try:
        _compare(path, model, (first, other), runtime)
    except ValueError:
        path.unlink(missing_ok=True)  # nobody should take it for one that was compared
        raise
    return path


def _compare(path: Path, model: Deployed, examples: Sequence[Tensor], runtime: Any) -> None:
    """Raise ValueError unless the ONNX model computes what torch does."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images in examples:
        with torch.no_grad():
            expected = model(images)
        try:
            (found,) = session.run(None, {"images": images.numpy()})
        except Exception as error:  # onnxruntime has errors of its own
            raise ValueError(f"{path}: does not take images {tuple(images.shape)} ({str(error)[:300]})") from error
        away = (
            float((torch.from_numpy(found) - expected).abs().max()) if found.shape == expected.shape else float("inf")
        )
        if not away < 1e-3:
            raise ValueError(f"{path}: on images {tuple(images.shape)} the ONNX model is {away:.3g} away from torch")


def _monai(model: Deployed, trained: TrainedRun, out: Path) -> Path:
    folder = out / "bundle"
    first, _ = _examples(trained, model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the shape checks of the nets, which every window passes
        traced = torch.jit.trace(model, first[:1], check_trace=False)
    write_bundle(folder, traced, trained.plan)
    return folder
