# SPDX-License-Identifier: Apache-2.0
"""Values of MedPy 0.5.2 and MONAI 1.6.1 on masks defined by a formula, and MONAI itself on random masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmis.metrics import dice, jaccard, surface_distances

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


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("shape", [(23, 31), (14, 11, 17)])
@pytest.mark.parametrize("seed", range(3))
def test_monai_agrees_on_ragged_masks(shape, seed):
    metrics = pytest.importorskip("monai.metrics")
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, *[1.0] * len(shape)))
    prediction, reference = noise > 0.15
    spacing = tuple(rng.uniform(0.4, 3.0, size=len(shape)))
    ours = surface_distances(prediction, reference, spacing_mm=spacing, nsd_tolerance_mm=1.5)

    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    hd95 = metrics.compute_hausdorff_distance(*pair, percentile=95, **options).item()
    assd = metrics.compute_average_surface_distance(*pair, symmetric=True, **options).item()
    asd = metrics.compute_average_surface_distance(*pair, **options).item()
    nsd = metrics.compute_surface_dice(*pair, class_thresholds=[1.5], **options).item()
    assert (ours.hd95, ours.assd, ours.asd, ours.nsd) == pytest.approx((hd95, assd, asd, nsd), abs=1e-4)
