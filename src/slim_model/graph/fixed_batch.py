"""Why a traced graph holds for one batch size only, in words a user can act on.

``torch.export`` takes a free batch and drops it without an error as soon as the forward turns its size into a number:
``len(x)``, ``int(x.shape[0])``, ``if``, a view or a buffer with the size written in it. It keeps, as guards, what it
then assumed and where. A guard that was set inside PyTorch has no line of the user's; then the graph is run on one
sample more, and the first operator that fails is the one that needs the size.
"""

from __future__ import annotations

import contextlib
import os
import sysconfig
import traceback
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from slim_model.errors import first_line
from slim_model.graph.graph import Graph, describe_inputs, source_line
from slim_model.graph.tensor_trees import batch_of

ASKED = "you asked for it (--static-batch)"
SCRIPTED = "TorchScript is converted at these sizes. Give the PyTorch model it was made from to keep it free"
NO_COMMON_AXIS = "the first axes of its inputs differ in size"
_PACKAGES = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


def fixed_batch_note(inputs: tuple[Any, ...], why: str) -> str:
    """The note of a report: what is fixed, and why."""
    return f"the batch size is fixed at the example's ({describe_inputs(inputs)}): {why}"


def exported_so(inputs: tuple[Any, ...]) -> str:
    """Of a program that came exported: how it is exported with a free batch."""
    axes = pytree.tree_map(lambda x: {0: "AUTO"} if isinstance(x, Tensor) and x.dim() else None, inputs)
    shapes = repr(axes).replace("'AUTO'", "AUTO")
    return (
        "the program was exported so. With AUTO = torch.export.Dim.AUTO, "
        f"torch.export.export(model, inputs, dynamic_shapes={shapes}) leaves it free"
    )


def why_fixed(graph: Graph) -> str:
    """Where the batch size of ``graph``, exported with a free batch, became a number."""
    if line := _line_of_guard(graph):
        return f"it becomes a number at {line}. x.shape[0] and -1 leave it free; len(), int() and branches do not"
    node = _node_that_needs_it(graph)
    if node is not None:
        return f"{node.target} takes no other at {source_line(node) or node.name}"
    return "the model does not trace with a free one"


def why_not_exported(error: Exception) -> str:
    """Where ``torch.export`` stopped."""
    line = line_of_error(error)
    return f"torch.export stops at {line}" if line else f"torch.export says: {first_line(error, named=True)}"


def line_of_error(error: Exception) -> str:
    """The innermost line outside PyTorch and slim-model that led to ``error``; '' where there is none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_the_users(f)]
    return _described(frames[-1]) if frames else ""


def _is_the_users(frame: traceback.FrameSummary) -> bool:
    path = frame.filename
    of_python = path.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in path
    return os.path.exists(path) and not path.startswith(_PACKAGES) and not of_python


def _described(frame: traceback.FrameSummary) -> str:
    return f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line}"


def _line_of_guard(graph: Graph) -> str:
    """The user's line at which the first guard that leaves one batch size was set; '' where it is PyTorch's own."""
    values = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
    mode: Any = torch._guards.detect_fake_mode(values)
    with contextlib.suppress(AttributeError, TypeError):  # not public: torch 2.11 to 2.15 lay it out so
        environment = mode.shape_env
        batch = {symbol for name, symbol in environment.source_to_var.items() if name.endswith(".size()[0]")}
        for guard in environment.guards:
            if _leaves_one(guard.expr, batch, batch_of(graph.inputs)):
                frame = guard.sloc.framework_loc
                return _described(frame) if _is_the_users(frame) else ""
    return ""


def _leaves_one(expression: Any, batch: set[Any], size: int) -> bool:
    """Whether a guard is about the batch size alone, and holds for the example's, but for no larger one."""
    symbols = expression.free_symbols
    if len(symbols) != 1 or not symbols <= batch:
        return False
    return not any(bool(expression.subs(dict.fromkeys(symbols, n))) for n in (size + 1, size + 2, 2 * size, 3 * size))


def _node_that_needs_it(graph: Graph) -> fx.Node | None:
    """The first operator that runs on the example's sizes, and not on one sample more."""
    more = tuple(torch.cat([x, x[:1]]) if isinstance(x, Tensor) and x.dim() else x for x in graph.inputs)
    node = _first_failure(graph, more)
    return None if node is None or node is _first_failure(graph, graph.inputs) else node


def _first_failure(graph: Graph, inputs: tuple[Any, ...]) -> fx.Node | None:
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
