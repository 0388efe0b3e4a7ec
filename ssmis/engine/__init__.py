# SPDX-License-Identifier: Apache-2.0
"""Training, inference and evaluation of recipes."""

from ssmis.engine.beside import run_beside
from ssmis.engine.budget import seconds_per_step, steps_for
from ssmis.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ssmis.engine.config import FitConfig
from ssmis.engine.distributed import PeerError, World, join, parse_shard, shard
from ssmis.engine.evaluate import CaseResult, evaluate
from ssmis.engine.export import export_run, load_exported
from ssmis.engine.files import predict_files
from ssmis.engine.fit import FitResult, fit
from ssmis.engine.guard import DeadTermError, TermGuard
from ssmis.engine.infer import Predictor
from ssmis.engine.postprocess import largest_component
from ssmis.engine.protocol import Protocol
from ssmis.engine.protocols import PROTOCOLS
from ssmis.engine.quality import PseudoLabelQuality
from ssmis.engine.record import write_evaluation
from ssmis.engine.scoring import evaluate_run
from ssmis.engine.segmentation import Segmentation
from ssmis.engine.slices import SlicePredictor
from ssmis.engine.train import train
from ssmis.engine.trained import TrainedRun
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
    "Segmentation",
    "SlicePredictor",
    "TermGuard",
    "TrainedRun",
    "World",
    "evaluate",
    "evaluate_run",
    "export_run",
    "fit",
    "join",
    "largest_component",
    "load_checkpoint",
    "load_exported",
    "parse_shard",
    "predict_files",
    "run_beside",
    "save_checkpoint",
    "seconds_per_step",
    "shard",
    "steps_for",
    "train",
    "write_evaluation",
]
