"""Layers that read with weights of zero are left out of what is written: they give a constant, whatever comes in.

A residual block of which all channels are gone is such a layer at the end of its branch. What it gives, through the
BatchNorm behind it, is a stored constant that is added to the shortcut; all that only the branch needed goes with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.cutting.resize import resize
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of, shape_of
from slim_model.ops import kind_of, linear_form_of

aten = torch.ops.aten


def leave_out_silent(graph: Graph) -> Graph:
    """``graph`` with a stored constant in place of each such layer that only enters sums with whole values."""
    if not any(_is_silent(graph, node) for node in graph.nodes):
        return graph
    result = resize(graph)
    ends = {node.name: constant for node in result.nodes if (constant := _constant_of(result, node)) is not None}
    nodes, tensors, owners = {node.name: node for node in result.nodes}, dict(graph.tensors), dict(graph.owners)
    first = next(node for node in result.nodes if node.op == "placeholder")
    for number, (name, constant) in enumerate(ends.items()):
        end, owner = _end_of(nodes[name]), f"silent_{number}"
        with result.module.graph.inserting_before(first):
            stored = result.module.graph.placeholder(owner)
        stored.meta["val"] = constant
        tensors[owner], owners[stored.name] = constant, owner
        for user in list(end.users):
            _out_of_place(user)
            user.replace_input_with(end, stored)
        _remove_unread(result.module.graph, end, owners)
    left = {node.name for node in result.nodes}
    owners = {node: owner for node, owner in owners.items() if node in left}
    tensors = {owner: tensor for owner, tensor in tensors.items() if owner in owners.values()}
    return dataclasses.replace(result, tensors=tensors, owners=owners)


def _is_silent(graph: Graph, node: fx.Node) -> bool:
    """A layer whose stored weights are all zero."""
    form = linear_form_of(node) if node.op == "call_function" else None
    if form is None or not isinstance(node.meta.get("val"), Tensor) or form.weight.name not in graph.owners:
        return False
    weight = graph.tensors[graph.owners[form.weight.name]]
    return weight.is_floating_point() and not weight.any()


def _constant_of(graph: Graph, node: fx.Node) -> Tensor | None:
    """What ``node`` gives, through the BatchNorm behind it, where it is a silent layer that enters nothing but sums."""
    form = linear_form_of(node) if _is_silent(graph, node) else None
    if form is None:
        return None
    norm = _behind_norm(node)
    if not enters_sums(node):
        return None
    shape = shape_of(node.meta["val"])
    axis = 1 if form.window else len(shape) - 1
    bias = None if form.bias is None else graph.tensors[graph.owners[form.bias.name]]
    weight = graph.tensors[graph.owners[form.weight.name]]
    value = (weight.new_zeros(shape[axis]) if bias is None else bias).detach()
    value = value.view([-1 if i == axis else 1 for i in range(len(shape))])
    return value.clone() if norm is node else _normed(graph, norm, node, value)


def enters_sums(node: fx.Node) -> bool:
    """What the layer ``node`` gives is added to whole values and goes nowhere else, so that a constant can stand for
    it."""
    end = _end_of(node)
    return bool(end.users) and all(_is_sum(user, end) for user in end.users)


def _end_of(node: fx.Node) -> fx.Node:
    """The last value that is the layer's own: through its BatchNorm, and dropout, which does nothing here."""
    end = _behind_norm(node)
    while len(end.users) == 1 and kind_of(user := next(iter(end.users))) == "dropout":
        end = user
    return end


def _behind_norm(node: fx.Node) -> fx.Node:
    """The BatchNorm by stored statistics that alone reads ``node``, else itself."""
    (user,) = node.users if len(node.users) == 1 else (None,)
    if user is None or kind_of(user) != "batch_norm" or not isinstance(user.meta.get("val"), Tensor):
        return node
    given = arguments_of(user)
    return user if given["running_mean"] is not None and not given["training"] else node


def _is_sum(user: fx.Node, end: fx.Node) -> bool:
    """An addition with a value that has the shape of the sum already."""
    if kind_of(user) != "addition" or not isinstance(user.meta.get("val"), Tensor):
        return False
    given = arguments_of(user)
    others = [x for x in (given["self"], given["other"]) if x is not end and isinstance(x, fx.Node)]
    return [shape_of(x.meta["val"]) for x in others] == [shape_of(user.meta["val"])] and others[0].op == "call_function"


def _normed(graph: Graph, norm: fx.Node, node: fx.Node, value: Tensor) -> Tensor:
    def stored(read: Any) -> Any:
        return value if read is node else graph.tensors[graph.owners[read.name]].detach()

    args, kwargs = fx.map_arg((norm.args, norm.kwargs), stored)
    with torch.no_grad():
        result: Tensor = norm.target(*args, **kwargs)  # type: ignore[operator]
    return result


def _out_of_place(user: fx.Node) -> None:
    if user.target is aten.add_.Tensor:  # else it would write to what is stored
        user.target = aten.add.Tensor


def _remove_unread(graph: fx.Graph, node: fx.Node, owners: dict[str, str]) -> None:
    """``node`` and whatever only it needed. An operator that writes in place goes where what it writes to is read by
    nothing else."""
    if node.users or (node.op == "placeholder" and node.name not in owners):
        return
    schema, read = getattr(node.target, "_schema", None), node.all_input_nodes
    written = node.args[0] if schema is not None and schema.is_mutable else None
    if isinstance(written, fx.Node) and (len(written.users) > 1 or written.op == "placeholder"):
        return
    graph.erase_node(node)
    for other in read:
        _remove_unread(graph, other, owners)
