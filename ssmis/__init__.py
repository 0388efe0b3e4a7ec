# SPDX-License-Identifier: Apache-2.0
"""Components and recipes for semi-supervised medical image segmentation.

Importing this package imports neither torch nor anything heavy; the public names below are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what tools that read types see in the place of `__getattr__`
    from ssmis.compare import compare_methods as compare_methods
    from ssmis.data import Batch as Batch
    from ssmis.data import inspect_data as inspect_data
    from ssmis.engine import FitConfig as FitConfig
    from ssmis.engine import Predictor as Predictor
    from ssmis.engine import evaluate_run as evaluate_run
    from ssmis.engine import export_run as export_run
    from ssmis.engine import predict_files as predict_files
    from ssmis.engine.fit import fit as fit
    from ssmis.engine.train import train as train
    from ssmis.recipes import Recipe as Recipe
    from ssmis.recipes import Terms as Terms
    from ssmis.registry import BANKS as BANKS
    from ssmis.registry import LOSSES as LOSSES
    from ssmis.registry import NETS as NETS
    from ssmis.registry import RECIPES as RECIPES
    from ssmis.registry import UNCERTAINTY as UNCERTAINTY
    from ssmis.report import report_runs as report_runs

__version__ = "0.1.0.dev0"

_LAZY = {
    "NETS": "ssmis.registry",
    "LOSSES": "ssmis.registry",
    "UNCERTAINTY": "ssmis.registry",
    "BANKS": "ssmis.registry",
    "RECIPES": "ssmis.registry",
    "Batch": "ssmis.data",
    "FitConfig": "ssmis.engine",
    "fit": "ssmis.engine",
    "Predictor": "ssmis.engine",
    "inspect_data": "ssmis.data",
    "train": "ssmis.engine",
    "evaluate_run": "ssmis.engine",
    "predict_files": "ssmis.engine",
    "export_run": "ssmis.engine",
    "compare_methods": "ssmis.compare",
    "report_runs": "ssmis.report",
    "Recipe": "ssmis.recipes",
    "Terms": "ssmis.recipes",
}

__all__ = ["__version__", *sorted(_LAZY)]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'ssmis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
