# SPDX-License-Identifier: Apache-2.0
"""Predictions within a budget of memory: what is added up, what is chosen, and what a process then takes."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.folders import nifti, picture, scan
from engine.own_runs import by_threshold, small_plan, write_run
from hypothesis import given
from hypothesis import strategies as st

from ssmis.data import DataError, find_dataset
from ssmis.data.splits import make_split, write_split
from ssmis.engine import Predictor, infer
from ssmis.engine.scoring import evaluate_run
from ssmis.engine.window_memory import GB, LIBRARIES, Task, fit_windows, needed

CT = (512, 512, 600)
SIZES = st.tuples(*[st.integers(1, 300)] * 3)


def task(size=CT, inner=CT, **wanted):
    return Task(
        size, inner, **{"channels": 1, "classes": 14, "width": 8, "image_bytes": 2 * int(np.prod(size)), **wanted}
    )


def windows(patch=96, batch=4):
    return Predictor(by_threshold([0.0, 1.0]), patch=(patch,) * 3, overlap=0.25, batch_size=batch)._sliding


def total(*arguments, **named):
    return sum(needed(*arguments, **named).values())


def test_a_large_ct_in_fourteen_classes_fits_in_six_gigabytes():
    own = fit_windows(task(), windows(), 6.0, axis=2)
    parts = needed(task(), own, axis=2)
    assert sum(parts.values()) <= 6 * GB
    rows = own.rows(CT, 2)
    assert parts["running sums"] == 4 * (14 + 1) * rows * 512 * 512 + 8 * 96**3
    assert parts["the image"] == 2 * 512 * 512 * 600
    assert parts["results"] == 512 * 512 * 600
    assert parts["libraries and nets"] == LIBRARIES
    whole = total(task(whole=True, label_bytes=0), own, axis=2)
    assert whole > 4 * 14 * 512 * 512 * 600 > 6 * GB
    with pytest.raises(ValueError, match=r"memory_gb is 6, but an image of \(512, 512, 600\) voxels in 14 classes"):
        fit_windows(task(whole=True, label_bytes=0), windows(), 6.0, axis=2)


@given(SIZES, SIZES, st.integers(16, 120), st.integers(1, 6), st.integers(0, 2), st.floats(0.8, 8))
def test_what_is_chosen_keeps_to_the_budget_and_what_is_told_is_enough(size, inner, patch, batch, axis, budget):
    wanted, sliding = task(size, inner), windows(patch, batch)
    try:
        own = fit_windows(wanted, sliding, budget, axis=axis)
    except ValueError as refused:
        told = float(re.search(r"classes needs ([0-9.]+) GB", str(refused))[1])
        assert told > budget
        own, budget = fit_windows(wanted, sliding, told, axis=axis), told
    assert 1 <= own.batch_size <= batch
    assert total(wanted, own, axis=axis) <= budget * GB
    if own.batch_size < batch:
        more = own.with_sizes(batch_size=own.batch_size + 1, chunk_bytes=own.chunk_bytes)
        assert total(wanted, more, axis=axis) > budget * GB


@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2), st.booleans())
def test_the_rows_are_those_that_a_batch_of_windows_reaches_over(size, patch, batch, axis, flip):
    own = Predictor(
        by_threshold([0.0, 1.0]), patch=(patch,) * 3, batch_size=batch, flips=(0, 2) if flip else ()
    )._sliding
    chunks = own._chunks(size, axis)
    reach = max(chunk[-1][0][axis] - chunk[0][0][axis] for chunk in chunks) + patch
    assert own.rows(size, axis) == min(reach, size[axis])


@given(SIZES, SIZES, st.integers(16, 60), st.integers(0, 2))
def test_whatever_is_asked_for_besides_takes_no_less(size, inner, patch, axis):
    sliding, plain = windows(patch, 1), task(size, inner)
    for other in ({"uncertainty": True}, {"probs": True}, {"largest": True}, {"classes": 15}, {"width": 16},
                  {"label_bytes": 2}, {"net_bytes": 10}, {"channels": 2}):  # fmt: skip
        assert total(replace(plain, **other), sliding, axis=axis) >= total(plain, sliding, axis=axis)
    assert total(plain, sliding, axis=axis) > LIBRARIES
    on_gpu = needed(replace(plain, host=False), sliding, axis=axis)
    assert not {"the image", "preparing the image"} & set(on_gpu)
    assert sum(on_gpu.values()) <= total(plain, sliding, axis=axis) - LIBRARIES


@pytest.mark.parametrize("spacing", [1.0, 0.7, 1.6])
def test_a_budget_changes_no_result(spacing):
    plan = small_plan(spacing=spacing, values=(0, 5, 900), kind="unit")
    image = np.random.default_rng(0).random((1, 22, 25, 19))
    model = by_threshold([0.0, 0.4, 1.0])
    free = Predictor(model, patch=(16,) * 3, plan=plan, flips=(1,))
    least = re.search(r"needs ([0-9.]+) GB", str(_refusal(model, plan, image)))[1]
    tight = Predictor(model, patch=(16,) * 3, plan=plan, flips=(1,), memory_gb=float(least))
    one, other = (own.segment(image, (1.0,) * 3, uncertainty=True, probs=True) for own in (free, tight))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.probs, other.probs, atol=1e-6)
    np.testing.assert_allclose(one.uncertainty, other.uncertainty, atol=1e-5)
    whole = tight.predict(image, (1.0,) * 3)
    np.testing.assert_allclose(whole.probs, other.probs, atol=1e-6)
    slabs = [slab.clone() for _, slab in tight.stream(image, (1.0,) * 3, axis=2)]
    np.testing.assert_allclose(torch.cat(slabs, 3), other.probs, atol=1e-6)


def _refusal(model, plan, image):
    with pytest.raises(ValueError, match=r"memory_gb is 0\.01") as refused:
        Predictor(model, patch=(16,) * 3, plan=plan, flips=(1,), memory_gb=0.01).predict(image, (1.0,) * 3)
    return refused.value


@pytest.mark.parametrize("dims", [3, 2])
def test_scores_within_a_budget_are_those_without(dims, tmp_path, monkeypatch):
    data, patch = tmp_path / "data", 32 if dims == 3 else 160
    for index in range(2):
        image, label = scan(index, (40, 36, 30) if dims == 3 else (200, 190))
        if dims == 3:
            nifti(data / f"images/case{index}.nii.gz", image)
            nifti(data / f"labels/case{index}.nii.gz", label)
        else:
            picture(data / f"images/case{index}.png", image.astype(np.uint8))
            picture(data / f"labels/case{index}.png", label)
    for seed in range(2):
        run = write_run(tmp_path / f"runs/seed{seed}", small_plan(dims, patch=patch, spacing=0.9), seed=seed, data=data)
        write_split(make_split(find_dataset(data), test=1), run / "split")
        (run / "protocol.json").write_text("{}")
    chosen = []
    original = infer.fit_windows

    def seen(*arguments, **named):
        chosen.append(original(*arguments, **named))
        return chosen[-1]

    monkeypatch.setattr(infer, "fit_windows", seen)
    with pytest.raises(DataError, match=r"case\d\.\S+: memory_gb is 0\.1, but an image of") as refused:
        evaluate_run(tmp_path / "runs", memory_gb=0.1, progress=False)
    least = float(re.search(r"needs ([0-9.]+) GB", str(refused.value))[1])
    found = []
    for budget in (None, 64.0, least):
        assert len(evaluate_run(tmp_path / "runs", memory_gb=budget, progress=False)) == 2
        kept = [path for path in (tmp_path / "runs").rglob("*") if path.name.endswith((".csv", ".nii.gz", ".png"))]
        found.append({path: path.read_bytes() for path in kept if path.is_file()})
    assert [own.batch_size for own in chosen][:2] == [4, 4]
    assert all(own.batch_size < 4 for own in chosen[2:])
    assert len(found[0]) == 12
    assert found[0] == found[1]
    scores = ("cases.csv", "cases_largest.csv", ".nii.gz", ".png")
    assert all(found[0][path] == found[2][path] for path in found[0] if path.name.endswith(scores))


CHILD = """
import sys
import numpy as np
import torch
from engine.own_runs import small_plan
from ssmis.data import DataError, find_dataset
from ssmis.data.splits import make_split, write_split
from ssmis.engine import Predictor, infer
from ssmis.engine.scoring import evaluate_run
from ssmis.engine.runtime import peak_memory_mb, reset_peak_memory

torch.set_num_threads(1)
plan = small_plan(values=tuple(range(14)), kind="unit", patch=64)
image = np.random.default_rng(0).random((1, 128, 128, 160), dtype=np.float32)
net = torch.nn.Conv3d(1, 14, 1)
for memory_gb in (float(sys.argv[1]), None):
    predictor = Predictor(lambda own: net(own).softmax(1), patch=(64,) * 3, overlap=0, batch_size=12, plan=plan,
                          memory_gb=memory_gb)
    reset_peak_memory()
    labels = predictor.segment(image, (1.0,) * 3).labels
    print(peak_memory_mb(), int(labels.sum()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak of its own")
def test_a_process_keeps_to_its_budget():
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "1.1"], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    (tight, labels), (free, same) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert tight <= 1.1 * 1024
    assert free > tight + 200  # the same in more memory, where nobody counts
    assert labels == same > 0
