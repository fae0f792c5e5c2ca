"""Chains of nodes that only move values."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_LINKS = {
    *(aten.view, aten.reshape, aten._unsafe_view, aten.transpose, aten.permute, aten.contiguous, aten.clone),
    *(aten.flatten, aten.unflatten, aten.swapaxes, aten.swapdims, aten.channel_shuffle, aten.movedim),
    *(aten.unsqueeze, aten.squeeze),
}


def links(node: fx.Node) -> bool:
    """Whether ``node`` moves all values of its one operand, and does nothing else."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.overloadpacket in _LINKS
        and target not in (aten.squeeze.default, aten.view.dtype)  # sizes say which axes go; bytes are read anew
    )


def through(chain: list[fx.Node], labels: Tensor) -> Tensor:
    """Execute the links of ``chain`` on ``labels``."""
    for node in chain:
        rest: Any = fx.map_arg(node.args[1:], size_of)
        if node.target.overloadpacket in (aten.view, aten._unsafe_view):  # type: ignore[union-attr]
            labels = labels.reshape(*rest)
        else:
            labels = node.target(labels, *rest, **node.kwargs)  # type: ignore[operator]
    return labels


def size_of(node: fx.Node) -> int:
    value = node.meta["val"]
    return value if isinstance(value, int) else int(value.node.hint)


def is_written(node: fx.Node) -> bool:
    """Some in-place operator writes to ``node`` or to a view of it."""
    for user in node.users:
        target = user.target
        if isinstance(target, torch._ops.OpOverload):
            is_view = any(result.alias_info for result in target._schema.returns)
            if writes(target) or (is_view and is_written(user)):
                return True
        elif target is operator.getitem and is_written(user):
            return True
    return False


def writes(target: torch._ops.OpOverload) -> bool:
    return target._schema.is_mutable and target is not aten.detach_.default
