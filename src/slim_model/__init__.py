"""slim-model: a trained PyTorch model in, a smaller ONNX file out; proven, measured, explained."""

from __future__ import annotations

from slim_model.api import Slimmed, slim
from slim_model.errors import BudgetError, GateError, InputError, InternalError, ProofError, SlimError
from slim_model.export.torch_files import restore
from slim_model.ranking.criteria import CRITERIA, Slices
from slim_model.recipe import Recipe
from slim_model.reporting.report import Report
from slim_model.version import __version__

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
