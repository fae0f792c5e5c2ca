"""``slim``: the Python call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from slim_model.budget.plan import Plan
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import small_module
from slim_model.recipe import Recipe
from slim_model.reporting.acceptance import check_gates
from slim_model.reporting.report import Report, make_report


class Slimmed(NamedTuple):
    """``module`` is the user's own class with smaller layers, or a graph module where that cannot be."""

    module: nn.Module
    plan: Plan
    report: Report


def slim(model: nn.Module, example_inputs: Tensor | Sequence[Any], **options: Any) -> Slimmed:
    """Remove channels from ``model`` and prove the result. ``model`` is left as it was.

    ``options`` are the fields of ``Recipe``: ``slim(model, x, ratio=0.5, criterion="l1")``. A criterion may be a
    callable ``(Slices) -> (width,) scores, higher = keep``. Raises InputError, BudgetError, GateError or ProofError.
    """
    recipe = Recipe(**options)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    compiled = compile_model(model, inputs, recipe)
    module, own = small_module(model, compiled)
    report = make_report(compiled, recipe, module_is_own=own)
    check_gates(report, recipe.max_drop)
    return Slimmed(module, compiled.plan, report)
