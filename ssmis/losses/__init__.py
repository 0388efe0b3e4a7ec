# SPDX-License-Identifier: Apache-2.0
"""Losses: each a pure function, a thin module of the same stem and a name in the table `LOSSES`."""

from ssmis.losses._reduce import REDUCTIONS, Reduction, reduce_volumes
from ssmis.losses.consistency import (
    CosineConsistency,
    KLConsistency,
    MSEConsistency,
    cosine_consistency,
    kl_consistency,
    mse_consistency,
)
from ssmis.losses.cross_entropy import CrossEntropy, cross_entropy
from ssmis.losses.cross_pseudo import CrossPseudo, PseudoCE, cross_pseudo, pseudo_ce
from ssmis.losses.dice import SoftDice, soft_dice
from ssmis.losses.dice_ce import DiceCE, dice_ce
from ssmis.losses.disagreement import ConfidenceDisagreement, confidence_disagreement
from ssmis.losses.entropy_filtered import EntropyFilteredCE, entropy_filtered_ce
from ssmis.losses.entropy_minimisation import EntropyMinimisation, entropy_minimisation
from ssmis.losses.rectified import KLRectifiedCE, kl_rectified_ce
from ssmis.losses.voxel_contrast import VoxelContrast, voxel_contrast

__all__ = [
    "REDUCTIONS",
    "ConfidenceDisagreement",
    "CosineConsistency",
    "CrossEntropy",
    "CrossPseudo",
    "DiceCE",
    "EntropyFilteredCE",
    "EntropyMinimisation",
    "KLConsistency",
    "KLRectifiedCE",
    "MSEConsistency",
    "PseudoCE",
    "Reduction",
    "SoftDice",
    "VoxelContrast",
    "confidence_disagreement",
    "cosine_consistency",
    "cross_entropy",
    "cross_pseudo",
    "dice_ce",
    "entropy_filtered_ce",
    "entropy_minimisation",
    "kl_consistency",
    "kl_rectified_ce",
    "mse_consistency",
    "pseudo_ce",
    "reduce_volumes",
    "soft_dice",
    "voxel_contrast",
]
