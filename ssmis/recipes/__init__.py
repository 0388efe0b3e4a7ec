# SPDX-License-Identifier: Apache-2.0
"""Methods: thin combinations of components, each a `Recipe`."""

from ssmis.recipes._nets import dual_nets, uc_seg_nets
from ssmis.recipes.base import Prediction, Recipe, Stage, StageContext, Term, Terms
from ssmis.recipes.cross_pseudo import CrossPseudo
from ssmis.recipes.dual_uncertainty import DualUncertainty, DualUncertaintyConfig
from ssmis.recipes.mean_teacher import MeanTeacher
from ssmis.recipes.supervised import Supervised
from ssmis.recipes.uc_seg import UCSeg, UCSegConfig

__all__ = [
    "CrossPseudo",
    "DualUncertainty",
    "DualUncertaintyConfig",
    "MeanTeacher",
    "Prediction",
    "Recipe",
    "Stage",
    "StageContext",
    "Supervised",
    "Term",
    "Terms",
    "UCSeg",
    "UCSegConfig",
    "dual_nets",
    "uc_seg_nets",
]
