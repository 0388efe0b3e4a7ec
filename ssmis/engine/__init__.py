# SPDX-License-Identifier: Apache-2.0
"""Training, inference and evaluation of recipes."""

from ssmis.engine.budget import seconds_per_step, steps_for
from ssmis.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ssmis.engine.config import FitConfig
from ssmis.engine.distributed import PeerError, World, join, parse_shard, shard
from ssmis.engine.evaluate import CaseResult, evaluate
from ssmis.engine.fit import FitResult, fit
from ssmis.engine.guard import DeadTermError, TermGuard
from ssmis.engine.infer import Predictor
from ssmis.engine.postprocess import largest_component
from ssmis.engine.protocol import Protocol
from ssmis.engine.protocols import PROTOCOLS
from ssmis.engine.quality import PseudoLabelQuality
from ssmis.engine.record import write_evaluation
from ssmis.engine.slices import SlicePredictor
from ssmis.engine.validation import BestOnValidation

__all__ = [
    "PROTOCOLS",
    "BestOnValidation",
    "CaseResult",
    "CheckpointError",
    "DeadTermError",
    "FitConfig",
    "FitResult",
    "PeerError",
    "Predictor",
    "Protocol",
    "PseudoLabelQuality",
    "SlicePredictor",
    "TermGuard",
    "World",
    "evaluate",
    "fit",
    "join",
    "largest_component",
    "load_checkpoint",
    "parse_shard",
    "save_checkpoint",
    "seconds_per_step",
    "shard",
    "steps_for",
    "write_evaluation",
]
