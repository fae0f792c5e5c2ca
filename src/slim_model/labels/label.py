"""Which channel sits at which position of which axis, carried through a graph.

Every index of every axis of every parameter is born with a label, an integer of its own. Label 0 (``FIXED``) stands
for a position that can never go. Each ATen node is visited once: the labels of its outputs follow from those of its
inputs, and ties are written down, pairs of labels that are one channel. Pinning is a tie to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.errors import first_line
from slim_model.graph.nodes import shape_of
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import Flow, Value, fixed_value, leaves_in, tensors_in
from slim_model.labels.walk import Walk

FlowOf = Callable[[fx.Node], Flow | None]
"""The rule that carries labels through a node; None where its operator has none."""


def label(walk: Walk, flow_of: FlowOf) -> Labelled:
    """Carry labels through each node of the walk's graph, in order, by the rules that ``flow_of`` gives.

    Of the dense graph a rule that fails pins what reaches its node. In a replay the error is raised: the small graph
    does not have the structure that was planned.
    """
    for node in walk.record.graph.nodes:
        walk.enter(node)
        walk.record.values[node] = _visit(walk, flow_of, node)
    return walk.labelled()


def _visit(walk: Walk, flow_of: FlowOf, node: fx.Node) -> Any:
    if node.op == "placeholder":
        return _placeholder(walk, node)
    if node.op == "get_attr":
        return _attribute(walk, node)
    if node.op == "output":
        for value in tensors_in(fx.map_arg(node.args, walk.record.values.__getitem__)):
            walk.pin(value, "it is an output of the model")
        return None
    arguments = walk.arguments(node)
    if not any(isinstance(x, Value) for x in leaves_in(arguments.values())):
        return _without_tensors(walk, flow_of, node, arguments)
    flow = flow_of(node)
    if flow is None:
        walk.record.unknown.append(node)
        for weight in tensors_in(arguments.values()):
            if len(weight.shape) > 1 and walk.is_stored(weight):  # most likely a layer: its channels are counted
                walk.makes(weight.axes[0])
        return _pin_all(walk, arguments, "this operation has no rule")
    if node.name in walk.record.pinned_nodes:
        return _pin_all(walk, arguments, walk.record.pinned_nodes[node.name])
    if walk.replays:
        return flow(walk, **arguments)
    try:
        return flow(walk, **arguments)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
        why = f"its rule does not cover this case ({first_line(error, at_most=80)})"
        walk.record.pinned_nodes[node.name] = why
        return _pin_all(walk, arguments, why)


def _placeholder(walk: Walk, node: fx.Node) -> Any:
    owner = walk.record.graph.owners.get(node.name)
    if owner is None:
        value = node.meta.get("val")
        return fixed_value(shape_of(value)) if isinstance(value, Tensor) else value
    return walk.stored(owner, walk.record.graph.tensors[owner])


def _attribute(walk: Walk, node: fx.Node) -> Any:
    target: Any = walk.record.graph.module
    for part in str(node.target).split("."):
        target = getattr(target, part)
    return walk.stored(str(node.target), target) if isinstance(target, Tensor) else target


def _without_tensors(walk: Walk, flow_of: FlowOf, node: fx.Node, arguments: dict[str, Any]) -> Any:
    """What a node gives that reads no tensor: a new one (full, arange, rand), or a number."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        flow = flow_of(node)
        return flow(walk, **arguments) if flow else fixed_value(shape_of(value))
    if not isinstance(node.target, torch._ops.OpOverload) and callable(node.target):
        return node.target(*fx.map_arg(node.args, walk.record.values.__getitem__))
    return None


def _pin_all(walk: Walk, arguments: dict[str, Any], why: str) -> Any:
    for value in tensors_in(arguments.values()):
        walk.pin(value, why)
    return walk.fixed_outputs()
