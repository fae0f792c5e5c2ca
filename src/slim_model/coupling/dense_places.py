"""Convolutions along channels, written so that each channel keeps its place among those of the dense model.

Efficient channel attention (ECA, Wang et al. 2020, arXiv 1910.03151) convolves the pooled channels of a picture as if
they were a signal. Were they merely fewer, each would get other neighbours. A dead channel is zero, so the small graph
puts the channels that are left at their dense places, with zeros between them, convolves as before, and takes the
results at these places: two look-ups by constants, and the result is exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of, insert_call
from slim_model.graph.stored_tensors import add_placeholder
from slim_model.labels.values import Value
from slim_model.ops import kind_of
from slim_model.ops.movement import PLACES

aten = torch.ops.aten


def keep_dense_places(graph: Graph) -> Graph:
    """``graph``, or a copy in which convolutions along channels that may then go have all dense places."""
    candidates = [node for node in graph.nodes if _mixes_one_signal(node)]
    if not candidates or graph.decisions:  # of a graph that follows one run the model's own class is handed out
        return graph
    coupling = couple(graph)
    axes = {node.name: axis for node in candidates if (axis := _channel_axis(coupling, node)) is not None}
    if not axes:
        return graph
    written = _written(graph.copy(), axes)
    return written if couple(written).free > coupling.free else graph


def _mixes_one_signal(node: fx.Node) -> bool:
    """A convolution of one channel to one: what it mixes lies along other axes."""
    if kind_of(node) != "convolution":
        return False
    given = arguments_of(node)
    x, weight = (given[name].meta["val"] for name in ("input", "weight"))
    return tuple(weight.shape[:2]) == (1, 1) and x.dim() == weight.dim()


def _channel_axis(coupling: Coupling, node: fx.Node) -> int | None:
    """The one axis along which ``node`` convolves channels, where it gives as many as it takes."""
    source = coupling.labelled.values[arguments_of(node)["input"]]
    if not isinstance(source, Value):
        return None
    axes = [axis for axis, labels in enumerate(source.axes) if labels is not None]
    sizes = [
        value.shape[axis] for value in (arguments_of(node)["input"].meta["val"], node.meta["val"]) for axis in axes
    ]
    alone = len(axes) == 1 and axes[0] > 1 and sizes[0] == sizes[1]
    return axes[0] if alone and isinstance(sizes[0], int) else None


def _written(graph: Graph, axes: dict[str, int]) -> Graph:
    nodes, stored = graph.module.graph, dict[str, Tensor]()

    def look_up(source: fx.Node, axis: int, size: int, form: str) -> fx.Node:
        name = f"channels_places_{len(stored)}"
        constant = add_placeholder(graph, name, torch.arange(size), source)
        stored[constant.name] = torch.arange(size)
        found = insert_call(nodes, aten.index_select.default, (source, axis, constant), source)
        found.meta[PLACES] = form
        return found

    for node in [n for n in nodes.nodes if n.name in axes]:
        axis, given = axes[node.name], arguments_of(node)["input"]
        whole: Any = given.meta["val"]
        behind = [0] * (2 * (whole.dim() - 1 - axis))
        with nodes.inserting_before(node):
            with_zero = nodes.call_function(aten.constant_pad_nd.default, (given, [*behind, 0, 1], 0.0))
            # padding the traced value itself would fix its batch (seen in torch 2.15)
            with_zero.meta = node.meta | {"val": torch.cat([whole, whole.narrow(axis, 0, 1)], axis)}
            node.replace_input_with(given, look_up(with_zero, axis, whole.shape[axis], "spread"))
        users = list(node.users)
        with nodes.inserting_after(node):
            collected = look_up(node, axis, whole.shape[axis], "collect")
        for user in users:
            user.replace_input_with(node, collected)
    graph.module.recompile()
    owners = graph.owners | {name: name for name in stored}
    return dataclasses.replace(graph, owners=owners, tensors=graph.tensors | stored)
