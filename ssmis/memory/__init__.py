# SPDX-License-Identifier: Apache-2.0
"""Class prototypes and banks that remember features of reliable voxels."""

from ssmis.memory.anchors import sample_voxels, volume_weight
from ssmis.memory.bank import Bank
from ssmis.memory.banks import Banks
from ssmis.memory.batch import BatchBank
from ssmis.memory.ema import EMABank
from ssmis.memory.fifo import FIFOBank
from ssmis.memory.gate import reliable_volumes
from ssmis.memory.gather import gather_candidates
from ssmis.memory.prototypes import class_means, class_prototypes, sample_per_class
from ssmis.memory.shared_pointer import SharedPointerFIFOBank

__all__ = [
    "Bank",
    "Banks",
    "BatchBank",
    "EMABank",
    "FIFOBank",
    "SharedPointerFIFOBank",
    "class_means",
    "class_prototypes",
    "gather_candidates",
    "reliable_volumes",
    "sample_per_class",
    "sample_voxels",
    "volume_weight",
]
