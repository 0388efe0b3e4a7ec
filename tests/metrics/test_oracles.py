# SPDX-License-Identifier: Apache-2.0
"""Values of MedPy 0.5.2 and MONAI 1.6.1 on masks defined by a formula; MONAI, and MedPy where installed, on others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmis.data import la_split, load_la
from ssmis.metrics import calibration_per_class, dice, jaccard, surface, surface_distances

CASES = json.loads((Path(__file__).parent / "oracle_metrics.json").read_text())["cases"]


def ellipsoids(shape, parts):
    grid = np.ogrid[tuple(slice(length) for length in shape)]
    mask = np.zeros(shape, dtype=bool)
    for centre, radius in parts:
        mask |= sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radius)) <= 1
    return mask


@pytest.fixture(params=CASES, ids=lambda case: case["name"])
def case(request):
    found = request.param
    prediction = ellipsoids(found["shape"], found["prediction"])
    reference = ellipsoids(found["shape"], found["reference"])
    assert (prediction.sum(), reference.sum()) == (found["n_prediction"], found["n_reference"])
    return found, prediction, reference


def test_overlap_matches_medpy(case):
    found, prediction, reference = case
    assert dice(prediction, reference) == pytest.approx(found["medpy_voxel"]["dc"], abs=1e-9)
    assert jaccard(prediction, reference) == pytest.approx(found["medpy_voxel"]["jc"], abs=1e-9)


def test_the_medpy_convention_is_in_voxels_and_pools_both_directions(case):
    found, prediction, reference = case
    ours = surface_distances(prediction, reference, spacing_mm=found["spacing"], convention="medpy")
    for name in ("hd", "hd95", "asd", "assd"):
        assert getattr(ours, name) == pytest.approx(found["medpy_voxel"][name], abs=1e-4), name


def test_the_default_convention_matches_monai_in_mm(case):
    found, prediction, reference = case
    ours = surface_distances(prediction, reference, spacing_mm=found["spacing"], nsd_tolerance_mm=1.0)
    theirs = found["monai_spacing"]
    for name in ("hd", "hd95", "asd", "assd"):
        assert getattr(ours, name) == pytest.approx(theirs[name], abs=1e-4), name
    assert ours.nsd == pytest.approx(theirs["nsd_1"], abs=1e-4)
    for name in ("hd", "asd", "assd"):
        assert getattr(ours, name) == pytest.approx(found["medpy_spacing"][name], abs=1e-4), name


def test_the_pooled_percentile_in_mm_is_that_of_the_same_distances(case):
    """MedPy with a spacing; no convention here mixes its percentile with mm, so it is taken from the distances."""
    found, prediction, reference = case
    spacing = np.array(found["spacing"], dtype=float)
    boundaries = [surface._boundary(mask) for mask in (prediction, reference)]
    both = [surface._distances(*pair, spacing) for pair in (boundaries, boundaries[::-1])]
    assert np.percentile(np.concatenate(both), 95) == pytest.approx(found["medpy_spacing"]["hd95"], abs=1e-4)


def test_no_stored_value_is_left_out():
    asserted = {
        "medpy_voxel": {"dc", "jc", "hd", "hd95", "asd", "assd"},
        "medpy_spacing": {"hd", "hd95", "asd", "assd"},
    }
    asserted["monai_spacing"] = {"hd", "hd95", "asd", "assd", "nsd_1"}
    for found in CASES:
        assert {name: set(value) for name, value in found.items() if isinstance(value, dict)} == asserted


def monai_distances(prediction, reference, spacing, tolerance):
    metrics = pytest.importorskip("monai.metrics")
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    return {
        "hd95": metrics.compute_hausdorff_distance(*pair, percentile=95, **options).item(),
        "hd": metrics.compute_hausdorff_distance(*pair, **options).item(),
        "assd": metrics.compute_average_surface_distance(*pair, symmetric=True, **options).item(),
        "asd": metrics.compute_average_surface_distance(*pair, **options).item(),
        "nsd": metrics.compute_surface_dice(*pair, class_thresholds=[tolerance], **options).item(),
    }


def ragged_masks(seed, shape):
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = np.random.default_rng(seed).standard_normal((2, *shape))
    return ndimage.gaussian_filter(noise, (0, *[1.0] * len(shape))) > 0.15


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("shape", [(23, 31), (14, 11, 17)])
@pytest.mark.parametrize("seed", range(3))
def test_monai_agrees_on_ragged_masks(shape, seed):
    prediction, reference = ragged_masks(seed, shape)
    spacing = tuple(np.random.default_rng(seed).uniform(0.4, 3.0, size=len(shape)))
    ours = surface_distances(prediction, reference, spacing_mm=spacing, nsd_tolerance_mm=1.5)
    for name, value in monai_distances(prediction, reference, spacing, 1.5).items():
        assert getattr(ours, name) == pytest.approx(value, abs=1e-4), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(23, 31), (14, 11, 17)])
@pytest.mark.parametrize("seed", range(3))
def test_medpy_agrees_on_ragged_masks(shape, seed):
    medpy = pytest.importorskip("medpy.metric.binary")
    prediction, reference = ragged_masks(seed, shape)
    ours = surface_distances(prediction, reference, spacing_mm=(7.0,) * len(shape), convention="medpy")
    for name in ("hd", "hd95", "asd", "assd"):
        assert getattr(ours, name) == pytest.approx(getattr(medpy, name)(prediction, reference), abs=1e-4), name
    assert dice(prediction, reference) == pytest.approx(medpy.dc(prediction, reference))
    assert jaccard(prediction, reference) == pytest.approx(medpy.jc(prediction, reference))


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_monai_agrees_on_real_labels(data_root):
    split = la_split(data_root, labelled=2)
    first, second = (load_la(case).label > 0 for case in split.labelled)
    shape = tuple(min(sizes) for sizes in zip(first.shape, second.shape))
    reference, prediction = (mask[tuple(slice(size) for size in shape)] for mask in (first, second))
    for other in (prediction, np.roll(reference, (2, -1, 0), axis=(0, 1, 2))):
        ours = surface_distances(other, reference, spacing_mm=(0.625,) * 3)
        for name, value in monai_distances(other, reference, (0.625,) * 3, 1.0).items():
            assert getattr(ours, name) == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("shape", [(9, 12), (6, 7, 5)])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_monai_agrees_on_calibration(shape, bins, generator):
    metrics = pytest.importorskip("monai.metrics")
    if not hasattr(metrics, "CalibrationErrorMetric"):
        pytest.skip("this MONAI does not measure calibration")
    probs = (2 * torch.randn(4, *shape, generator=generator)).softmax(0)
    labels = torch.randint(4, shape, generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, 4).movedim(-1, 0).float()
    metric = metrics.CalibrationErrorMetric(num_bins=bins, metric_reduction="none", right=True)
    theirs = metric(probs[None], one_hot[None])[0].tolist()
    ours = calibration_per_class(probs, labels, classes=range(4), bins=bins)
    assert [ours[label].ece for label in range(4)] == pytest.approx(theirs, abs=1e-5)
