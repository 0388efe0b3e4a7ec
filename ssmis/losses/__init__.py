# SPDX-License-Identifier: Apache-2.0
"""Losses: each a pure function, a thin module of the same stem and a name in the table `LOSSES`."""

from ssmis.losses._reduce import REDUCTIONS, Reduction, reduce_volumes
from ssmis.losses.consistency import (
    BCEConsistency,
    CosineConsistency,
    KLConsistency,
    MSEConsistency,
    bce_consistency,
    cosine_consistency,
    kl_consistency,
    mse_consistency,
)
from ssmis.losses.cross_entropy import CrossEntropy, cross_entropy
from ssmis.losses.cross_pseudo import CrossPseudo, PseudoCE, cross_pseudo, pseudo_ce
from ssmis.losses.dice import DiceConsistency, SoftDice, dice_consistency, soft_dice
from ssmis.losses.dice_ce import DiceCE, dice_ce
from ssmis.losses.disagreement import ConfidenceDisagreement, confidence_disagreement
from ssmis.losses.entropy_filtered import EntropyFilteredCE, entropy_filtered_ce
from ssmis.losses.entropy_minimisation import EntropyMinimisation, entropy_minimisation
from ssmis.losses.evidential import EvidentialCalibration, evidential_calibration
from ssmis.losses.prototype_contrast import PrototypeContrast, prototype_contrast
from ssmis.losses.pseudo_labels import hard_labels
from ssmis.losses.rectified import KLRectifiedCE, kl_rectified_ce
from ssmis.losses.region_contrast import RegionContrast, region_contrast
from ssmis.losses.sigmoid import SigmoidDiceBCE, sigmoid_dice_bce
from ssmis.losses.voxel_contrast import VoxelContrast, voxel_contrast

__all__ = [
    "REDUCTIONS",
    "BCEConsistency",
    "ConfidenceDisagreement",
    "CosineConsistency",
    "CrossEntropy",
    "CrossPseudo",
    "DiceCE",
    "DiceConsistency",
    "EntropyFilteredCE",
    "EntropyMinimisation",
    "EvidentialCalibration",
    "KLConsistency",
    "KLRectifiedCE",
    "MSEConsistency",
    "PrototypeContrast",
    "PseudoCE",
    "Reduction",
    "RegionContrast",
    "SigmoidDiceBCE",
    "SoftDice",
    "VoxelContrast",
    "bce_consistency",
    "confidence_disagreement",
    "cosine_consistency",
    "cross_entropy",
    "cross_pseudo",
    "dice_ce",
    "dice_consistency",
    "entropy_filtered_ce",
    "entropy_minimisation",
    "evidential_calibration",
    "hard_labels",
    "kl_consistency",
    "kl_rectified_ce",
    "mse_consistency",
    "prototype_contrast",
    "pseudo_ce",
    "reduce_volumes",
    "region_contrast",
    "sigmoid_dice_bce",
    "soft_dice",
    "voxel_contrast",
]
