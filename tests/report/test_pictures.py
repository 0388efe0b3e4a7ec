# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ssmis
from ssmis.report import case_picture

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
ROOT = Path(ssmis.__file__).parents[1]
ORANGE, BLUE = (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)


def ball(shape, centre, radius):
    grid = np.ogrid[tuple(slice(length) for length in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre)) <= radius**2


def draw(path, rows, **options):
    case_picture(path, rows, **options)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def amount(pixels, colour):
    return int((np.abs(pixels - np.array(colour)).max(-1) <= 12).sum())


@pytest.fixture
def volume():
    return np.random.default_rng(0).random((20, 16, 10)).astype(np.float32)


def test_every_method_is_drawn_in_its_colour(tmp_path, volume):
    reference = ball(volume.shape, (10, 8, 5), 4)
    shifted = np.roll(reference, 3, 0)
    both = draw(tmp_path / "a.png", [("case", volume, {"reference": reference, "a": shifted, "b": ~reference})])
    legend_only = draw(tmp_path / "b.png", [("case", volume, {"reference": reference, "a": reference & False})])
    assert amount(both, BLUE) > 300
    assert amount(both, ORANGE) > 3 * amount(legend_only, ORANGE) > 0


def test_slices_go_through_the_reference(tmp_path, volume):
    image = np.zeros_like(volume)
    reference = ball(image.shape, (3, 12, 7), 2)
    away = ball(image.shape, (16, 3, 1), 1)
    with_reference = draw(tmp_path / "a.png", [("case", image, {"reference": reference, "method": away})])
    alone = draw(tmp_path / "b.png", [("case", image, {"method": away})])
    assert amount(alone, ORANGE) > 2 * amount(with_reference, ORANGE)


def test_every_class_of_a_label_map_is_outlined(tmp_path):
    image = np.zeros((40, 40), np.float32)
    one = np.zeros((40, 40), np.int64)
    one[5:15, 5:15] = 1
    two = one.copy()
    two[20:35, 20:35] = 2
    first = draw(tmp_path / "a.png", [("case", image, {"method": one})])
    second = draw(tmp_path / "b.png", [("case", torch.from_numpy(image), {"method": torch.from_numpy(two)})])
    assert amount(second, ORANGE) > 1.5 * amount(first, ORANGE)


@pytest.mark.parametrize(("spacing", "ratio"), [((1, 1), 0.5), ((1, 2), 1.0), ((1, 4), 2.0)])
def test_panels_have_the_shape_of_the_anatomy(tmp_path, spacing, ratio):
    image = (np.indices((60, 30)).sum(0) % 2).astype(np.float32)
    pixels = draw(tmp_path / "a.png", [("c", image, {})], spacing_mm=spacing, panel_inches=2.0)
    light = (pixels.min(-1) > 100) & (np.arange(len(pixels)) > 55)[:, None]
    down, across = np.flatnonzero(light.any(1)), np.flatnonzero(light.any(0))
    assert (across[-1] - across[0]) / (down[-1] - down[0]) == pytest.approx(ratio, rel=0.1)


def test_cases_of_different_sizes_stand_below_each_other(tmp_path, volume):
    one = draw(tmp_path / "a.png", [("case", volume, {"reference": volume > 0.5})])
    rows = [
        ("case", volume, {"reference": volume > 0.5}),
        ("flat", volume[0], {}),
        ("full", volume, {"x": volume > -1}),
    ]
    three = draw(tmp_path / "b.png", rows)
    assert len(three) > 2.7 * (len(one) - 70)
    assert (three.max(-1) > 100).any(1)[-1200:].any()


def test_the_users_backend_stays_untouched(tmp_path):
    code = (
        "import sys, numpy as np; from ssmis.report import case_picture;"
        "assert 'matplotlib' not in sys.modules;"
        f"case_picture({str(tmp_path / 'a.png')!r}, [('c', np.eye(8), {{'m': np.eye(8) > 0}})]);"
        "assert 'matplotlib.pyplot' not in sys.modules;"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_errors_name_the_case(tmp_path, volume):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"rows is empty"):
        case_picture(path, [])
    with pytest.raises(ValueError, match=r"image of 'c' has shape \(10,\)"):
        case_picture(path, [("c", volume[0, 0], {})])
    with pytest.raises(ValueError, match=r"mask 'm' of 'c' has shape \(16, 10\); expected \(20, 16, 10\)"):
        case_picture(path, [("c", volume, {"m": volume[0] > 0})])
    with pytest.raises(ValueError, match=r"spacing_mm is \(1.0, 1.0\); expected 3"):
        case_picture(path, [("c", volume, {})], spacing_mm=(1, 1))
    with pytest.raises(ValueError, match=r"7 methods in one picture; expected at most 6"):
        case_picture(path, [("c", volume, {f"m{i}": volume > 0 for i in range(7)})])
    assert not path.exists()
