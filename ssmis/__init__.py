# SPDX-License-Identifier: Apache-2.0
"""Components and recipes for semi-supervised medical image segmentation.

Importing this package imports neither torch nor anything heavy; the public names below are loaded on first use.
"""

from importlib import import_module
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ssmis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
