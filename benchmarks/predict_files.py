# SPDX-License-Identifier: Apache-2.0
"""What `ssmis predict` spends outside the net on a file, against nibabel's bare load + resample + save of it.

    python benchmarks/predict_files.py --size 256 256 192

The model is a comparison of intensities in one window, so that next to nothing is left of a net; the plan is to another
voxel size, so that image and probabilities are resampled.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_to_output

from ssmis.data import Case, Channel, Plan
from ssmis.engine import Predictor
from ssmis.engine.files import predict_case
from ssmis.engine.postprocess import largest_component  # noqa: F401  (imports what a prediction may need)


def model(windows: torch.Tensor) -> torch.Tensor:
    first = windows.gt(0).float()
    return torch.cat([1 - first, first], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(256, 256, 192))
    parser.add_argument("--spacing", type=float, default=1.25, help="of the training grid, the file's being 1 mm")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        image = (random.normal(0, 30, args.size) + 200 * (np.indices(args.size).sum(0) > 300)).astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, -1, 1, 1])), folder / "scan.nii.gz")
        size = tuple(round(n / args.spacing) for n in args.size)
        plan = Plan(3, (Channel(),), (0, 1), ("background", "organ"), (args.spacing,) * 3, size, size, 1,
                    ((2,) * 3,) * 4, ((3,) * 3,) * 5, (2,) * 5)  # fmt: skip
        inside: list[float] = []

        def timed(windows: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter()
            found = model(windows)
            inside.append(time.perf_counter() - start)
            return found

        predictor = Predictor(timed, patch=size, blending="uniform", plan=plan)
        rows = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            moved = resample_to_output(nib.load(folder / "scan.nii.gz"), (args.spacing,) * 3, order=1)
            nib.save(moved, folder / "bare.nii.gz")
            bare = time.perf_counter() - start
            inside.clear()
            start = time.perf_counter()
            predict_case(predictor, Case("scan", folder / "scan.nii.gz", None, ()), folder / "out")
            ours = time.perf_counter() - start - sum(inside)
            rows.append((bare, ours, ours / bare))
            print(f"nibabel {bare:.2f} s, ssmis outside the net {ours:.2f} s, ratio {ours / bare:.2f}", file=sys.stderr)
        bare, ours, ratio = (statistics.median(row[index] for row in rows) for index in range(3))
        print(f"median: nibabel {bare:.2f} s, ssmis outside the net {ours:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
