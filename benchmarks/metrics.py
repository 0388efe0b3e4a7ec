# SPDX-License-Identifier: Apache-2.0
"""All overlap and distance metrics of one case against MedPy's and MONAI's, in one process.

    python benchmarks/metrics.py [--data DATA] [--repeats 7]

Volumes of 190 x 142 x 88 voxels of 0.625 mm. `evaluate_case` gives all eight metrics; MedPy computes hd95, asd, dc and
jc (only where it is installed; it is no dependency), MONAI hd95 and assd. Values are compared before anything is timed;
repeats alternate, and the ratios of the medians are printed. With --data, the label of a real atrium too.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from scipy import ndimage

from ssmis.metrics import evaluate_case

SHAPE, SPACING_MM = (190, 142, 88), (0.625, 0.625, 0.625)


def noise(shape: tuple[int, ...], sigma: float, seed: int) -> np.ndarray:
    """Smooth noise of unit deviation."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return field / field.std()


def predictions_of(field: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions of the mask `field > 0`: close to it, with a third of it missing, and ragged as in early training."""
    lobe = field > 0
    lobe[lobe.shape[0] * 5 // 8 :] = False
    shape = field.shape
    return {
        "close": field + 0.03 * noise(shape, 4, 1) + 0.01 * noise(shape, 1.5, 2) > 0,
        "lobe missed": lobe,
        "ragged": field + 0.35 * noise(shape, 1, 3) > 0,
    }


def bumpy_ball(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A field whose positive part is a ball with bumps, about a ninth of the volume."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return 0.36 - sum(axis**2 for axis in grid) + 0.06 * noise(shape, 6, 0)


def contenders(prediction: np.ndarray, reference: np.ndarray) -> dict[str, Callable[[], dict[str, float]]]:
    """name -> call that computes metrics of the pair; every library gets its own kind of input ready-made."""
    labels = prediction.astype(np.uint8), reference.astype(np.uint8)

    def ours(convention: str) -> dict[str, float]:
        return vars(evaluate_case(*labels, classes=(1,), spacing_mm=SPACING_MM, convention=convention)[0])

    found = {"ssmis": lambda: ours("default"), "ssmis, medpy convention": lambda: ours("medpy")}
    if find_spec("medpy"):
        from medpy.metric import binary

        pair = prediction, reference
        names = {"hd95": binary.hd95, "asd": binary.asd, "dice": binary.dc, "jaccard": binary.jc}
        found["MedPy"] = lambda: {name: float(function(*pair)) for name, function in names.items()}
    if find_spec("monai"):
        from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance  # noqa: TID251

        maps = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        options = {"include_background": True, "spacing": SPACING_MM}
        found["MONAI"] = lambda: {
            "hd95": compute_hausdorff_distance(*maps, percentile=95, **options).item(),
            "assd": compute_average_surface_distance(*maps, symmetric=True, **options).item(),
        }
    return found


def check(calls: dict[str, Callable[[], dict[str, float]]]) -> None:
    """Raise AssertionError unless the libraries agree with the convention that is theirs."""
    for theirs, ours in (("MedPy", "ssmis, medpy convention"), ("MONAI", "ssmis")):
        if theirs in calls:
            expected, found = calls[theirs](), calls[ours]()
            np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), atol=1e-4)


def medians(calls: dict[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, float]:
    """Median seconds of each call; the repeats alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the Left Atrium data set")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the other libraries' own
    torch.set_num_threads(1)
    fields = {"bumpy ball": bumpy_ball()}
    if args.data:
        from ssmis.data import la_split, load_la

        label = load_la(la_split(args.data, labelled=1).labelled[0]).label > 0
        fields[f"atrium {label.shape}"] = ndimage.gaussian_filter(label.astype(float), 1.0) - 0.5
    print(f"{'reference':26}{'prediction':14}{'ssmis ms':>9}{'MedPy / ssmis':>15}{'MONAI / ssmis':>15}")
    for reference, field in fields.items():
        for prediction, mask in predictions_of(field).items():
            calls = contenders(mask, field > 0)
            check(calls)
            found = medians(calls, args.repeats)
            medpy = found["MedPy"] / found["ssmis, medpy convention"] if "MedPy" in found else float("nan")
            monai = found["MONAI"] / found["ssmis"] if "MONAI" in found else float("nan")
            print(f"{reference:26}{prediction:14}{1000 * found['ssmis']:9.1f}{medpy:15.1f}{monai:15.1f}")


if __name__ == "__main__":
    main()
