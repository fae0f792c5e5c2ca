"""slim-model: a trained PyTorch model in, a smaller ONNX file out; proven, measured, explained.

Names are imported when they are first used: the command line answers ``--help`` without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from slim_model.errors import BudgetError, GateError, InputError, InternalError, ProofError, SlimError
from slim_model.version import __version__

if TYPE_CHECKING:
    from slim_model.api import Slimmed, slim
    from slim_model.export.torch_files import restore
    from slim_model.ranking.criteria import CRITERIA
    from slim_model.ranking.criteria.slices import Slices
    from slim_model.recipe import Recipe
    from slim_model.reporting.report import Report

__all__ = [
    "CRITERIA",
    "BudgetError",
    "GateError",
    "InputError",
    "InternalError",
    "ProofError",
    "Recipe",
    "Report",
    "Slices",
    "SlimError",
    "Slimmed",
    "__version__",
    "restore",
    "slim",
]

_PLACES = {
    "CRITERIA": "ranking.criteria",
    "Recipe": "recipe",
    "Report": "reporting.report",
    "Slices": "ranking.criteria.slices",
    "Slimmed": "api",
    "restore": "export.torch_files",
    "slim": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'slim_model' has no attribute '{name}'")
    return getattr(importlib.import_module(f"slim_model.{_PLACES[name]}"), name)
