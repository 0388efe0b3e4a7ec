# SPDX-License-Identifier: Apache-2.0
"""What `ssmis predict` spends outside the net on a file, against nibabel's bare load + resample + save of it.

    python benchmarks/predict_files.py --size 256 256 192

The model is a comparison of intensities, whose time is taken off; windows, overlap and blending are those of `ssmis
predict`. The plan is to another voxel size, so that image and probabilities are resampled. nibabel interpolates
linearly to that voxel size in the type of the file, int16, and both pack with nibabel's own level of gzip. One process
and one thread, alternating, medians; by the clock and in seconds of the processor, which other work on the machine
hardly changes. The start of Python and its imports are not in it.
"""

import argparse
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
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        image = (random.normal(0, 30, args.size) + 200 * (np.indices(args.size).sum(0) > 300)).astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, -1, 1, 1])), folder / "scan.nii.gz")
        size = tuple(round(n / args.spacing) for n in args.size)
        plan = Plan(3, (Channel(),), (0, 1), ("background", "organ"), (args.spacing,) * 3, size, tuple(args.patch), 1,
                    ((2,) * 3,) * 4, ((3,) * 3,) * 5, (2,) * 5)  # fmt: skip
        inside = np.zeros(2)

        def timed(windows: torch.Tensor) -> torch.Tensor:
            start = clocks()
            found = model(windows)
            inside[:] += clocks() - start
            return found

        predictor = Predictor(timed, patch=args.patch, overlap=args.overlap, plan=plan)
        case = Case("scan", folder / "scan.nii.gz", None, ())
        rows = []
        for turn in range(args.rounds + 1):
            start = clocks()
            moved = resample_to_output(nib.load(case.image), (args.spacing,) * 3, order=1)
            nib.save(moved, folder / "bare.nii.gz")
            bare = clocks() - start
            inside[:] = 0
            start = clocks()
            predict_case(predictor, case, folder / "out")
            ours = clocks() - start - inside
            print(f"by the clock {bare[0]:.2f} and {ours[0]:.2f} s, {bare[1]:.2f} and {ours[1]:.2f} s of the processor",
                  file=sys.stderr)  # fmt: skip
            if turn:  # the first warms up
                rows.append(np.stack([bare, ours, ours / bare], axis=1))
        for name, (bare, ours, ratio) in zip(("clock", "processor"), np.median(rows, axis=0)):
            print(f"{name:10}nibabel {bare:.2f} s, ssmis outside the net {ours:.2f} s, ratio {ratio:.2f}")


def clocks() -> np.ndarray:
    """Seconds by the clock, and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
