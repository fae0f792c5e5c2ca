"""``slim``: the Python call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from slim_model.budget.plan import Plan
from slim_model.errors import InputError, SlimError
from slim_model.loading.given.python_inputs import arguments_given
from slim_model.measuring.machine import check_device
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.reporting.acceptance import check_gates
from slim_model.reporting.report import Report, make_report
from slim_model.reporting.sensitivity_plot import draw_scans


class Slimmed(NamedTuple):
    """``module`` is the user's own class with smaller layers, or a graph module where that cannot be."""

    module: nn.Module
    plan: Plan
    report: Report


def slim(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Slimmed:
    """Remove channels from ``model`` and prove the result. ``model`` is left as it was.

    ``example_inputs``: a tensor, a sequence of the arguments of forward, or a mapping of them by name; with
    ``example_kwargs`` besides. Containers may nest; what is no tensor is a constant of the model.
    ``options`` are the fields of ``Recipe``: ``slim(model, x, ratio=0.5, criterion="l1")``. A criterion may be a
    callable ``(Slices) -> (width,) scores, higher = keep``. Raises InputError, BudgetError, GateError or ProofError.
    """
    try:
        return _slimmed(model, example_inputs, example_kwargs, options)
    except SlimError as error:
        raise type(error)(in_python_words(str(error))) from error


def _slimmed(model: nn.Module, example_inputs: Any, example_kwargs: Any, options: dict[str, Any]) -> Slimmed:
    recipe = Recipe.of(**options).decided()
    if recipe.gates.min_speedup is not None:
        raise InputError("min_speedup is measured by the command alone; leave it out, and time the module yourself.")
    if recipe.quantizing.int8:
        raise InputError("int8 is an ONNX file, which the command alone writes: slim-model IN OUT.onnx --int8.")
    check_device(recipe.measuring.device)
    compiled = compile_model(model, arguments_given(model, example_inputs, example_kwargs), recipe)
    draw_scans(compiled, recipe)
    small = make_small_module(model, compiled.small, compiled.dense)
    report = make_report(compiled, recipe, module_is_own=small.own)
    report = replace(report, warnings=[in_python_words(note) for note in report.warnings])
    check_gates(report, recipe.gates)
    return Slimmed(small.module, compiled.plan, report)


_OPTION = re.compile(r"--(no-)?([a-z]+(?:-[a-z]+)*)(?:[ =]('[^']*'|[A-Z]+\b|\d+(?:\.\d+)?))?")


def in_python_words(text: str) -> str:
    """``text`` with the command's options as a call has them: ``--multiple-of 1`` becomes ``multiple_of=1``.

    Options that only the command has (``--save``) stay.
    """
    known = Recipe.of().options()

    def written(found: re.Match[str]) -> str:
        negated, word, value = found.groups()
        name = word.replace("-", "_")
        if name not in known:
            return found[0]
        if isinstance(known[name], bool):
            return f"{name}={not negated}" + (f" {value}" if value else "")
        return f"{name}={value}" if value else name

    return _OPTION.sub(written, text)
