# SPDX-License-Identifier: Apache-2.0
"""From files to batches: cases and layouts, cache, sampling, crops, augmentation, phantom."""

from ssmis.data.augment import Augment, Intensity
from ssmis.data.batch import Batch
from ssmis.data.batches import BatchMaker
from ssmis.data.cache import Cache, Entry
from ssmis.data.cases import Case, DataError, Split, Volume, check_no_overlap, check_volume
from ssmis.data.components import largest_component, largest_components
from ssmis.data.crop import Crop, CropPicker, crop_volume
from ssmis.data.families import FAMILIES, Family, family_of
from ssmis.data.fingerprint import Fingerprint, array_digest
from ssmis.data.geometry import Geometry, affine, affine_matrices
from ssmis.data.grid import Grid, closest_axes
from ssmis.data.held_out import HeldOut, HeldOutError
from ssmis.data.inspect import Inspection, inspect_data
from ssmis.data.intensity import (
    add_noise,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    bias_field,
    coarse_field,
    gaussian_blur,
)
from ssmis.data.la import find_la, la_cases, la_split, load_la, read_list, write_la
from ssmis.data.layouts import Dataset, find_dataset
from ssmis.data.mixing import Mixed, box_mix, cut_mix, random_boxes
from ssmis.data.phantom import atrium_phantom, write_phantoms
from ssmis.data.plan import Channel, Plan
from ssmis.data.planning import make_plan, shape_of_nets
from ssmis.data.prefetch import Prefetch
from ssmis.data.regrid import axis_weights, resample_axis, resample_labels, resample_maps, resampled_size
from ssmis.data.resample import area_downsample, majority_downsample, scaled_size, upsample_probs
from ssmis.data.sampling import TwoStreamSampler, batch_key
from ssmis.data.scans import Scan, case_labels, case_scan, read_grid, read_labels, read_scan, write_map
from ssmis.data.splits import make_split, read_split, write_split
from ssmis.data.survey import CaseFacts, Issue, survey
from ssmis.data.verify import Finding, Report, verify

__all__ = [
    "FAMILIES",
    "Augment",
    "Batch",
    "BatchMaker",
    "Cache",
    "Case",
    "CaseFacts",
    "Channel",
    "Crop",
    "CropPicker",
    "DataError",
    "Dataset",
    "Entry",
    "Family",
    "Finding",
    "Fingerprint",
    "Geometry",
    "Grid",
    "HeldOut",
    "HeldOutError",
    "Inspection",
    "Intensity",
    "Issue",
    "Mixed",
    "Plan",
    "Prefetch",
    "Report",
    "Scan",
    "Split",
    "TwoStreamSampler",
    "Volume",
    "add_noise",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "affine",
    "affine_matrices",
    "area_downsample",
    "array_digest",
    "atrium_phantom",
    "axis_weights",
    "batch_key",
    "bias_field",
    "box_mix",
    "case_labels",
    "case_scan",
    "check_no_overlap",
    "check_volume",
    "closest_axes",
    "coarse_field",
    "crop_volume",
    "cut_mix",
    "family_of",
    "find_dataset",
    "find_la",
    "gaussian_blur",
    "inspect_data",
    "la_cases",
    "la_split",
    "largest_component",
    "largest_components",
    "load_la",
    "majority_downsample",
    "make_plan",
    "make_split",
    "random_boxes",
    "read_grid",
    "read_labels",
    "read_list",
    "read_scan",
    "read_split",
    "resample_axis",
    "resample_labels",
    "resample_maps",
    "resampled_size",
    "scaled_size",
    "shape_of_nets",
    "survey",
    "upsample_probs",
    "verify",
    "write_la",
    "write_map",
    "write_phantoms",
    "write_split",
]
