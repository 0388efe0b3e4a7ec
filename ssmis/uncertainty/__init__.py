# SPDX-License-Identifier: Apache-2.0
"""Uncertainty of voxels, and masks of the certain ones."""

from ssmis.uncertainty.disagreement import Disagreement, disagreement
from ssmis.uncertainty.divergence import JSDivergence, KLDivergence, js_divergence, kl_divergence
from ssmis.uncertainty.entropy import Entropy, EntropyOfProbs, entropy, entropy_of_probs
from ssmis.uncertainty.masks import LowestEntropy, lowest, lowest_entropy
from ssmis.uncertainty.mc_dropout import MCDropout, mc_dropout
from ssmis.uncertainty.vacuity import Vacuity, log_vacuity, vacuity

__all__ = [
    "Disagreement",
    "Entropy",
    "EntropyOfProbs",
    "JSDivergence",
    "KLDivergence",
    "LowestEntropy",
    "MCDropout",
    "Vacuity",
    "disagreement",
    "entropy",
    "entropy_of_probs",
    "js_divergence",
    "kl_divergence",
    "log_vacuity",
    "lowest",
    "lowest_entropy",
    "mc_dropout",
    "vacuity",
]
