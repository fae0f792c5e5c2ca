"""Tensors that are stored in a graph, and what follows from them alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.ops import row_of
from slim_model.simplifying.moves import is_written, writes

_PURE = ("aten", "prims", "quantized_decomposed")


def is_pure(node: fx.Node) -> bool:
    """Whether ``node`` gives tensors that follow from its arguments alone, the same at every run."""
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or not isinstance(node.meta.get("val"), Tensor | list | tuple):
        return False
    row, random = row_of(target), torch.Tag.nondeterministic_seeded in target.tags
    if row is not None and row.training_switch is not None:
        random = random and row.training_switch.is_on(node)
    name = target.overloadpacket.__name__
    return target.namespace in _PURE and not writes(target) and not random and "empty" not in name


def computed_from(graph: Graph, given: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The ``given`` nodes and all that are computed from these alone, in order, without those that are written to."""
    nodes: dict[fx.Node, None] = {}
    for node in graph.nodes:
        computed = node.op == "call_function" and is_pure(node) and all(n in nodes for n in node.all_input_nodes)
        if (given(node) or computed) and not is_written(node):
            nodes[node] = None
    return list(nodes)


def cone_of(node: fx.Node) -> set[fx.Node]:
    """``node`` and all that it is computed from."""
    cone: set[fx.Node] = set()
    pending = [node]
    while pending:
        if (here := pending.pop()) not in cone:
            cone.add(here)
            pending += here.all_input_nodes
    return cone


def values_of(graph: Graph, nodes: Iterable[fx.Node]) -> dict[fx.Node, Any]:
    """The values of ``nodes``, which hold all that they are computed from, in order; without gradients."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in nodes:
            if node.op == "placeholder":
                values[node] = graph.tensors[graph.owners[node.name]]
            elif node.op == "get_attr":
                values[node] = getattr(graph.module, str(node.target))
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values


def as_used(graph: Graph, name: str) -> Tensor:
    """The stored tensor ``name`` as layers see it: times a mask or a scale, rounded, where the one thing that reads it
    treats each value alone and knows all it needs. Else as it is stored."""
    node = next((n for n in graph.nodes if graph.owners.get(n.name) == name), None)
    if node is None or not _alone(node):
        return graph.tensors[name]
    known = set(computed_from(graph, lambda n: n.op == "get_attr" or n.name in graph.owners))
    chain = [node]
    while (after := _alone(chain[-1])) is not None and after in known:
        chain.append(after)
    needed = cone_of(chain[-1])
    value: Tensor = values_of(graph, [n for n in graph.nodes if n in needed])[chain[-1]]
    return value


def _alone(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, where it gives a value for each of its values."""
    (after, *others) = [*node.users, None]
    if after is None or any(others) or torch.Tag.pointwise not in getattr(after.target, "tags", ()):
        return None
    before, here = (n.meta.get("val") for n in (node, after))
    alike = isinstance(before, Tensor) and isinstance(here, Tensor) and before.shape == here.shape
    return after if alike else None


def add_placeholder(graph: Graph, name: str, tensor: Tensor, like: fx.Node) -> fx.Node:
    """A new stored tensor behind those that are there, in the fake mode of ``like``."""
    nodes = graph.module.graph
    stored = [n for n in nodes.nodes if n.op == "placeholder" and n.name in graph.owners]
    with nodes.inserting_after(stored[-1]) if stored else nodes.inserting_before(next(iter(nodes.nodes))):
        made = nodes.placeholder(name)
    mode = getattr(like.meta["val"], "fake_mode", None)
    made.meta["val"] = tensor if mode is None else mode.from_tensor(tensor, static_shapes=True)
    return made
