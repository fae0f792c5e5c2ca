"""A graph whose fake values have the sizes that its tensors now have."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.ops import kind_of, recurrent


def resize(graph: Graph) -> Graph:
    """A copy of ``graph`` whose nodes know their sizes as they follow from those of the placeholders; a symbolic batch
    stays symbolic."""
    graph = graph.copy()
    given = {n: n.meta["val"] for n in graph.nodes if n.op == "placeholder"}
    mode: Any = torch._guards.detect_fake_mode(list(given.values())) if graph.program else FakeTensorMode()
    if graph.program is None:  # each of its nodes has a mode of its own
        given = {n: mode.from_tensor(x) if isinstance(x, Tensor) else x for n, x in graph.bind(graph.inputs).items()}
    with mode or contextlib.nullcontext(), torch.no_grad(), enable_python_dispatcher():  # else some sizes become fixed
        _Resizing(graph, mode).run(initial_env=given)
    return graph


class _Resizing(fx.Interpreter):
    """Runs a graph on sizes alone, and writes down what each node gives."""

    def __init__(self, graph: Graph, mode: Any) -> None:
        super().__init__(graph.module)
        self.decisions, self.mode = graph.decisions, mode

    def run_node(self, n: fx.Node) -> Any:
        decision = self.decisions.get(n.name, ())
        if len(decision) == 1:  # how many boxes are kept does not follow from sizes
            result = self.mode.from_tensor(decision[0])
        elif kind_of(n) == "recurrent":
            result = recurrent.shapes(**fx.map_arg(arguments_of(n), self.env.__getitem__))
        else:
            result = super().run_node(n)
        n.meta["val"] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.mode.from_tensor(value) if self.mode and isinstance(value, Tensor) else value
