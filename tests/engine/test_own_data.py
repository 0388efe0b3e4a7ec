# SPDX-License-Identifier: Apache-2.0
"""Runs on data of one's own: arrays, files, streaming, training, scores, export."""

import json
import subprocess
import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from data.affines import affines, shapes
from data.folders import LPS, nifti, picture, plain, scan
from engine.own_runs import by_threshold, small_plan, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmis.data import Case, DataError, Volume, find_dataset, resample_maps
from ssmis.data.scans import read_labels, read_scan
from ssmis.data.splits import make_split, write_split
from ssmis.engine import Predictor, sliding
from ssmis.engine.evaluate import evaluate
from ssmis.engine.export import export_run, load_exported
from ssmis.engine.files import predict_case, predict_files
from ssmis.engine.scoring import evaluate_run
from ssmis.engine.sliding import brought_back
from ssmis.engine.train import train
from ssmis.engine.trained import TrainedRun, build_recipe, norm_of
from ssmis.metrics import CaseScore, read_cases_csv
from ssmis.metrics.cases import cases_csv
from ssmis.options import TrainOptions
from ssmis.registry import RECIPES
from ssmis.report.folders import compared, report_runs, seeds_table
from ssmis.report.runs import ReportRun

nib = pytest.importorskip("nibabel")
SIZES = st.tuples(*[st.integers(1, 11)] * 3)


def soft(windows):
    """Probabilities that depend on place and neighbourhood."""
    place = torch.linspace(0, 1, windows[0, 0].numel()).view(windows.shape[2:])
    first = (windows[:, :1] * 0.6 + windows[:, :1].roll(1, 2) * 0.2 + 0.2 * place).clamp(0, 1)
    return torch.cat([first * 0.5, 1 - first, first * 0.5], 1)


@given(SIZES, SIZES, st.integers(0, 2), st.integers(1, 4), st.integers(0, 99))
def test_slabs_brought_back_are_the_whole_resampled(size, target, axis, rows, seed):
    probs = torch.rand(2, *size, generator=torch.Generator().manual_seed(seed))
    parts = [
        (first, probs.narrow(axis + 1, first, min(rows, size[axis] - first)).clone())
        for first in range(0, size[axis], rows)
    ]
    out = torch.full((2, *target), float("nan"))
    for first, slab in brought_back(iter(parts), axis, size, target):
        out.narrow(axis + 1, first, slab.shape[axis + 1]).copy_(slab)
    torch.testing.assert_close(out, resample_maps(probs, target), atol=1e-5, rtol=1e-5)


@given(SIZES, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.sampled_from([1.0, 0.6, 1.7]))
def test_segmenting_in_slabs_is_predicting_the_whole(size, patch, stride, batch, flip, spacing):
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(1)).numpy()
    predictor = Predictor(
        soft, patch=[patch] * 3, stride=[min(stride, patch)] * 3, flips=(0, 2) if flip else (), batch_size=batch,
        plan=small_plan(values=(0, 5, 900), kind="unit"),
    )  # fmt: skip
    whole = predictor.predict(image, (spacing,) * 3)
    found = predictor.segment(image, (spacing,) * 3, uncertainty=True, probs=True)
    np.testing.assert_allclose(found.probs, whole.probs.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.uncertainty, whole.uncertainty.numpy(), atol=1e-4)
    assert found.labels.dtype == np.uint16
    np.testing.assert_array_equal(found.labels, np.array([0, 5, 900])[found.probs.argmax(0)])
    for first, slab in predictor.stream(image, (spacing,) * 3, axis=1):
        part = whole.probs[:, :, first : first + slab.shape[2]]
        torch.testing.assert_close(slab, part, atol=1e-5, rtol=1e-5)


def test_the_running_sums_are_a_slab_and_not_the_volume(monkeypatch):
    made = []

    class Spy(sliding._Sums):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.append(self.size)

    monkeypatch.setattr(sliding, "_Sums", Spy)
    Predictor(soft, patch=(4, 4, 4), batch_size=1).segment(torch.rand(1, 6, 40, 6))
    assert made == [(6, 4, 6)]


@given(affines(), shapes, st.integers(0, 1000))
@settings(max_examples=15)
def test_a_label_map_that_is_read_as_an_image_is_written_back_to_the_bit(affine, shape, seed):
    """Pure reorientation: what the model reads off the intensities must come back voxel by voxel."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        labels = np.random.default_rng(seed).choice([0, 2, 7], shape).astype(np.int16)
        source = nifti(Path(folder) / "a.nii", labels, affine)
        spacing = read_scan(source).grid.canonical_spacing_mm
        plan = small_plan(values=(0, 2, 7), kind="unit")
        plan = type(plan)(**{**vars(plan), "spacing_mm": spacing})
        predictor = Predictor(by_threshold([0.0, 2.0, 7.0]), patch=(3, 3, 3), plan=plan)
        written = predict_case(predictor, Case("a", source, None, ()), Path(folder) / "out")
        result = nib.load(written.labels)
        np.testing.assert_array_equal(np.asarray(result.dataobj), labels)
        np.testing.assert_array_equal(result.affine, nib.load(source).affine)
        for name in ("qform_code", "sform_code", "quatern_b", "srow_x", "pixdim"):
            np.testing.assert_array_equal(result.header[name], nib.load(source).header[name])


@given(affines(degrees=180, shear=0.1), st.integers(0, 1000))
@settings(max_examples=15)
def test_after_resampling_a_structure_stays_within_half_a_voxel(affine, seed):
    import tempfile

    size = (24, 20, 22)
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1) - (
        np.array(size) / 2 + random.uniform(-2, 2, 3)
    )
    labels = ((place**2).sum(-1) < 36).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        source = nifti(Path(folder) / "a.nii", labels, affine)
        spacing = read_scan(source).grid.canonical_spacing_mm
        plan = small_plan(kind="unit")
        target = tuple((random.uniform(0.6, 1.8, 3) * spacing).tolist())
        plan = type(plan)(**{**vars(plan), "spacing_mm": target})
        predictor = Predictor(by_threshold([0.0, 1.0]), patch=(8, 8, 8), plan=plan)
        written = predict_case(predictor, Case("a", source, None, ()), Path(folder) / "out")
        found = np.asarray(nib.load(written.labels).dataobj)
        away = np.argwhere(found).mean(0) - np.argwhere(labels).mean(0)
        assert np.abs(away).max() < 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "seed_0", small_plan(spacing=1.3, values=(0, 3)))


def test_the_path_of_arrays_is_the_path_of_files(run, tmp_path):
    image, _ = scan(0, (20, 18, 14))
    source = nifti(tmp_path / "a.nii.gz", image, LPS * [[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 2, 2], [1, 1, 1, 1]])
    predictor = Predictor.load(run)
    canonical = nib.as_closest_canonical(nib.load(source))
    array = np.asarray(canonical.dataobj)[None]
    found = predictor.segment(array, canonical.header.get_zooms(), probs=True, uncertainty=True)
    (written,) = predict_files(run, [source], out=str(tmp_path / "out"), prob=True, uncertainty=True, progress=False)
    for path, own in ((written.labels, found.labels), (written.uncertainty, found.uncertainty)):
        theirs = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
        np.testing.assert_array_equal(theirs, own)
    probs = np.asarray(nib.as_closest_canonical(nib.load(written.probs[0])).dataobj)
    np.testing.assert_array_equal(np.moveaxis(probs, -1, 0), found.probs)
    np.testing.assert_allclose(predictor.predict(array, canonical.header.get_zooms()).probs, found.probs, atol=1e-5)
    assert set(np.unique(found.labels)) <= {0, 3}
    with pytest.raises(ValueError, match="spacing_mm is None"):
        predictor.predict(array)


def test_seeds_are_averaged_and_runs_that_differ_are_refused(run, tmp_path):
    second = write_run(run.parent / "seed_1", small_plan(spacing=1.3, values=(0, 3)), seed=1)
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    parts = [Predictor.load(folder).predict(image, (1.3,) * 3).probs for folder in (run, second)]
    both = Predictor.load(run.parent).predict(image, (1.3,) * 3).probs
    torch.testing.assert_close(both, sum(parts) / 2, atol=1e-5, rtol=1e-5)
    other = write_run(tmp_path / "other", small_plan(spacing=2.0, values=(0, 3)))
    with pytest.raises(DataError, match="differ in spacing_mm"):
        Predictor.load([run, other])
    flipped = Predictor.load(run, flips=True)
    assert flipped.flips == (0, 1, 2)


def test_pictures_in_pictures_out(tmp_path):
    folder = write_run(tmp_path / "run", small_plan(2, values=(0, 255), kind="unit"))
    picture(tmp_path / "in" / "a.png", np.random.default_rng(0).integers(0, 255, (20, 24)).astype(np.uint8))
    (written,) = predict_files(
        folder, [tmp_path / "in"], out=str(tmp_path / "out"), prob=True, uncertainty=True, largest=True, progress=False
    )
    from PIL import Image

    with Image.open(written.labels) as image:
        labels = np.asarray(image)
    assert labels.shape == (20, 24)
    assert set(np.unique(labels)) <= {0, 255}
    assert [path.name for path in written.probs] == ["a_prob0.png", "a_prob255.png"]
    assert written.uncertainty is not None


def test_train_resume_evaluate_report_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = plain(tmp_path / "data", labelled=5, unlabelled=2)
    options = {
        "recipe": "supervised", "nets": ["unet"], "width": 2, "progress": False, "device": "cpu", "precision": "fp32",
        "steps": 3, "patch": [8, 8, 8], "batch": 1,
    }  # fmt: skip
    told = []
    done = train(data, told.append, out="runs/unet_seed0", **options)
    assert "images/ and labels/" in told[0]
    assert len(done.split.test) == 1
    for name in ("options.json", "config.yaml", "plan.json", "split/test.list", "metrics.csv", "protocol.json"):
        assert (done.folder / name).is_file(), name
    with pytest.raises(FileExistsError, match="add --resume"):
        train(data, out="runs/unet_seed0", **options)
    again = train(data, out="runs/unet_seed0", resume=True, **options)  # nothing left to do
    for one, other in zip(done.fit.recipe.state_dict().values(), again.fit.recipe.state_dict().values()):
        assert torch.equal(one, other)
    read_back = TrainedRun.read(done.folder).recipe().state_dict()
    for name, value in done.fit.recipe.state_dict().items():
        assert torch.equal(value, read_back[name]), name

    (scores,) = evaluate_run(done.folder, told.append, progress=False)
    assert [result.case for result in scores.results] == [done.split.test[0].id]
    stored = read_cases_csv(done.folder / "cases.csv")
    assert stored[0].dice == pytest.approx(scores.results[0].scores[0].dice)
    written = nib.load(done.folder / "predictions" / f"{stored[0].case}.nii.gz")
    source = nib.load(done.split.test[0].image)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert json.loads((done.folder / "protocol.json").read_text())["evaluation"]["scored"]["count"] == 1

    train(data, out="runs/unet_seed1", **options | {"seed": 1, "test": str(done.folder / "split/test.list")})
    evaluate_run("runs/unet_seed1", progress=False)
    page = report_runs(["runs"], told.append, out="report.html")
    text = page.read_text(encoding="utf-8")
    for shown in ("unet_seed1", "<h2>Calibration</h2>", "unet_seed0: uncertainty", "unet_seed1: uncertainty"):
        assert shown in text, shown
    scan = read_scan(done.split.test[0].image)
    unsure = read_labels(done.folder / "uncertainty" / f"{stored[0].case}.nii.gz", scan.grid)
    predictor = Predictor.load(done.folder)
    found = predictor.segment(scan.image, spacing_mm=scan.grid.canonical_spacing_mm, uncertainty=True)
    np.testing.assert_allclose(unsure, 255 * found.uncertainty, atol=0.51)
    assert unsure.max() > 0
    bins, pooled = ReportRun("unet", done.folder).bins, scores.results[0].calibration
    assert bins.ece == pytest.approx(pooled.ece)
    assert bins.count.sum() == pooled.n == unsure.size
    rows = seeds_table([ReportRun(p.name, p) for p in sorted(Path("runs").glob("unet_seed*"))])
    assert [cell.strip() for cell in rows.splitlines()[-1].split("|")[1:3]] == ["unet", "2"]

    files = export_run(done.folder, formats=["safetensors"])
    model, config = load_exported(files["safetensors"].parent)
    images = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), TrainedRun.read(done.folder).recipe().predict(images).probs)
    assert config["plan"]["label_values"] == [0, 1]


SMALL = {
    "recipe": "supervised", "nets": ["unet"], "width": 2, "progress": False, "device": "cpu", "precision": "fp32",
    "steps": 2, "patch": [8, 8, 8], "batch": 1,
}  # fmt: skip


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_on_keeps_its_plan_and_split_from_a_second_one(tmp_path):
    """Before the first checkpoint too: held-out cases of the one would be training cases of the other."""
    data = plain(tmp_path / "data", labelled=5, unlabelled=2)
    out = tmp_path / "run"
    holder = (
        "import sys; from pathlib import Path; from ssmis.engine.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", holder, str(out)], **pipes) as first:
        assert first.stdout.readline() == "held\n"
        before = files_of(out)
        with pytest.raises(FileExistsError, match="another process trains there"):
            train(data, out=str(out), seed=5, **SMALL)
        assert files_of(out) == before
        first.communicate()


def test_a_resume_with_other_options_names_them(tmp_path):
    data = plain(tmp_path / "data", labelled=5, unlabelled=2)
    done = train(data, out=str(tmp_path / "run"), **SMALL)
    with pytest.raises(ValueError, match=r"run was begun with other options: labelled was all and is 2, width was 2"):
        train(data, out=str(tmp_path / "run"), resume=True, labelled="2", **SMALL | {"width": 4})
    (done.folder / "checkpoints" / "last.pt").unlink()  # nothing to resume: planned anew
    anew = train(data, out=str(tmp_path / "run"), resume=True, labelled="2", **SMALL)
    assert len(anew.split.labelled) == 2
    assert json.loads((done.folder / "options.json").read_text())["labelled"] == "2"


def test_the_state_of_an_average_is_what_predicts(tmp_path):
    done = train(
        plain(tmp_path / "data", labelled=2, unlabelled=0), out=str(tmp_path / "run"), recipe="supervised",
        nets=["unet"], width=2, progress=False, steps=2, patch=[8, 8, 8], batch=1, test="0", precision="fp32",
        device="cpu",
    )  # fmt: skip
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    expected = done.fit.recipe.predict(done.plan.prepare(image, (1, 1, 1))[None]).probs[0]
    found = Predictor.load(done.folder, device="cpu").predict(image, done.plan.spacing_mm).probs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_run_is_evaluated_where_its_data_are_now(tmp_path):
    data = plain(tmp_path / "data", labelled=2, unlabelled=0)
    run = write_run(tmp_path / "run", small_plan(), data=data)
    write_split(make_split(find_dataset(data), test=1), run / "split")
    (run / "protocol.json").write_text("{}")
    (tmp_path / "data").rename(tmp_path / "archive")
    with pytest.raises(DataError, match="and there is no such folder or table; add --dataset"):
        evaluate_run(run, progress=False)
    told = []
    (scores,) = evaluate_run(run, told.append, dataset=str(tmp_path / "archive"), progress=False)
    assert len(scores.results) == 1
    assert told[0] == "1 held-out case, on its own grid"
    assert "(too few cases for an interval)" in told[1]  # it was of no width


@pytest.mark.parametrize(
    ("option", "told"),
    [({"steps": 0}, "steps is 0; expected more than 0"), ({"learning_rate": nan}, "learning_rate is nan"),
     ({"patch": [8, 0, 8]}, "patch is"), ({"spacing_mm": [1.0, nan, 1.0]}, "spacing_mm is"),
     ({"memory_gb": -1.0}, "memory_gb is"), ({"batch": 0}, "batch is 0"), ({"width": -4}, "width is"),
     ({"seed": -1}, "seed is -1"), ({"intensity": "zcore"}, "intensity is 'zcore'"),
     ({"precision": "half"}, "precision is 'half'"), ({"device": "gpu"}, "device is 'gpu'"),
     ({"norm": "layer"}, "norm is 'layer'"), ({"nets": ["unet:resnet18"]}, "'unet' has none to choose")],
)  # fmt: skip
def test_options_no_training_can_have_are_refused_before_anything_is_written(option, told, tmp_path):
    data = plain(tmp_path / "data")
    with pytest.raises(ValueError, match=told):
        train(data, out=str(tmp_path / "run"), **{"recipe": "supervised", "progress": False, **option})
    assert not (tmp_path / "run").exists()


def test_scores_are_taken_in_slabs_and_are_those_of_the_whole():
    generator = np.random.default_rng(0)
    image, label = generator.standard_normal((1, 40, 9, 8)).astype(np.float32), generator.integers(0, 2, (40, 9, 8))

    class Whole:
        def __init__(self, **settings):
            self.predictor = Predictor(soft, patch=(8, 8, 8), **settings)

        def predict(self, image):
            return self.predictor.predict(image)

    class InSlabs(Whole):
        rows = ()

        def predict(self, image):
            raise AssertionError("all probabilities at once")

        def stream(self, image):
            for first, probs in self.predictor.stream(image):
                self.rows = (*self.rows, probs.shape[1])
                yield first, probs

    def load(case):
        return Volume(image, label, (1.0, 1.5, 2.0))

    case = Case("a", Path("a"), Path("b"), (1.0, 1.5, 2.0))
    (whole,), slabs = evaluate(Whole(), [case], load=load), InSlabs()
    (found,) = evaluate(slabs, [case], load=load)
    assert found.scores == whole.scores
    assert (found.prediction == whole.prediction).all()
    assert found.calibration.n == whole.calibration.n
    assert (found.calibration.ece, found.calibration.brier) == pytest.approx(
        (whole.calibration.ece, whole.calibration.brier)
    )
    assert sum(slabs.rows) == 40
    assert len(slabs.rows) > 3


def test_coefficients_take_the_place_of_the_presets():
    words = ["contrast_weight=0.25", "bank=ema", "anchors=null", "kl_rectified=false", "keep_fraction=1"]
    config = build_recipe(TrainOptions("DATA", coefficients=words), small_plan()).config
    assert (config.contrast_weight, config.bank, config.anchors) == (0.25, "ema", None)
    assert (config.kl_rectified, config.keep_fraction) == (False, 1)
    untouched = build_recipe(TrainOptions("DATA"), small_plan()).config
    assert config.unlabelled_from == untouched.unlabelled_from == 0.3  # the rest is the preset's


@pytest.mark.parametrize("recipe", ["supervised", "mean_teacher", "dual_uncertainty"])
def test_nets_have_the_norm_that_was_asked_for(recipe):
    kinds = {"batch": torch.nn.BatchNorm3d, "instance": torch.nn.InstanceNorm3d, "group": torch.nn.GroupNorm}
    for norm, kind in kinds.items():
        nets = build_recipe(TrainOptions("DATA", recipe=recipe, norm=norm), small_plan()).students
        found = {type(module) for net in nets.values() for module in net.modules() if type(module) in kinds.values()}
        assert found == {kind}


@pytest.mark.parametrize(
    ("patch", "batch", "kind"),
    [(16, 7, torch.nn.GroupNorm), (32, 7, torch.nn.InstanceNorm3d), (32, 8, torch.nn.BatchNorm3d)],
)
def test_nets_are_normalised_by_single_images_if_a_batch_is_small(patch, batch, kind):
    nets = build_recipe(TrainOptions("DATA"), replace(small_plan(patch=patch), batch=batch)).students
    assert all(any(isinstance(module, kind) for module in net.modules()) for net in nets.values())
    for net in nets.values():
        assert torch.isfinite(net(torch.randn(1, 1, *[patch] * 3)).logits).all()


@pytest.mark.parametrize(
    ("recipe", "words", "told"),
    [
        ("dual_uncertainty", ["contrast_weight"], "coefficients has 'contrast_weight'; expected NAME=VALUE"),
        ("dual_uncertainty", ["bank=ema", "bank=fifo"], "coefficients has bank twice"),
        ("dual_uncertainty", ["contrast=1"], "contrast=1.*unexpected keyword argument 'contrast'.*'dual_uncertainty'"),
        ("dual_uncertainty", ["contrast_weight=high"], "contrast_weight=high.*see the recipe"),
        ("dual_uncertainty", ["keep_fraction=2"], "keep_fraction is 2"),
        ("dual_uncertainty", ["preset=paper"], "preset is no coefficient"),
        ("dual_uncertainty", ["kl_rectified=False"], "kl_rectified=False, which is str; expected bool, as JSON writes"),
        ("dual_uncertainty", ["candidates=2.5"], "candidates=2.5, which is float; expected int"),
        ("dual_uncertainty", ["contrast_weight=true"], "contrast_weight=true, which is bool; expected float"),
        ("dual_uncertainty", ["predict_with=vnet"], "predict_with=vnet, which is str; expected Sequence"),
        ("supervised", ["contrast_weight=1"], "unexpected keyword argument 'contrast_weight'.*'supervised'"),
        ("supervised", ["ce_weight=-1"], "ce_weight is -1"),
        ("supervised", ["ce_weight=high"], "ce_weight=high, which is str; expected float"),
        ("mean_teacher", ["ema_warmup=no"], "ema_warmup=no, which is str; expected bool"),
        ("uc_seg", ["ramp_end=0"], "ramp_end is 0"),
        ("uc_seg", ["mix_side=5"], "mix_side is 5"),
        ("uc_seg", ["temperature=0"], "temperature is 0"),
        ("uc_seg", ["cells=0"], "cells is 0"),
        ("uc_seg", ["calibration_start=0"], "calibration_start is 0"),
    ],
)
def test_coefficients_that_cannot_be_are_named(recipe, words, told):
    with pytest.raises(ValueError, match=told):
        build_recipe(TrainOptions("DATA", recipe=recipe, coefficients=words), small_plan())


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_is_built_without_a_preset(recipe):
    assert build_recipe(TrainOptions("DATA", recipe=recipe), small_plan()).students


def test_coefficients_of_uc_seg_are_lists_too():
    words = ["embedding=16", "gate_hidden=8", "fused_widths=[8, 4]", "positions=[1, 1, 1]", "symmetric=false"]
    config = build_recipe(TrainOptions("DATA", recipe="uc_seg", coefficients=words), small_plan()).config
    assert (config.fused_widths, config.symmetric) == ([8, 4], False)


def test_an_encoder_of_timm_ends_as_one_voxel_earlier_than_the_plan_says():
    nets = ["timm_unet:resnet18"]
    assert norm_of(TrainOptions("DATA", nets=nets), small_plan(2, patch=32)) == "group"
    assert norm_of(TrainOptions("DATA", nets=nets), small_plan(2, patch=48)) == "instance"  # padded to 64
    assert norm_of(TrainOptions("DATA"), small_plan(2, patch=32)) == "instance"


def test_methods_are_compared_by_the_means_of_their_seeds(tmp_path):
    dice = {"base_seed0": (0.5, 0.7), "base_seed1": (0.7, 0.5), "new_seed0": (0.8, 0.8), "new_seed1": (0.6, nan)}
    for name, values in dice.items():
        rows = [
            CaseScore(case, 1, "na" if value != value else "ok", 1, 1, value, *[value] * 7, unit="mm")
            for case, value in zip("ab", values)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "cases.csv").write_text(cases_csv(rows))
    runs = [ReportRun(name, tmp_path / name) for name in dice]
    assert compared(runs).startswith("new minus base: Dice +15.00 points, 95 % interval +10.00 to +20.00")
    assert "2 cases, means over 2 and 2 runs" in compared(runs)
    assert compared(runs[:2]) == ""
