"""slim-model: a trained PyTorch model in, a smaller ONNX file out; proven, measured, explained."""

from slim_model.criteria import CRITERIA, Slices
from slim_model.errors import BudgetError, GateError, InputError, InternalError, ProofError, SlimError
from slim_model.recipe import Recipe
from slim_model.report import Report
from slim_model.save import restore
from slim_model.slim import Slimmed, slim

__version__ = "0.1.0"
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
    "restore",
    "slim",
]
