# SPDX-License-Identifier: Apache-2.0
"""What is given away computes what the run does."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from data.folders import RAS, nifti, scan
from engine.own_runs import small_plan, write_run

from ssmis.engine.export import export_run
from ssmis.engine.trained import TrainedRun, build_recipe
from ssmis.options import TrainOptions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "seed_0", small_plan(spacing=1.3, values=(0, 3)))


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("recipe", ["supervised", "uc_seg"])
def test_onnx_computes_what_torch_does(recipe, dims, patch, tmp_path):
    """Whatever the size, also where the gate of uc_seg interpolates its positions."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    gate = ["gate_patch=4", f"positions={[4] * dims}", "embedding=16", "gate_hidden=16", "fused_widths=[4]"]
    settings = {"nets": ["unet", "vnet"], "coefficients": gate} if recipe == "uc_seg" else {}
    run = write_run(tmp_path / "run", small_plan(dims, patch=patch), recipe=recipe, **settings)
    path = export_run(run, out=str(tmp_path), formats=["onnx"])["onnx"]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.rand(1, 1, *(16, 32, 16)[:dims])
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(found), TrainedRun.read(run).recipe().predict(images).probs, atol=1e-4, rtol=1e-3
    )


def test_examples_of_an_export_are_whole_patches_of_the_gate():
    plan = replace(small_plan(), patch=(16, 24, 12))
    recipe = build_recipe(TrainOptions("DATA", recipe="uc_seg", nets=["unet", "vnet"]), plan)
    model = torch.nn.ModuleList(recipe.deployed().values())
    for images in sys.modules["ssmis.engine.export"]._examples(SimpleNamespace(plan=plan), model):
        assert not any(length % 16 or length % own for length, own in zip(images.shape[2:], (16, 12, 12)))


@pytest.mark.slow
def test_an_onnx_model_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    run = write_run(tmp_path / "run", small_plan(2))
    odd = torch.randn(1, 1, 17, 16)  # torch pads it; what was exported does not
    monkeypatch.setattr(
        sys.modules["ssmis.engine.export"], "_examples", lambda trained, model: (torch.randn(2, 1, 16, 16), odd)
    )
    with pytest.raises(ValueError, match=r"model\.onnx: "):
        export_run(run, out=str(tmp_path / "out"), formats=["onnx"])
    assert list((tmp_path / "out").iterdir()) == []


def test_monai_accepts_the_bundle(run, tmp_path):
    bundle = pytest.importorskip("monai.bundle")
    folder = export_run(run, out=str(tmp_path), formats=["monai"])["monai"]
    image, _ = scan(0, (20, 18, 14))
    nifti(folder / "data" / "a.nii.gz", image, RAS)
    parser = bundle.ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    parser["bundle_root"] = str(folder)
    network = parser.get_parsed_content("network")
    images = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            network(images), TrainedRun.read(run).recipe().predict(images).probs, atol=1e-5, rtol=1e-5
        )
    prepared = parser.get_parsed_content("preprocessing")({"image": str(folder / "data" / "a.nii.gz")})
    ours = TrainedRun.read(run).plan.prepare(image[None], (1, 1, 1))
    assert abs(float(prepared["image"].mean()) - float(ours.mean())) < 0.2
    named = parser.get_parsed_content("postprocessing").transforms[-2]  # classes become the values of the labels
    assert named({"pred": torch.tensor([[[0, 1], [1, 0]]])})["pred"].tolist() == [[[0, 3], [3, 0]]]


def test_an_unknown_format_is_named(run):
    with pytest.raises(ValueError, match="formats has 'keras'"):
        export_run(run, formats=["keras"])
