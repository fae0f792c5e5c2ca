"""A graph -> the same graph with some layers written as several in a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.factoring.layers import Layer, find_layers
from slim_model.factoring.split import Part
from slim_model.graph.graph import Factor, Factored, Graph, copy_graph
from slim_model.graph.nodes import insert_call
from slim_model.graph.promises import whole
from slim_model.graph.stored_tensors import add_placeholder

aten = torch.ops.aten


def write_factors(graph: Graph, written: Iterable[tuple[Layer, str, Sequence[Part]]]) -> Graph:
    """A copy of ``graph`` in which each layer is written as its parts, in the form of that name; ``factored`` lists
    them. The last part keeps the name of the node. A bare weight or a product is written as a linear layer."""
    nodes, copies = copy_graph(graph.module.graph)
    tensors, owners, factored = dict(graph.tensors), dict(graph.owners), list(graph.factored)
    trained = set(graph.parameter_names)
    result = dataclasses.replace(graph, module=fx.GraphModule(graph.module, nodes), owners=owners, tensors=tensors)
    gone: set[str] = set()
    for layer, form, parts in written:
        gone |= {layer.weight, layer.bias or layer.weight}
        node, operand = copies[layer.node], copies[layer.operand]
        path, factors = layer.weight.removesuffix(".weight"), list[Factor]()
        is_trained = layer.weight in trained
        for number, part in enumerate(parts):
            # its tensors, under names that a Sequential in the place of the layer gives them
            names = [f"{path}.{number}.weight", f"{path}.{number}.bias" if part.bias is not None else None]
            values = [part.weight, part.bias]
            stored = [_stored(result, name, value, node) for name, value in zip(names, values, strict=True)]
            trained |= {name for name in names if name and is_trained}
            # each layer reads what the one before gives; the last one is the node that was there
            if number < len(parts) - 1:
                with nodes.inserting_before(node):
                    operand = _called(nodes, operand, stored, part, node)
                made = operand
            else:
                made = _turned_into(node, operand, stored, part)
            factors.append(Factor(made.name, names[0] or "", names[1], tuple(part.weight.shape), part.options))
        factored.append(
            Factored(
                layer.weight, tuple(layer.matrix.shape), layer.bias is not None, form, layer.options, tuple(factors)
            )
        )
    _drop_unread(result, gone)
    result.module.recompile()
    return whole(dataclasses.replace(result, factored=tuple(factored), parameter_names=frozenset(trained)), "factor")


def written_again(graph: Graph, factored: Iterable[Factored], tensors: Mapping[str, Tensor]) -> Graph:
    """``graph`` in which the layers that were ``factored`` in another run on the same model are so again, with these
    ``tensors`` by name. A layer that the graph lacks is left out."""
    layers = {layer.weight: layer for layer in find_layers(graph)}
    return write_factors(
        graph,
        [
            (
                layers[one.weight],
                one.form,
                [Part(tensors[f.weight], tensors.get(f.bias or ""), f.options) for f in one.factors],
            )
            for one in factored
            if one.weight in layers
        ],
    )


def _stored(graph: Graph, name: str | None, value: Tensor | None, like: fx.Node) -> fx.Node | None:
    if name is None or value is None:
        return None
    made = add_placeholder(graph, f"p_{name}".replace(".", "_"), value, like)  # a name may begin with a digit
    graph.owners[made.name], graph.tensors[name] = name, value
    return made


def _called(nodes: fx.Graph, operand: fx.Node, stored: list[fx.Node | None], part: Part, like: fx.Node) -> fx.Node:
    if not part.options:
        return insert_call(nodes, aten.linear.default, (operand, *stored), like)
    args, named = _arguments(like.target, operand, stored, part.options)
    return insert_call(nodes, like.target, args, like, named)


def _turned_into(node: fx.Node, operand: fx.Node, stored: list[fx.Node | None], part: Part) -> fx.Node:
    """``node`` with these arguments: what it gives has the shape that it had."""
    if part.options:
        node.args, node.kwargs = _arguments(node.target, operand, stored, part.options)
    else:
        node.target, node.args, node.kwargs = aten.linear.default, (operand, *stored), {}
    return node


def _arguments(
    target: Any, operand: fx.Node, stored: list[fx.Node | None], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = {"input": operand, "weight": stored[0], "bias": stored[1]} | options
    schema = target._schema.arguments
    by_place = tuple(given[a.name] for a in schema if not a.kwarg_only)
    return by_place, {a.name: given[a.name] for a in schema if a.kwarg_only}


def _drop_unread(graph: Graph, gone: set[str]) -> None:
    """Of the tensors ``gone``, those that nothing reads any more."""
    for node in [n for n in graph.nodes if graph.owners.get(n.name) in gone and not n.users]:
        graph.tensors.pop(graph.owners.pop(node.name), None)
        graph.module.graph.erase_node(node)
