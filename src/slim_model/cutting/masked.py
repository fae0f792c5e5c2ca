"""The masked reference: the dense graph in which removed channels are zero where they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.graph.decisions import Decided
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.labels.values import Axis, Value, tensors_in
from slim_model.ops import Cut, row_of
from slim_model.ops.movement import PLACES


class Masked(Decided):
    """Runs the dense graph with removed channels set to zero wherever a layer reads them. Norms take their statistics
    over the channels that are kept. ``wide``: in float64."""

    def __init__(self, graph: Graph, cut: Cut, *, wide: bool = False) -> None:
        super().__init__(graph.module, graph.decisions, wide=wide, garbage_collect_values=True)
        self.cut = cut

    def run_node(self, n: fx.Node) -> Any:
        row = row_of(n.target) if n.op == "call_function" else None
        masks = row.masks if row and n.meta.get(PLACES) != "spread" else "inputs"
        if row is None or masks == "nothing":
            return super().run_node(n)
        touched = {m: v for m in n.all_input_nodes if isinstance(v := self.cut.values[m], Value) and self.cut.cuts(v)}
        if not touched:
            return super().run_node(n)
        whole = {m: self.env[m] for m in touched}
        for m, value in touched.items():
            self.env[m] = self._zeroed(n, m, value) if masks == "inputs" else self.cut.gathered(self.env[m], value)
        try:
            return super().run_node(n) if masks == "inputs" else self._scattered(n, self._on_kept(n, row))
        finally:
            self.env.update(whole)

    def _zeroed(self, node: fx.Node, operand: fx.Node, value: Value) -> Tensor:
        """A weight is large, and need not be zeroed where ``node`` hands an axis on as it is (what comes out there is
        zeroed where it is read) or sums it with the one activation that holds its channels (zero times a weight)."""
        tensor = self.env[operand]
        for i, axis in enumerate(value.axes):
            removed = torch.nonzero(~self.cut.kept(axis, value.shape[i])).flatten()
            if len(removed) and not (operand.op == "placeholder" and self._zero_already(node, axis)):
                tensor = tensor.index_fill(i, removed.to(tensor.device), 0)
        return tensor

    def _zero_already(self, node: fx.Node, axis: Axis) -> bool:
        outputs = tensors_in([self.cut.values[node]])
        if len(outputs) > 1:  # a recurrent layer reads what it makes itself, at the next step
            return False
        made = [other for out in outputs for other in out.axes]
        activations = tensors_in([self.cut.values[n] for n in node.all_input_nodes if n.op != "placeholder"])
        read = [other for other in activations[0].axes if other is not None] if len(activations) == 1 else []
        kept = self.cut.keep[axis.numpy()]  # type: ignore[union-attr]
        return any(axis is other for other in made) or any(
            len(other) == len(kept) and np.array_equal(self.cut.keep[other.numpy()], kept) for other in read
        )

    def _on_kept(self, node: fx.Node, row: Any) -> Any:
        arguments = arguments_of(node) | (row.rewrite(self.cut, node) if row.rewrite else {})
        arguments = fx.map_arg(arguments, self.env.__getitem__)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        args = [arguments[a.name] for a in schema if not a.kwarg_only]
        kwargs = {a.name: arguments[a.name] for a in schema if a.kwarg_only}
        return self.call_function(node.target, tuple(args), kwargs)

    def _scattered(self, node: fx.Node, result: Any) -> Any:
        values = self.cut.values[node]
        if isinstance(result, tuple | list):
            return type(result)(self._spread(r, v) for r, v in zip(result, values, strict=True))
        return self._spread(result, values)

    def _spread(self, tensor: Tensor, value: Value) -> Tensor:
        for i, axis in enumerate(value.axes):
            kept = self.cut.kept(axis, value.shape[i])
            if not kept.all():
                full = tensor.new_zeros([*tensor.shape[:i], value.shape[i], *tensor.shape[i + 1 :]])
                tensor = full.index_copy(i, torch.nonzero(kept).flatten().to(tensor.device), tensor)
        return tensor
