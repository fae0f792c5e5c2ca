"""Chains of nodes that only move values."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.nodes import arguments_of
from slim_model.ops import kind_of, row_of

aten = torch.ops.aten


def only_moves(node: fx.Node) -> bool:
    """Whether ``node`` moves all values of its one operand, and does nothing else."""
    row, target = row_of(node.target), node.target
    if row is None or not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return row.effect == "rearranges" or row.kind == "copy"


def move_labels(chain: list[fx.Node], labels: Tensor) -> Tensor:
    """Move ``labels`` through a chain of nodes, as these move values."""
    for node in chain:
        rest: Any = fx.map_arg(node.args[1:], size_of)
        target: Any = torch.reshape if kind_of(node) == "view" else node.target  # labels lie in memory otherwise
        labels = target(labels, *rest, **node.kwargs)
    return labels


def size_of(node: fx.Node) -> int:
    """A size that is computed in the graph, at the example's size."""
    value = node.meta["val"]
    return value if isinstance(value, int) else int(value.node.hint)


def is_written(node: fx.Node) -> bool:
    """Whether some in-place operator writes to ``node`` or to a view of it."""
    for user in node.users:
        target = user.target
        if isinstance(target, torch._ops.OpOverload):
            is_view = any(result.alias_info for result in target._schema.returns)
            if (writes(target) and node in _written(user)) or (is_view and is_written(user)):
                return True
        elif target is operator.getitem and is_written(user):
            return True
    return False


def _written(node: fx.Node) -> list[Any]:
    """The arguments that ``node`` writes to."""
    given, schema = arguments_of(node), node.target._schema  # type: ignore[union-attr]
    return [given[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def writes(target: torch._ops.OpOverload) -> bool:
    """Whether the operator writes to one of its arguments."""
    return target._schema.is_mutable and target is not aten.detach_.default
