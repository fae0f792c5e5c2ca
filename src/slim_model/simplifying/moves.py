"""Chains of nodes that only move values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

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
