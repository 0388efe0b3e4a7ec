# SPDX-License-Identifier: Apache-2.0
"""Metrics of segmentations: overlap, surface distances and summaries over cases."""

from ssmis.metrics.overlap import Overlap, dice, jaccard, mask_overlap, overlap_per_class
from ssmis.metrics.summary import (
    METRICS,
    CaseScore,
    PairedDifference,
    Summary,
    bootstrap_interval,
    evaluate_case,
    paired_difference,
    summarise,
    write_cases_csv,
)
from ssmis.metrics.surface import CONVENTIONS, Convention, SurfaceDistances, surface_distances

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "CaseScore",
    "Convention",
    "Overlap",
    "PairedDifference",
    "Summary",
    "SurfaceDistances",
    "bootstrap_interval",
    "dice",
    "evaluate_case",
    "jaccard",
    "mask_overlap",
    "overlap_per_class",
    "paired_difference",
    "summarise",
    "surface_distances",
    "write_cases_csv",
]
