"""Cut points: nodes whose value alone determines everything after them, such as the sum that closes a residual block.

There a small graph can be held against the dense one: of each channel that stayed it is known which of the dense ones
it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from slim_model.cutting.resize import resize
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import shape_of
from slim_model.graph.tensor_trees import batch_of
from slim_model.ops import row_of
from slim_model.recovery.gate_layers import GateLayer
from slim_model.recovery.linear_layers import Kept, LinearLayer, find_linear_layers

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class CutPoint:
    """The value ``node`` of the small graph, of the same name in the dense one, whose channels lie on ``axis``;
    ``left``: the dense positions left of them."""

    node: fx.Node
    axis: int
    left: Tensor

    @property
    def name(self) -> str:
        return self.node.name

    def target(self, dense: Tensor) -> Tensor:
        """What the small value should be, of the dense one."""
        return dense.index_select(self.axis, self.left.to(dense.device))

    def cut(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the target, of a dense value of ``shape``."""
        return (*shape[: self.axis], len(self.left), *shape[self.axis + 1 :])


def find_cut_points(dense: Graph, small: Graph, layers: Sequence[LinearLayer]) -> list[CutPoint]:
    """In the order of the graph, the input first; of the places between two layers the last one."""
    if not small.dynamic_batch:
        return []
    nodes, left = list(small.nodes), _left(dense, layers)
    names = {call.node for layer in layers for call in layer.calls}
    summed = list(itertools.accumulate(node.name in names for node in nodes))
    last = {summed[at]: nodes[at] for at in _single(small) if nodes[at].name in left}
    return [CutPoint(node, *left[node.name]) for node in last.values()]


def inner_cut_points(dense: Graph, small: Graph, kept: Kept) -> list[CutPoint]:
    """Without the input, which is the same, without outputs, and without those whose channels lie on other axes too."""
    values = {node.name: node.meta["val"] for node in dense.nodes if "val" in node.meta}
    points = find_cut_points(dense, resize(small), find_linear_layers(dense, small, kept))
    inner = [point for point in points if _is_inside(point.node)]
    return [point for point in inner if shape_of(point.node.meta["val"]) == point.cut(shape_of(values[point.name]))]


def _is_inside(node: fx.Node) -> bool:
    return node.op != "placeholder" and all(user.op != "output" for user in node.users)


def sizes(graph: Graph) -> list[fx.Node]:
    """Numbers that follow from how many samples there are."""
    numbers = dict[fx.Node, None]()
    for node in graph.nodes:
        number = node.op == "call_function" and not isinstance(node.meta.get("val"), Tensor)
        if is_batch(node) or (number and node.all_input_nodes and all(n in numbers for n in node.all_input_nodes)):
            numbers[node] = None
    return list(numbers)


def is_batch(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int and bool(node.args[1] == 0)


def _single(graph: Graph) -> Iterator[int]:
    """Positions behind which nothing but that one value is needed any more, one row a sample."""
    nodes = list(graph.nodes)
    last = {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    samples = batch_of(graph.inputs)
    counted = set(sizes(graph))
    alive = {node for node in nodes if node.op == "placeholder" and node.name not in graph.owners}
    for i, node in enumerate(nodes[:-1]):
        if node.op != "placeholder" and node not in counted:
            alive.add(node)
        alive -= {source for source in (*node.all_input_nodes, node) if last.get(source, -1) <= i}
        value = node.meta.get("val")
        if alive == {node} and isinstance(value, Tensor) and value.dim() > 1 and shape_of(value)[0] == samples:
            yield i


def _left(dense: Graph, layers: Sequence[LinearLayer]) -> dict[str, tuple[int, Tensor]]:
    """By the names of nodes whose channels are those of a layer: the axis they lie on, and the positions left of it."""
    by_name = {call.node: layer for layer in layers if not isinstance(layer, GateLayer) for call in layer.calls}
    left: dict[fx.Node, tuple[int, Tensor]] = {}
    for node in dense.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.dim():
            continue
        shape = shape_of(value)
        if layer := by_name.get(node.name):
            left[node] = (1 if layer.window else len(shape) - 1, layer.outputs)
        elif (node.op == "placeholder" and node.name not in dense.owners) or any(u.op == "output" for u in node.users):
            left[node] = (len(shape) - 1, torch.arange(shape[-1]))
        elif node.op == "call_function":
            taken = [source for source in node.all_input_nodes if source in left]
            alike = (left[s] for s in taken if _carries(node, left[s][0], shape_of(s.meta["val"]), shape))
            if place := next(alike, None):
                left[node] = place
    return {node.name: place for node, place in left.items()}


def _carries(node: fx.Node, axis: int, taken: tuple[int, ...], given: tuple[int, ...]) -> bool:
    """The channels of what is taken in lie on the same axis of what is given."""
    if len(taken) != len(given) or taken[axis] != given[axis]:
        return False
    row = row_of(node.target)
    return row is not None and row.keeps_channels
