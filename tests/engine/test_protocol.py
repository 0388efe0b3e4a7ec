# SPDX-License-Identifier: Apache-2.0
"""From a protocol to batches, predictions and scores on the original grid."""

import csv
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from recipes.small import small_nets
from torch import nn

from ssmis.data import FAMILIES, DataError, la_split, load_la, write_phantoms
from ssmis.engine import PROTOCOLS, FitConfig, Predictor, Protocol, SlicePredictor, evaluate, fit
from ssmis.metrics import calibration, evaluate_case, read_cases_csv
from ssmis.recipes import Prediction, Supervised
from ssmis.report.compare import runs_table

SMALL = Protocol(patch=(16, 16, 16), fit=FitConfig(steps=2, seed=3))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("data"), labelled=2, unlabelled=2, test=1, size=(24, 20, 18))


def test_published_protocol_is_pinned():
    paper = PROTOCOLS["paper"]
    assert paper.patch == (112, 112, 80)
    assert paper.stride == (18, 18, 4)
    assert (paper.labelled_per_batch, paper.unlabelled_per_batch) == (2, 2)
    assert paper.scale == 1.0
    fit = paper.fit
    assert (fit.steps, fit.optimizer, fit.learning_rate, fit.momentum, fit.weight_decay) == (
        6000,
        "sgd",
        0.01,
        0.9,
        1e-4,
    )
    assert [fit.rate(step / 6000) for step in (0, 2499, 2500, 4999, 5000)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001, 0.0001]
    )
    assert fit.ema_decay is None


def test_cpu_protocol_is_half_resolution():
    cpu = PROTOCOLS["cpu"]
    assert (cpu.scale, cpu.patch) == (0.5, (64, 64, 48))


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm3d), ("instance", nn.InstanceNorm3d)])
def test_the_norm_is_that_of_both_nets(norm, kind):
    protocol = replace(SMALL, norm=norm, widths=(4, 8, 8), blocks=(1, 1))
    kinds = (nn.BatchNorm3d, nn.InstanceNorm3d, nn.GroupNorm)
    for net in protocol.nets().values():
        assert {type(module) for module in net.modules() if isinstance(module, kinds)} == {kind}
    assert protocol.facts()["protocol"]["norm"] == norm


def test_supervised_batches_have_no_unlabelled_part(root, tmp_path):
    split = la_split(root, labelled=2)
    cache = SMALL.cache([*split.labelled, *split.unlabelled], tmp_path)
    assert SMALL.batches(cache, split.labelled)(0).unlabelled.shape == (0, 1, 16, 16, 16)
    assert SMALL.batches(cache, split.labelled, split.unlabelled)(0).unlabelled.shape == (2, 1, 16, 16, 16)


def test_batches_follow_the_seed(root, tmp_path):
    split = la_split(root, labelled=2)
    cache = SMALL.cache(split.labelled, tmp_path)
    first, again = (SMALL.batches(cache, split.labelled)(1) for _ in range(2))
    assert torch.equal(first.images, again.images)
    other = Protocol(patch=(16, 16, 16), fit=FitConfig(seed=4)).batches(cache, split.labelled)(1)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_scores_are_on_the_original_grid(root, scale):
    protocol = Protocol(patch=(8, 8, 8), scale=scale, fit=FitConfig(precision="fp32"))
    case = la_split(root, labelled=2, test="test.list").test[0]
    recipe = Supervised(small_nets(names=("vnet",), dims=3))
    (result,) = evaluate(protocol.predictor(recipe), [case])
    assert result.prediction.shape == load_la(case).label.shape
    assert result.case == result.scores[0].case == case.id


class Oracle:
    """Stands in for a predictor: knows the answer."""

    def __init__(self, label):
        self.foreground = 0.1 + 0.8 * torch.from_numpy(label.astype(np.float32))

    def predict(self, image):
        assert image.shape[1:] == self.foreground.shape
        return Prediction(torch.stack([1 - self.foreground, self.foreground]), self.foreground)


def test_a_perfect_prediction_scores_one(root):
    case = la_split(root, labelled=2, test="test.list").test[0]
    (result,) = evaluate(Oracle(load_la(case).label), [case])
    assert result.scores[0].dice == 1.0
    assert result.scores[0].hd95 == 0.0


def test_an_unlabelled_case_cannot_be_scored(root):
    case = la_split(root, labelled=2).unlabelled[0]
    with pytest.raises(DataError, match="has no label to evaluate against"):
        evaluate(SMALL.predictor(Supervised(small_nets(names=("vnet",), dims=3))), [case])


def test_named_protocols_and_their_short_names():
    assert PROTOCOLS["paper"] is PROTOCOLS["la/paper"]
    assert PROTOCOLS["cpu"] is PROTOCOLS["la/cpu"]
    names = {"la/paper", "la/cpu", "phantom", *(f"pancreas/{by}" for by in ("mcnet", "coranet", "mcf")), "brats2019"}
    assert {protocol.name for protocol in PROTOCOLS.values()} == names | {"acdc"}
    for protocol in PROTOCOLS.values():
        family = FAMILIES[protocol.family]
        assert protocol.classes == tuple(range(1, family.classes))
        if protocol.name not in ("la/cpu", "phantom"):  # published tables count in voxels
            assert protocol.convention == "medpy"
        Predictor(lambda images: images, patch=protocol.patch, stride=protocol.stride)  # accepts the windows


def test_data_rules_of_published_families_are_pinned():
    rules = {name: (family.counts, family.labelled) for name, family in FAMILIES.items()}
    assert rules["la"] == ({"train": 80, "test": 20}, (4, 8, 16))
    assert rules["pancreas/mcnet"][0] == {"train": 62, "test": 20}
    assert rules["pancreas/coranet"][0] == {"labelled": 12, "unlabelled": 50, "test": 18}
    assert rules["brats2019"][0] == {"train": 250, "val": 25, "test": 60}
    assert rules["acdc"] == ({"train": 1312, "val": 20, "test": 40}, (3, 7, 14))
    for name in ("pancreas/mcnet", "pancreas/coranet", "pancreas/mcf"):
        assert (PROTOCOLS[name].patch, PROTOCOLS[name].stride) == ((96,) * 3, (16,) * 3)
    assert PROTOCOLS["brats2019"].patch == (96,) * 3
    assert PROTOCOLS["acdc"].resize == PROTOCOLS["acdc"].patch == (256, 256)


def island(case):
    """The label of a case and a second, smaller component beside it."""
    label = load_la(case).label.copy()
    corner = label[:3, :3, :3]
    assert not label[:4, :4, :4].any()
    corner[...] = 1
    return label


def test_the_largest_component_is_scored_beside_the_prediction(root):
    case = la_split(root, labelled=2, test="test.list").test[0]
    label = load_la(case).label
    (plain,) = evaluate(Oracle(island(case)), [case])
    (both,) = evaluate(Oracle(island(case)), [case], largest=True)
    assert plain.largest == ()
    assert both.scores == plain.scores
    assert both.scores[0].dice < 1.0
    assert both.largest[0].dice == 1.0
    assert both.largest[0].case == case.id
    assert np.array_equal(both.prediction, island(case))  # the prediction stays as it is
    assert label.sum() < both.prediction.sum()


def test_the_convention_reaches_the_scores(root):
    case = la_split(root, labelled=2, test="test.list").test[0]
    (result,) = evaluate(Oracle(island(case)), [case], convention="medpy")
    label = load_la(case).label
    expected = evaluate_case(
        island(case), label, classes=(1,), spacing_mm=case.spacing_mm, convention="medpy", case=case.id
    )
    assert result.scores == tuple(expected)
    assert result.scores[0].unit == "voxel"


@pytest.mark.parametrize("margin", [None, 2])
def test_the_calibration_is_that_of_the_probabilities(root, margin):
    case = la_split(root, labelled=2, test="test.list").test[0]
    oracle, label = Oracle(island(case)), load_la(case).label
    (result,) = evaluate(oracle, [case], foreground_margin=margin)
    expected = calibration(oracle.predict(load_la(case).image).probs, label, foreground_margin=margin)
    assert (result.calibration.ece, result.calibration.brier) == (expected.ece, expected.brier)
    assert (result.calibration.n < label.size) is (margin is not None)


def test_a_scored_run_says_all_it_depends_on(root, tmp_path):
    split = la_split(root, labelled=2, test="test.list")
    cache = SMALL.cache([*split.labelled, *split.unlabelled], tmp_path / "cache")
    recipe = Supervised(small_nets(names=("resnet", "vnet"), dims=3))
    facts = SMALL.facts(labelled=split.labelled, unlabelled=split.unlabelled)
    batches = SMALL.batches(cache, split.labelled, split.unlabelled)
    run = fit(recipe, batches, SMALL.fit, out=tmp_path, facts=facts, held_out=split.test, progress=False)
    results = SMALL.score(run.recipe, split.test, tmp_path)
    record = json.loads((tmp_path / "protocol.json").read_text())
    assert record["labelled"]["cases"] == ["phantom_0000", "phantom_0001"]
    assert record["labelled"]["count"] == record["labelled"]["patients"] == 2
    assert len(record["unlabelled"]["sha256"]) == 64
    assert (record["checkpoint"], record["fit"]["seed"], record["nets"]) == ("last", 3, ["resnet", "vnet"])
    evaluation = record["evaluation"]
    assert evaluation["scored"]["cases"] == ["phantom_0004"]
    assert evaluation["windows"] == {
        "patch": [16, 16, 16], "stride": [8, 8, 8], "blending": "uniform", "flips": [], "scale": 1.0,
    }  # fmt: skip
    assert evaluation["post_processing"] == ["none", "largest_component"]
    assert (evaluation["convention"], evaluation["unit"], evaluation["missed"]) == ("default", "mm", "diagonal")
    assert (evaluation["foreground_margin"], evaluation["calibration_bins"]) == (8, 15)
    assert evaluation["nets"] == ["resnet", "vnet"]
    assert {"ssmis", "torch"} <= set(evaluation["versions"]) == set(record["versions"])
    assert read_cases_csv(tmp_path / "cases.csv") == list(results[0].scores)
    assert read_cases_csv(tmp_path / "cases_largest.csv") == list(results[0].largest)
    with (tmp_path / "calibration.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["case"], float(row["ece"])) == ("phantom_0004", results[0].calibration.ece)
    assert "largest component" in runs_table([tmp_path])  # it refuses records that are not complete


def test_scores_need_a_run_to_belong_to(root, tmp_path):
    case = la_split(root, labelled=2, test="test.list").test[0]
    recipe = Supervised(small_nets(names=("vnet",), dims=3))
    with pytest.raises(DataError, match=r"protocol\.json: there is no such file"):
        SMALL.score(recipe, [case], tmp_path)


@pytest.fixture
def slices(tmp_path):
    (tmp_path / "data" / "slices").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (("slices/patient001_frame01_slice_1", (24, 20)), ("patient002_frame01", (3, 24, 20))):
        with h5py.File(tmp_path / "data" / f"{name}.h5", "w") as file:
            file["image"] = random.normal(size=size).astype(np.float32)
            file["label"] = random.integers(0, 4, size).astype(np.uint8)
    (tmp_path / "train_slices.list").write_text("patient001_frame01_slice_1\n")
    (tmp_path / "test.list").write_text("patient002_frame01\n")
    return FAMILIES["acdc"].split(tmp_path, labelled=1, lists={"train": "train_slices.list", "test": "test.list"})


def test_slices_are_resized_for_training_and_volumes_predicted_slice_by_slice(slices, tmp_path):
    protocol = replace(PROTOCOLS["acdc"], patch=(16, 16), resize=(16, 16), stride=(16, 16), labelled_per_batch=1)
    cache = protocol.cache(slices.labelled, tmp_path / "cache")
    batch = protocol.batches(cache, slices.labelled)(0)
    assert batch.labelled.shape == (1, 1, 16, 16)
    assert set(batch.labels.unique().tolist()) == {0, 1, 2, 3}
    recipe = Supervised(small_nets(names=("vnet",), dims=2, classes=4))
    (result,) = evaluate(protocol.predictor(recipe), slices.test, classes=(1, 2, 3), load=protocol.load)
    assert result.prediction.shape == (3, 24, 20)
    assert [score.label for score in result.scores] == [1, 2, 3]


def test_a_slice_at_its_own_size_is_not_changed_by_the_resize():
    brighter = Predictor(lambda images: torch.cat([images, 1 - images], 1).abs(), patch=(8, 8), blending="uniform")
    volume = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    probs = SlicePredictor(brighter, (8, 8)).predict(volume).probs
    assert torch.allclose(probs, torch.cat([volume, 1 - volume]), atol=1e-6)
    assert torch.equal(SlicePredictor(brighter, (8, 8)).predict(volume[:, 1]).probs, probs[:, 1])
    flat = SlicePredictor(brighter, (8, 8)).predict(torch.full((1, 2, 13, 10), 0.25)).probs
    assert torch.allclose(flat[0], torch.full((2, 13, 10), 0.25), atol=1e-6)
    with pytest.raises(ValueError, match=r"image has shape \(8, 8\)"):
        SlicePredictor(brighter, (8, 8)).predict(volume[0, 0])
