"""Facts about one node of a graph: its operator, its arguments by name, its shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of ``node`` as written in the graph, by the names in its operator's schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): a for i, a in enumerate(node.args)} | dict(node.kwargs)
    result = {}
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args) and not argument.kwarg_only:
            result[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            result[argument.name] = node.kwargs[argument.name]
        else:
            result[argument.name] = argument.default_value if argument.has_default_value() else None
    return result


def packet_of(node: fx.Node) -> torch._ops.OpOverloadPacket | None:
    """The operator of ``node`` whatever its overload: ``aten.add`` of ``aten.add.Tensor``; None where it calls none."""
    target = node.target
    return target.overloadpacket if isinstance(target, torch._ops.OpOverload) else None


def shape_of(value: Tensor) -> tuple[int, ...]:
    """Sizes of a traced value, symbolic ones at their example's size."""
    return tuple(map(at_example, value.shape))


def at_example(number: Any) -> Any:
    """A symbolic size at its example's size; any other value as it is. To compute with a symbolic one may fix it."""
    return number.node.hint if isinstance(number, torch.SymInt) and number.node.has_hint() else number


def insert_call(
    nodes: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node, named: dict[str, Any] | None = None
) -> fx.Node:
    """A new node at the place where ``nodes`` inserts, with its value, and with the lines and modules of ``like``."""
    named = named or {}
    node = nodes.call_function(target, args, named)
    values, _ = fx.map_arg((args, ()), lambda n: n.meta["val"])
    node.meta = dict(like.meta) | {"val": target(*values, **named)}
    return node
