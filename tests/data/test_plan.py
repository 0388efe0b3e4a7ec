# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from data.folders import LPS, RAS, nifti, picture, plain, scan
from engine.own_runs import small_plan
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data import DataError, Plan, find_dataset, make_plan, shape_of_nets, survey
from ssmis.data.inspect import inspect_data
from ssmis.data.plan import Channel

pytest.importorskip("nibabel")


def plan_of(root, **options):
    dataset = find_dataset(root)
    facts, issues = survey(dataset)
    assert not [issue for issue in issues if issue.serious]
    return make_plan(facts, label_names=dataset.label_names, channel_names=dataset.channel_names, **options), dataset


def test_labels_that_are_not_contiguous_become_classes_and_come_back(tmp_path):
    plan, dataset = plan_of(plain(tmp_path, values=700))
    assert plan.label_values == (0, 700)
    volume = plan.load(dataset.cases[0])
    assert volume.label is not None
    assert set(np.unique(volume.label)) == {0, 1}
    back = plan.values_of(volume.label)
    assert back.dtype == np.uint16
    assert set(np.unique(back)) == {0, 700}
    with pytest.raises(DataError, match=r"values \[3\]; expected \[0, 700\]"):
        plan.classes_of(np.array([0, 3]))


def test_a_plan_survives_its_file(tmp_path):
    plan, _ = plan_of(plain(tmp_path))
    plan.save(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan


def test_classes_of_one_piece_are_told_from_those_of_several(tmp_path):
    for index in range(4):
        labels = np.zeros((12, 12, 8), np.uint8)
        labels[1:5, 1:5, 1:5] = 3
        labels[8:10, 1:5, 1:5] = labels[8:10, 7:11, 1:5] = 7  # two of a kind
        labels[1:5, 7:11, 1:5] = 9
        if index == 0:
            labels[7, 7, 7] = 9  # a speck
        nifti(tmp_path / "images" / f"case{index}.nii.gz", scan(index)[0])
        nifti(tmp_path / "labels" / f"case{index}.nii.gz", labels)
    plan, _ = plan_of(tmp_path)
    assert plan.label_values == (0, 3, 7, 9)
    assert plan.one_piece == (1, 3)
    facts, _ = survey(find_dataset(tmp_path))
    assert [own.largest[7] / own.volumes[7] for own in facts] == [0.5] * 4
    plan.save(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    for wrong in ([0], [4], ["1"], 1):
        (tmp_path / "plan.json").write_text(json.dumps({"version": 1, **asdict(plan), "one_piece": wrong}))
        with pytest.raises(DataError, match="one_piece"):
            Plan.read(tmp_path / "plan.json")


def test_the_scale_of_a_volume_means_nothing_to_a_z_score(tmp_path):
    plan, _dataset = plan_of(plain(tmp_path))
    image, _ = scan(0)
    one = plan.prepare(image[None], (1, 1, 1))
    other = plan.prepare(image[None].astype(np.float32) * 1e4 + 7, (1, 1, 1))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert abs(float(one.mean())) < 1e-5
    assert float(one.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_ct_is_clipped_and_photographs_are_scaled(tmp_path):
    random = np.random.default_rng(0)
    for index in range(2):
        image, label = scan(index)
        hounsfield = np.where(random.random(image.shape) < 0.3, -1000, image - 100).astype(np.int16)
        nifti(tmp_path / "ct/images" / f"{index}.nii.gz", hounsfield)
        nifti(tmp_path / "ct/labels" / f"{index}.nii.gz", label)
        picture(tmp_path / "photo/images" / f"{index}.png", random.integers(0, 255, (16, 20, 3)).astype(np.uint8))
        picture(tmp_path / "photo/labels" / f"{index}.png", (np.eye(16, 20) * 255).astype(np.uint8))
    ct, dataset = plan_of(tmp_path / "ct")
    assert ct.channels[0].kind == "clip"
    assert (
        ct.load(dataset.cases[0]).image.min() >= (ct.channels[0].low - ct.channels[0].mean) / ct.channels[0].std - 1e-4
    )
    photo, dataset = plan_of(tmp_path / "photo")
    assert [channel.kind for channel in photo.channels] == ["unit"] * 3
    assert photo.dims == 2
    loaded = photo.load(dataset.cases[0]).image
    assert loaded.min() >= 0
    assert loaded.max() <= 1


def test_skull_stripped_volumes_are_normalised_inside(tmp_path):
    image = np.zeros((12, 12, 8), np.int16)
    image[3:8, 3:8, 2:6] = np.random.default_rng(0).integers(50, 90, (5, 5, 4))
    nifti(tmp_path / "images/a.nii.gz", image)
    nifti(tmp_path / "labels/a.nii.gz", (image > 70).astype(np.uint8))
    plan, dataset = plan_of(tmp_path)
    assert plan.channels[0].nonzero
    loaded = plan.load(dataset.cases[0]).image[0]
    assert (loaded[image == 0] == 0).all()
    assert abs(loaded[image > 0].mean()) < 1e-4


def test_cases_in_different_orientations_lie_alike_once_loaded(tmp_path):
    image, label = scan(0)
    nifti(tmp_path / "images/a.nii.gz", image, RAS)
    nifti(tmp_path / "labels/a.nii.gz", label, RAS)
    nifti(tmp_path / "images/b.nii.gz", image[::-1, ::-1], LPS)
    nifti(tmp_path / "labels/b.nii.gz", label[::-1, ::-1], LPS)
    plan, dataset = plan_of(tmp_path)
    one, other = (plan.load(case) for case in dataset.cases)
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.label, other.label)
    found = inspect_data(tmp_path, progress=False)
    assert found.of_kind("mixed orientation")
    assert found.of_kind("duplicate")  # the same voxels, turned
    assert found.ok


@given(st.tuples(*[st.floats(0.3, 9)] * 3), st.tuples(*[st.integers(1, 200)] * 3))
def test_nets_follow_the_spacing(spacing, patch):
    pooling, kernels = shape_of_nets(spacing, patch)
    lengths, sizes = list(spacing), list(patch)
    for factors, kernel in zip(pooling, kernels):
        for axis in range(3):
            coarse = lengths[axis] >= 2 * min(lengths)
            assert (kernel[axis] == 1) == coarse
            assert not (coarse and factors[axis] > 1)
            assert factors[axis] == 1 or sizes[axis] >= 4
        lengths = [mm * f for mm, f in zip(lengths, factors)]
        sizes = [-(-n // f) for n, f in zip(sizes, factors)]


@pytest.mark.parametrize("memory", [0.05, 0.5, 8])
def test_the_patch_keeps_to_the_memory(tmp_path, memory):
    facts, _ = survey(find_dataset(plain(tmp_path, labelled=2, unlabelled=0, size=(40, 40, 30))))
    plan = make_plan(facts, memory_gb=memory)
    voxels = math.prod(plan.patch) * 2 * plan.batch
    assert voxels * 220 * plan.widths[0] <= memory * 2**30 or math.prod(plan.patch) <= 16**3
    chosen = make_plan(facts, patch=(8, 8, 8), spacing_mm=(2, 2, 2), batch=1, width=3)
    assert (chosen.patch, chosen.spacing_mm, chosen.batch, chosen.widths[0]) == ((8, 8, 8), (2, 2, 2), 1, 3)


@pytest.mark.parametrize("size", [(35, 50, 36), (40, 9, 63)])
def test_with_enough_memory_the_patch_is_nearest_to_the_median_image(tmp_path, size):
    facts, _ = survey(find_dataset(plain(tmp_path, labelled=2, unlabelled=0, size=size)))
    plan = make_plan(facts, memory_gb=64)
    for axis, (side, n) in enumerate(zip(plan.patch, size)):
        step = math.prod(factors[axis] for factors in plan.pooling)
        assert side % step == 0
        assert abs(side - n) <= step / 2 or side == step


def test_pictures_on_a_coarser_grid_fill_a_larger_batch(tmp_path):
    for index in range(2):
        picture(tmp_path / "images" / f"{index}.png", np.full((256, 256), 9 + index, np.uint8))
        picture(tmp_path / "labels" / f"{index}.png", (np.eye(256) * 255).astype(np.uint8))
    facts, _ = survey(find_dataset(tmp_path))
    assert make_plan(facts, memory_gb=0.5).batch == 2
    assert make_plan(facts, memory_gb=0.5, spacing_mm=(4, 4)).batch == 8


def test_a_plan_knows_whether_the_size_of_voxels_was_known(tmp_path):
    assert plan_of(plain(tmp_path / "volumes"))[0].sized
    for index in range(2):
        image, label = scan(index, (40, 44))
        picture(tmp_path / "pictures/images" / f"{index}.png", image.astype(np.uint8))
        picture(tmp_path / "pictures/labels" / f"{index}.png", label)
    plan, _ = plan_of(tmp_path / "pictures", spacing_mm=(0.5, 0.5))
    assert plan.sized is False
    assert not plan.needs_size  # short voxels are those that were asked for
    (tmp_path / "pictures/pixel_size.csv").write_text("filename,pixel size(mm)\n0.png,2.0\n1.png,2.0\n")
    plan, _ = plan_of(tmp_path / "pictures")
    assert plan.needs_size
    plan.save(tmp_path / "plan.json")
    old = json.loads((tmp_path / "plan.json").read_text())
    del old["sized"]  # as files of before
    assert not Plan.from_dict(old).needs_size
    with pytest.raises(ValueError, match="sized is yes, which is none of a plan"):
        Plan.from_dict({**old, "sized": "yes"})


def test_channels_that_do_not_fit_are_named():
    plan = Plan(2, (Channel("a", "unit"), Channel("b")), (0, 1), ("background", "x"), (1, 1), (8, 8), (8, 8), 1,
                ((2, 2),) * 4, ((3, 3),) * 5, (4,) * 5)  # fmt: skip
    with pytest.raises(DataError, match=r"image has 1 channels; expected 2 \(a, b\)"):
        plan.prepare(np.zeros((1, 8, 8)), (1, 1))
    with pytest.raises(DataError, match="3 NaN or infinite voxels of 128"):
        plan.prepare(np.where(np.arange(128).reshape(2, 8, 8) < 3, np.nan, 1.0), (1, 1))


def test_an_image_of_wrong_spacing_is_refused_before_memory_is_taken(tmp_path):
    plan = small_plan()
    with pytest.raises(
        DataError, match=r"far.nii of voxels of \(900.0, 900.0, 900.0\) mm, on a grid of .*expected at most"
    ):
        plan.prepare(np.ones((1, 8, 8, 8)), (900.0, 900.0, 900.0), name="far.nii")
    image = scan(0)[0].astype(np.float64)
    image[0, 0, 0] = 1e300  # infinite in float32
    nifti(tmp_path / "images" / "a.nii", image)
    nifti(tmp_path / "labels" / "a.nii", scan(0)[1])
    _, issues = survey(find_dataset(tmp_path))
    assert [str(issue) for issue in issues] == ["images/a.nii: the image has 1 NaN or infinite voxels of 1152"]
