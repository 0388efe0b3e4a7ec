# SPDX-License-Identifier: Apache-2.0
"""Metrics of segmentations: overlap, surface distances, calibration, and summaries over cases and seeds."""

from ssmis.metrics.calibration import (
    Calibration,
    Reliability,
    calibration,
    calibration_per_class,
    pool_calibration,
    pool_reliability,
)
from ssmis.metrics.cases import DISTANCES, METRICS, CaseScore, evaluate_case, read_cases_csv, write_cases_csv
from ssmis.metrics.overlap import Overlap, dice, jaccard, mask_overlap, overlap_per_class
from ssmis.metrics.seeds import (
    MethodDifference,
    SeedDifference,
    SeedSummary,
    compare_methods,
    compare_seeds,
    summarise_seeds,
)
from ssmis.metrics.summary import (
    MISSED,
    Missed,
    PairedDifference,
    Summary,
    bootstrap_interval,
    compare_runs,
    paired_difference,
    summarise,
    summarise_values,
)
from ssmis.metrics.surface import CONVENTIONS, Convention, SurfaceDistances, surface_distances

__all__ = [
    "CONVENTIONS",
    "DISTANCES",
    "METRICS",
    "MISSED",
    "Calibration",
    "CaseScore",
    "Convention",
    "MethodDifference",
    "Missed",
    "Overlap",
    "PairedDifference",
    "Reliability",
    "SeedDifference",
    "SeedSummary",
    "Summary",
    "SurfaceDistances",
    "bootstrap_interval",
    "calibration",
    "calibration_per_class",
    "compare_methods",
    "compare_runs",
    "compare_seeds",
    "dice",
    "evaluate_case",
    "jaccard",
    "mask_overlap",
    "overlap_per_class",
    "paired_difference",
    "pool_calibration",
    "pool_reliability",
    "read_cases_csv",
    "summarise",
    "summarise_seeds",
    "summarise_values",
    "surface_distances",
    "write_cases_csv",
]
