"""Constant folding: the values that follow from stored tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph


class Constants:
    """The real value of any node of ``graph`` that no input reaches; each is computed once, when it is asked for.

    ``sizes``: what nodes give that are no tensors, at the example's sizes.
    """

    def __init__(self, graph: Graph, sizes: Mapping[fx.Node, Any]) -> None:
        self._graph, self._sizes = graph, sizes
        self._known: dict[fx.Node, Tensor | None] = {}

    def of(self, node: fx.Node) -> Tensor | None:
        """The value of ``node`` where it follows from stored tensors alone, else None."""
        if node not in self._known:
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        if node.op == "placeholder":
            owner = self._graph.owners.get(node.name)
            return None if owner is None else self._graph.tensors[owner]
        if node.op == "get_attr":
            stored = getattr(self._graph.module, str(node.target), None)
            return stored if isinstance(stored, Tensor) else None
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        operands = {n: self.of(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
        if any(value is None for value in operands.values()):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: operands.get(n, self._sizes[n]))
        result = node.target(*args, **kwargs)
        return result if isinstance(result, Tensor) else None
