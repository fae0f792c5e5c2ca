"""Operators that make tensors from sizes alone."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from slim_model.graph.nodes import arguments_of
from slim_model.labels.values import Axis, Value
from slim_model.labels.walk import Walk
from slim_model.ops.cut import Cut
from slim_model.ops.movement import move, rewrite_sizes
from slim_model.ops.row import Op

aten = torch.ops.aten


def same_everywhere(walk: Walk, size: list[Any], **_: Any) -> Value:
    """zeros, ones, full: the value is the same everywhere, so that any position may go; the sizes are rewritten."""
    axes: list[Axis] = [walk.fresh(n, axis=i) if written else None for i, (n, written) in enumerate(_sizes(walk, size))]
    return walk.out(axes)


def _sizes(walk: Walk, size: list[Any]) -> list[tuple[int, bool]]:
    """Each size, and whether it is a number in the graph: one computed from an input's size is no channel axis."""
    return [(n, isinstance(given, int)) for n, given in zip(size, arguments_of(walk.node)["size"], strict=True)]


def uniform_like(walk: Walk, self: Value, size: list[Any], **_: Any) -> Value:
    return same_everywhere(walk, size)


def expand(walk: Walk, self: Value, size: list[Any], **rest: Any) -> Any:
    """expand: an axis of one that is repeated is uniform, so that any of its positions may go."""
    moved = move(walk, self=self, size=size, **rest)
    missing = len(size) - len(self.shape)
    repeated = [
        i
        for i, (_, written) in enumerate(_sizes(walk, size))
        if written and moved.shape[i] > 1 and (i < missing or self.shape[i - missing] == 1)
    ]
    axes = [walk.fresh(moved.shape[i], axis=i) if i in repeated else a for i, a in enumerate(moved.axes)]
    return walk.out(axes)


def repeat(walk: Walk, self: Value, repeats: list[Any]) -> Any:
    """repeat: an axis of one that is repeated is uniform, as in ``expand``."""
    moved = move(walk, self=self, repeats=repeats)
    uniform = [
        isinstance(times, int) and times > 1 and size == 1
        for times, size in zip(arguments_of(walk.node)["repeats"], _from_the_right(self, len(repeats)), strict=True)
    ]
    return walk.out([walk.fresh(n, axis=i) if uniform[i] else moved.axes[i] for i, n in enumerate(moved.shape)])


def repeat_less(cut: Cut, node: fx.Node) -> dict[str, Any]:
    arguments = arguments_of(node)
    repeats, value = list(arguments["repeats"]), cut.values[node]
    for i, size in enumerate(_from_the_right(cut.values[arguments["self"]], len(repeats))):
        if size == 1:
            repeats[i] = cut.count(value.axes[i], repeats[i])
    return {"repeats": repeats}


def _from_the_right(value: Value, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(value.shape)) + value.shape


def sequence(walk: Walk, **_: Any) -> Value:
    rank: int = walk.node.meta["val"].dim()
    return walk.out([None] * rank)


def item(walk: Walk, values: Any, index: int) -> Any:
    return values[index]


def size(walk: Walk, self: Value, dim: int) -> int:
    """sym_size: a size that the graph computes with is that of the example."""
    return self.shape[dim]


_UNIFORM = Op(same_everywhere, rewrite=rewrite_sizes())
_UNIFORM_LIKE = Op(uniform_like, rewrite=rewrite_sizes())

ROWS: dict[Any, Op] = {
    aten.sym_size: Op(size),
    operator.getitem: Op(lambda walk, **arguments: item(walk, *arguments.values())),
    **dict.fromkeys((aten.zeros, aten.ones, aten.full, aten.empty), _UNIFORM),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty), _UNIFORM_LIKE),
    **dict.fromkeys((aten.expand, aten.broadcast_to), Op(expand, rewrite=rewrite_sizes(), effect="moves")),
    aten.repeat: Op(repeat, rewrite=repeat_less, effect="moves"),
    **dict.fromkeys((aten.arange, aten.linspace, aten.rand, aten.randn, aten.eye, aten.scalar_tensor), Op(sequence)),
}
