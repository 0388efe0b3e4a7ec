# SPDX-License-Identifier: Apache-2.0
"""A new user: from the README alone to files that open in place, four commands, each a process of its own."""

import os
import re
import shlex
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from ssmis.data import atrium_phantom, batch_key

nib = pytest.importorskip("nibabel")
pytest.importorskip("jsonargparse")
ROOT = Path(__file__).parents[1]
TURNS = list(product(permutations(range(3)), product([False, True], repeat=3)))  # the 48 orientations there are
CODES = ((1, 0), (0, 2), (1, 3), (4, 1))  # of qform and sform
SMALL = ["--steps", "2", "--width", "2", "--recipe", "supervised", "--nets", "unet"]


def oblique(degrees):
    """A rotation about all three axes."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        step = np.eye(3)
        step[np.ix_(*[[other for other in range(3) if other != axis]] * 2)] = [
            [np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]
        ]  # fmt: skip
        turn = turn @ step
    return turn


def write_scans(root, *, labelled=6, unlabelled=20, size=(20, 24, 18)):
    """Phantoms as scanners leave them: turned, flipped, oblique, of different voxel sizes, types and codes."""
    random = np.random.default_rng(0)
    for index in range(labelled + unlabelled):
        image, label = atrium_phantom(batch_key(0, index), size=size)
        order, flips = TURNS[7 * index % len(TURNS)]
        affine, turn = np.eye(4), np.zeros((4, 4))
        affine[:3, :3] = oblique(random.uniform(-25, 25, 3) * (index % 3 > 0)) * random.uniform(0.8, 2.0, 3)
        affine[:3, 3] = random.uniform(-90, 90, 3)
        turn[3, 3] = 1
        for axis, (old, flip) in enumerate(zip(order, flips)):
            turn[old, axis], turn[old, 3] = (-1, size[old] - 1) if flip else (1, 0)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        values = np.rint(100 * image + 500).astype(np.int16 if index % 2 else np.float32)
        for folder, array in (("images", values), ("labels", 7 * label))[: 2 if index < labelled else 1]:
            qform, sform = CODES[index % len(CODES)]
            file = nib.Nifti1Image(array.transpose(order)[steps], affine @ turn)
            file.set_qform(affine @ turn, qform)
            file.set_sform(affine @ turn, sform)
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(file, root / folder / f"scan {index:04d}.nii.gz")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_commands_of_the_readme_lead_to_files_that_open_in_place(tmp_path):
    write_scans(tmp_path / "scans")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## Your own scans.*?^```bash\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)[1]
    commands = [shlex.split(line, comments=True) for line in block.strip().splitlines()]
    assert [words[:2] for words in commands] == [["ssmis", v] for v in ("inspect", "train", "evaluate", "predict")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _, verb, *words in commands:
        call = [sys.executable, "-m", "ssmis", verb, *words, *(SMALL if verb == "train" else []), "--progress", "false"]
        done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), (verb, done.stderr)
        assert done.stdout.splitlines()[-1].startswith("next: ssmis "), verb
        if verb == "inspect":
            assert "images/ and labels/ in scans: 6 labelled, 20 unlabelled cases" in done.stdout
    written = sorted((tmp_path / "predictions").iterdir())
    assert len(written) == 26
    for path in written:
        source, result = nib.load(tmp_path / "scans" / "images" / path.name), nib.load(path)
        assert result.shape == source.shape
        assert set(np.unique(np.asarray(result.dataobj))) <= {0, 7}
        np.testing.assert_array_equal(result.affine, source.affine)
        for name in ("get_qform", "get_sform"):
            ours, theirs = (getattr(file, name)(coded=True) for file in (result, source))
            assert ours[1] == theirs[1], name
            if theirs[0] is not None:
                np.testing.assert_array_equal(ours[0], theirs[0])
