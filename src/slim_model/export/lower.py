"""A program for the ONNX exporter that needs no second trace.

The exporter first has the program decomposed, which traces all of it again: two thirds of the time it takes. Here the
few operators that it would take apart are replaced one by one; where that covers all of them, that step is left out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from slim_model.graph.graph import copy_graph
from slim_model.graph.nodes import arguments_of
from slim_model.ops import row_of

aten = torch.ops.aten


class Lowered(ExportedProgram):
    """A program that is its own decomposition, where ``lower`` left nothing to take apart."""

    def called(self) -> set[str] | None:
        """Names of its operators, as ``aten::add.Tensor``; None where one of them is taken apart whatever ONNX has."""
        targets = self._targets()
        if not all(map(_is_plain, targets)):
            return None
        return {target.name() for target in targets if isinstance(target, torch._ops.OpOverload)}

    def _targets(self) -> list[Any]:
        return [node.target for node in self.graph.nodes if node.op == "call_function"]

    def run_decompositions(self, decomp_table: Any = None, *rest: Any, **options: Any) -> ExportedProgram:
        targets = self._targets()
        if decomp_table is not None and all(_is_plain(target) and target not in decomp_table for target in targets):
            return self
        return super().run_decompositions(decomp_table, *rest, **options)


def _is_plain(target: Any) -> bool:
    """An operator that writes to none of its arguments and is not made of others."""
    if not isinstance(target, torch._ops.OpOverload):
        return True  # sizes, and items of lists
    return not target._schema.is_mutable and target is not aten.batch_norm.default


def lower(graph: fx.Graph) -> fx.Graph:
    """A copy of ``graph`` that computes the same, with fewer operators for the exporter to take apart."""
    result, _ = copy_graph(graph)
    called = [n for n in result.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)]
    for node in called:
        if node.target._schema.is_mutable:
            _out_of_place(node, node.target)
    for node in called:
        if node.target in SIMPLER:
            SIMPLER[node.target](node, **arguments_of(node))
    return result


def _global_pool(node: fx.Node, self: fx.Node, output_size: list[int]) -> None:
    if list(output_size) == [1, 1]:
        node.target, node.args, node.kwargs = aten.mean.dim, (self, [-2, -1], True), {}


def _batch_norm(node: fx.Node, input: fx.Node, weight: Any, bias: Any, running_mean: Any, running_var: Any,
                training: bool, momentum: float, eps: float, **_: Any) -> None:  # fmt: skip
    if training or running_mean is None or running_var is None:
        return
    with node.graph.inserting_before(node):
        both = node.graph.call_function(
            aten._native_batch_norm_legit_no_training.default,
            (input, weight, bias, running_mean, running_var, momentum, eps),
        )
    node.target, node.args, node.kwargs = operator.getitem, (both, 0), {}


def _out_of_place(node: fx.Node, target: Any) -> None:
    """``relu_(x)`` as ``relu(x)``, where nothing else can see that x was written to."""
    packet, written = target.overloadpacket, node.args[0]
    plain = getattr(aten, packet.__name__.removesuffix("_"), None)
    overload = getattr(plain, target._overloadname, None)
    if not packet.__name__.endswith("_") or overload is None or not isinstance(written, fx.Node):
        return
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    before = [user for user in written.users if order[user] < order[node]]
    if not _is_fresh(written) or any(not _is_fresh(user) for user in before) or not _same_dtype(node):
        return
    node.target = overload
    written.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])


def _is_fresh(node: fx.Node) -> bool:
    """Its result shares memory with nothing."""
    target: Any = node.target
    row = row_of(target)
    return (
        node.op == "call_function"
        and isinstance(target, torch._ops.OpOverload)
        and not (row is not None and row.returns_operand)
        and not any(result.alias_info for result in target._schema.returns)
        and isinstance(node.meta.get("val"), Tensor)
    )


def _same_dtype(node: fx.Node) -> bool:
    """Written in place, a result keeps the type of what it is written over; else types are promoted."""
    values = [n.meta.get("val") for n in node.all_input_nodes]
    return len({value.dtype for value in values if isinstance(value, Tensor) and value.dim()}) == 1


def _attention(node: fx.Node, query: fx.Node, key: fx.Node, value: fx.Node, attn_mask: Any, is_causal: bool,
               scale: float | None, enable_gqa: bool, **_: Any) -> None:  # fmt: skip
    """The exporter has it for four axes alone; of the rank nothing is asked here."""
    if query.meta["val"].dim() == 4 or is_causal or enable_gqa:
        return
    call = node.graph.call_function
    with node.graph.inserting_before(node):
        factor = query.meta["val"].shape[-1] ** -0.5 if scale is None else scale
        scaled = call(aten.mul.Scalar, (query, factor))
        scores = call(aten.matmul.default, (scaled, call(aten.transpose.int, (key, -2, -1))))
        if attn_mask is not None and attn_mask.meta["val"].dtype is torch.bool:
            scores = call(aten.where.ScalarOther, (attn_mask, scores, -math.inf))
        elif attn_mask is not None:
            scores = call(aten.add.Tensor, (scores, attn_mask))
        node.args, node.kwargs = (call(aten.softmax.int, (scores, -1)), value), {}
    node.target = aten.matmul.default


def _cast(node: fx.Node, self: fx.Node, dtype: torch.dtype, **_: Any) -> None:
    node.target, node.args, node.kwargs = aten._to_copy.default, (self,), {"dtype": dtype}


SIMPLER: dict[Any, Callable[..., None]] = {
    aten.adaptive_avg_pool2d.default: _global_pool,
    aten.batch_norm.default: _batch_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.to.dtype: _cast,
}
