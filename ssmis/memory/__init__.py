# SPDX-License-Identifier: Apache-2.0
"""Class prototypes and banks that remember features of reliable voxels."""

from ssmis.memory.anchors import sample_voxels, volume_weight
from ssmis.memory.bank import Bank
from ssmis.memory.batch import BatchBank
from ssmis.memory.ema import EMABank
from ssmis.memory.fifo import FIFOBank
from ssmis.memory.gather import gather_candidates
from ssmis.memory.prototypes import class_means, sample_per_class

__all__ = [
    "Bank",
    "BatchBank",
    "EMABank",
    "FIFOBank",
    "class_means",
    "gather_candidates",
    "sample_per_class",
    "sample_voxels",
    "volume_weight",
]
