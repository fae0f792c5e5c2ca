"""Why a traced graph holds for one size of an axis only (the batch, a height), in words a user can act on.

``torch.export`` takes a free axis and drops it without an error as soon as the forward turns its size into a number:
``len(x)``, ``int(x.shape[0])``, ``if``, a view or a buffer with the size written in it. It keeps, as guards, what it
then assumed and where. A guard that was set inside PyTorch has no line of the user's; then the graph is run on one
position more, and the first operator that fails is the one that needs the size.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from slim_model.calling.arguments import Arguments
from slim_model.calling.nesting import replaced
from slim_model.errors import first_line, whole_statement
from slim_model.graph.free_axes import Axes, axis_name
from slim_model.graph.graph import Graph, describe_inputs, source_line

ASKED = "you asked for it (--static-batch)"
SCRIPTED = "TorchScript is converted at these sizes. Give the PyTorch model it was made from to keep it free"
NO_COMMON_AXIS = "the first axes of its inputs differ in size"
_PACKAGES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


def fixed_batch_note(inputs: tuple[Any, ...], why: str) -> str:
    """The note of a report: what is fixed, and why."""
    return f"the batch size is fixed at the example's ({describe_inputs(inputs)}): {why}"


def exported_so(arguments: Arguments, heads: tuple[str, ...], asked: Axes = ()) -> str:
    """Of a program that came exported: how it is exported with a free batch, or with the axes ``asked`` for."""
    given = iter(asked)
    nest: Any = (
        dict(zip(heads, arguments.args, strict=False)) | arguments.kwargs if arguments.kwargs else arguments.args
    )
    axes = replaced(nest, lambda x: _auto(x, next(given, frozenset())) if isinstance(x, Tensor) else None)
    shapes = repr(axes).replace("'AUTO'", "AUTO")
    call = "model, args, kwargs" if arguments.kwargs else "model, inputs"
    return (
        "the program was exported so. With AUTO = torch.export.Dim.AUTO, "
        f"torch.export.export({call}, dynamic_shapes={shapes}) leaves it free"
    )


def _auto(x: Any, asked: frozenset[int]) -> dict[int, str] | None:
    return dict.fromkeys(sorted({0} | asked), "AUTO") if isinstance(x, Tensor) and x.dim() else None


def cannot_be_free(graph: Graph, asked: Axes, names: Sequence[str], why: str = "") -> str:
    """The refusal where axes that were ``asked`` for are fixed in ``graph``. ``why``: known already."""
    fixed = fixed_among(graph, asked)
    listed = " and ".join(
        f"axis {axis} ({axis_name(graph.inputs[number], axis)}) of '{names[number]}'"
        for number, axes in enumerate(fixed)
        for axis in sorted(axes)
    )
    return f"{listed} cannot be left free: {why or why_fixed(graph, fixed)}. Leave it out of dynamic, or change that."


def fixed_among(graph: Graph, asked: Axes) -> Axes:
    """Those of the axes that ``graph`` holds for one size of only."""
    return tuple(
        frozenset(axis for axis in axes if not graph.free.has(number, axis)) for number, axes in enumerate(asked)
    )


def why_fixed(graph: Graph, axes: Axes) -> str:
    """Where the sizes of ``axes`` in ``graph``, exported as free ones, became numbers."""
    if line := _line_of_guard(graph, axes):
        axis = next(min(some) for some in axes if some)
        return f"it becomes a number at {line}. x.shape[{axis}] and -1 leave it free; len(), int() and branches do not"
    node = _node_that_needs_it(graph, axes)
    if node is not None:
        return f"{node.target} takes no other at {source_line(node) or node.name}"
    return "the model does not trace with a free one"


def why_not_exported(error: Exception) -> str:
    """Where ``torch.export`` stopped."""
    line = line_of_error(error)
    return f"torch.export stops at {line}" if line else f"torch.export says: {first_line(error, named=True)}"


def size_by_value(program: ExportedProgram) -> str:
    """The first operator that gives as many elements as values say, and where; '' where none does."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        sizes: Any = value.shape if isinstance(value, Tensor) else ()
        if any(isinstance(n, torch.SymInt) and not n.node.has_hint() for n in sizes):
            return f"how much {node.target} gives depends on values at {source_line(node) or node.name}"
    return ""


def line_of_error(error: Exception) -> str:
    """The innermost line outside PyTorch and slim-model that led to ``error``; '' where there is none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_the_users(f)]
    return _described(frames[-1]) if frames else ""


def _is_the_users(frame: traceback.FrameSummary) -> bool:
    path = frame.filename
    of_python = path.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in path
    return os.path.exists(path) and not path.startswith(_PACKAGES) and not of_python


def _described(frame: traceback.FrameSummary) -> str:
    code = whole_statement(frame.filename, frame.lineno or 0, frame.line or "")
    return f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}: {code}"


def _line_of_guard(graph: Graph, axes: Axes) -> str:
    """The user's line at which the first guard that leaves one size was set; '' where it is PyTorch's own."""
    values = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
    mode: Any = torch._guards.detect_fake_mode(values)
    sizes = {(axis, graph.inputs[number].shape[axis]) for number, some in enumerate(axes) for axis in some}
    with contextlib.suppress(AttributeError, TypeError):  # not public: torch 2.11 to 2.15 lay it out so
        environment = mode.shape_env
        hints = getattr(environment, "backed_var_to_val", None) or environment.var_to_val
        symbols = {
            symbol: size
            for name, symbol in environment.source_to_var.items()
            for axis, size in sizes
            if name.endswith(f".size()[{axis}]") and hints[symbol] == size
        }
        for guard in environment.guards:
            if _leaves_one(guard.expr, symbols):
                frame = guard.sloc.framework_loc
                return _described(frame) if _is_the_users(frame) else ""
    return ""


def _leaves_one(expression: Any, sizes: Mapping[Any, int]) -> bool:
    """Whether a guard is about one of these symbols alone, and holds for its size, but for no larger one."""
    symbols = expression.free_symbols
    if len(symbols) != 1 or not symbols <= sizes.keys():
        return False
    (size,) = (sizes[symbol] for symbol in symbols)
    return not any(bool(expression.subs(dict.fromkeys(symbols, n))) for n in (size + 1, size + 2, 2 * size, 3 * size))


def _node_that_needs_it(graph: Graph, axes: Axes) -> fx.Node | None:
    """The first operator that runs on the example's sizes, and not on one position more along ``axes``."""
    more = tuple(
        functools.reduce(lambda y, axis: torch.cat([y, y.narrow(axis, 0, 1)], axis), some, x)
        for x, some in zip(graph.inputs, axes, strict=True)
    )
    node = first_failure(graph, more)
    return None if node is None or node is first_failure(graph, graph.inputs) else node


def first_failure(graph: Graph, inputs: tuple[Any, ...]) -> fx.Node | None:
    """The node at which a run on sizes alone fails; None where none does."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        given = {n: mode.from_tensor(x) if isinstance(x, Tensor) else x for n, x in graph.bind(inputs).items()}
        run = _Sizes(graph.module)
        with contextlib.suppress(Exception):  # any operator may say in its own way that sizes do not fit
            run.run(initial_env=given)
            return None
    return run.node


class _Sizes(fx.Interpreter):
    """Remembers the node it is at."""

    node: fx.Node

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)
