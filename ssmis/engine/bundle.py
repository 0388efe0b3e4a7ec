# SPDX-License-Identifier: Apache-2.0
"""The folder that MONAI calls a bundle: metadata, an inference configuration, a TorchScript model."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from ssmis.data.plan import Channel, Plan

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def write_bundle(folder: Path, model: Any, plan: Plan) -> None:
    """Write a bundle whose inference does what `ssmis predict` does with MONAI's own transforms.

    Args:
        folder: made if missing.
        model: a TorchScript module, prepared images to probabilities.
        plan: of the run.
    """
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a bundle wants TorchScript
        torch.jit.save(model, str(folder / "models" / "model.ts"))
    (folder / "configs" / "metadata.json").write_text(json.dumps(_metadata(plan), indent=1) + "\n", encoding="utf-8")
    (folder / "configs" / "inference.json").write_text(json.dumps(_inference(plan), indent=1) + "\n", encoding="utf-8")
    about = "Segmentation model trained with ssmis. For research; not a medical device.\n"
    (folder / "docs" / "README.md").write_text(about, encoding="utf-8")
    (folder / "LICENSE").write_text("State the licence of the weights here.\n", encoding="utf-8")


def _metadata(plan: Plan) -> dict[str, Any]:
    names = {str(index): name for index, name in enumerate(plan.label_names)}
    size = list(plan.patch)
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by ssmis"},
        "monai_version": "1.4.0",
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": "1.26.4",
        "required_packages_version": {"nibabel": "5.2.0"},
        "task": "segmentation",
        "description": "Segmentation model trained with ssmis from few labels and unlabelled scans",
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "",
                    "num_channels": len(plan.channels),
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(index): name for index, name in enumerate(plan.channel_names)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": plan.classes,
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": names,
                }
            },
        },
    }


def _inference(plan: Plan) -> dict[str, Any]:
    image = "image"
    steps: list[dict[str, Any]] = [{"_target_": "LoadImaged", "keys": image, "ensure_channel_first": True}]
    if plan.dims == 3:
        steps.append({"_target_": "Orientationd", "keys": image, "axcodes": "RAS", "labels": None})
        steps.append({"_target_": "Spacingd", "keys": image, "pixdim": list(plan.spacing_mm), "mode": "bilinear"})
    steps += [step for step in (_intensity(plan.channels[0]),) if step]
    after: list[dict[str, Any]] = [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": image,
            "nearest_interp": False,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    kind = "$numpy.uint8" if max(plan.label_values) < 256 else "$numpy.int32"
    if plan.label_values != tuple(range(plan.classes)):
        values = {"orig_labels": list(range(plan.classes)), "target_labels": list(plan.label_values)}
        after.append({"_target_": "MapLabelValued", "keys": "pred", **values, "dtype": kind})
    after.append({"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": kind})
    return {
        "imports": ["$import glob", "$import numpy", "$import os", "$import torch"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "$@bundle_root + '/data'",
        "data": "$[{'image': f} for f in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))]",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.patch),
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _intensity(channel: Channel) -> dict[str, Any] | None:
    if channel.kind == "clip":
        return {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": channel.low, "a_max": channel.high,
                 "b_min": channel.low, "b_max": channel.high, "clip": True},
                {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": channel.mean,
                 "divisor": channel.std},
            ],
        }  # fmt: skip
    if channel.kind == "unit":
        return {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": channel.low, "a_max": channel.high,
                "b_min": 0.0, "b_max": 1.0}  # fmt: skip
    return {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": channel.nonzero, "channel_wise": True}
