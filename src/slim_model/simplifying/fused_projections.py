"""Fused projections, cut into parts that have channels of their own.

``linear -> view (.., 3, heads, width) -> permute -> unbind`` holds queries, keys and values in one weight. Seen as a
view, the three are one axis of nine parts that settles on ``width``: what q and k contract is then tied to what v hands
on. Written as a split of the linear's output, with the same views behind each piece, each has channels of its own.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.nodes import arguments_of, insert_call, shape_of
from slim_model.graph.stored_tensors import is_written
from slim_model.graph.varying_axes import varying_axes
from slim_model.ops import kind_of
from slim_model.simplifying.moves import move_labels, only_moves, size_of

aten = torch.ops.aten
_LONGEST = 8
_LARGEST = 2**25  # elements that are moved to check a chain; a larger one stays as it is


@dataclass(frozen=True, slots=True)
class _Split:
    """A value falls into ``count`` equal pieces along ``dim``; ``users[i]`` are the nodes that are piece i. ``drops``:
    a piece has no axis ``dim``."""

    dim: int
    count: int
    users: list[list[fx.Node]]
    drops: bool

    def of(self, value: Tensor) -> list[Tensor]:
        return list(value.unbind(self.dim)) if self.drops else list(value.chunk(self.count, self.dim))


@dataclass(frozen=True, slots=True)
class _PieceMove:
    """``target(piece, *rest, **named)`` does to one piece what ``node`` did to all."""

    node: fx.Node
    target: Any
    rest: tuple[Any, ...]
    named: dict[str, Any]

    def on(self, piece: Tensor) -> Tensor:
        result: Tensor = self.target(piece, *fx.map_arg(self.rest, size_of), **self.named)
        return result


def unfuse(nodes: fx.Graph) -> None:
    """Edit ``nodes``: cut fused projections before they are viewed."""
    fused = [(chain, cut) for node in nodes.nodes if only_moves(node) for chain, cut in _chains(node)]
    for chain, cut in fused:
        _split(nodes, chain, cut)


def _chains(start: fx.Node) -> Iterator[tuple[list[fx.Node], _Split]]:
    """Links from ``start``, where they begin, to a value that is cut up and not used otherwise."""
    source: Any = start.args[0]
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return
    if only_moves(source) and len(source.users) == 1:
        return
    chain = [start]
    while (cut := _cut(chain[-1])) is None:
        users = list(chain[-1].users)
        if len(chain) == _LONGEST or len(users) != 1 or not only_moves(users[0]) or users[0].args[0] is not chain[-1]:
            return
        chain.append(users[0])
    if math.prod(shape_of(source.meta["val"])) <= _LARGEST and not is_written(source):
        yield chain, cut


def _cut(end: fx.Node) -> _Split | None:
    """How the users of ``end`` cut it up, where every part of it is used and nothing else is."""
    users = list(end.users)
    shape = shape_of(end.meta["val"])
    kinds = {kind_of(user) for user in users}
    if kinds == {"select"}:
        return _cut_by_number(users, shape)
    if len(users) != 1 or not kinds <= {"unbind", "split"}:
        return None
    parts = users[0].meta["val"]
    if len(parts) < 2 or len({shape_of(part) for part in parts}) > 1:
        return None
    pieces = [[user for user in users[0].users if user.args[1] == i] for i in range(len(parts))]
    return _Split(arguments_of(users[0])["dim"] % len(shape), len(parts), pieces, "unbind" in kinds)


def _cut_by_number(users: list[fx.Node], shape: tuple[int, ...]) -> _Split | None:
    given = [arguments_of(user) for user in users]
    dim, *others = {arguments["dim"] % len(shape) for arguments in given}
    if others or not all(isinstance(arguments["index"], int) for arguments in given):
        return None
    numbers = [arguments["index"] % shape[dim] for arguments in given]
    pieces = [[user for user, n in zip(users, numbers, strict=True) if n == i] for i in range(shape[dim])]
    return _Split(dim, shape[dim], pieces, True) if shape[dim] > 1 and all(pieces) else None


def _split(nodes: fx.Graph, chain: list[fx.Node], cut: _Split) -> None:
    """Cut an axis of the source of ``chain`` where that gives the same pieces; else leave all as it is."""
    source: Any = chain[0].args[0]
    for axis, size in enumerate(source.meta["val"].shape):
        if axis > 0 and isinstance(size, int) and size % cut.count == 0:
            steps = _steps(chain, cut, axis)
            if steps and _same(chain, cut, axis, steps):
                _rewrite(nodes, cut, axis, steps)
                return


def _steps(chain: list[fx.Node], cut: _Split, axis: int) -> list[_PieceMove]:
    """The chain behind one of ``cut.count`` blocks of ``axis``; none where the blocks are not what is cut, or where
    they are as long as the axis that is cut, so that the cut says it all."""
    source: Any = chain[0].args[0]
    shape = shape_of(source.meta["val"])
    numbers = torch.arange(cut.count, dtype=torch.int32).repeat_interleave(shape[axis] // cut.count)
    blocks = numbers.view([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
    steps = []
    for node in chain:
        blocks = move_labels([node], blocks)
        where = varying_axes(blocks)
        step = _narrowed(node, where[0], cut.count) if len(where) == 1 else None
        if step is None:
            return []
        steps.append(step)
    return steps if where == [cut.dim] and blocks.shape[cut.dim] < shape[axis] else []


def _narrowed(node: fx.Node, axis: int, count: int) -> _PieceMove | None:
    """``node`` where ``axis`` of its result has one of ``count`` blocks."""
    kind = kind_of(node)
    if kind not in ("view", "unflatten"):
        return _PieceMove(node, node.target, node.args[1:], dict(node.kwargs))
    *before, given = node.args[1:]
    sizes: list[Any] = list(given)  # type: ignore[arg-type]
    place = axis - (before[0] % len(shape_of(node.args[0].meta["val"])) if before else 0)  # type: ignore
    if place in range(len(sizes)) and sizes[place] != -1:
        if not isinstance(sizes[place], int) or sizes[place] % count:
            return None
        sizes[place] //= count
    return _PieceMove(node, aten.reshape.default if kind == "view" else node.target, (*before, sizes), {})


def _same(chain: list[fx.Node], cut: _Split, axis: int, steps: list[_PieceMove]) -> bool:
    """Every position is moved both ways, and must end at the same place."""
    source: Any = chain[0].args[0]
    shape = shape_of(source.meta["val"])
    positions = torch.arange(math.prod(shape), dtype=torch.int32).view(shape)
    for expected, piece in zip(cut.of(move_labels(chain, positions)), positions.chunk(cut.count, axis), strict=True):
        for step in steps:
            piece = step.on(piece)
        if not torch.equal(expected, piece.select(cut.dim, 0) if cut.drops else piece):
            return False
    return True


def _rewrite(nodes: fx.Graph, cut: _Split, axis: int, steps: list[_PieceMove]) -> None:
    source: Any = steps[0].node.args[0]
    size = source.meta["val"].shape[axis] // cut.count
    last = steps[-1].node
    with nodes.inserting_before(last.next):
        pieces = insert_call(nodes, aten.split_with_sizes.default, (source, [size] * cut.count, axis), steps[0].node)
        for number, users in enumerate(cut.users):
            piece = insert_call(nodes, operator.getitem, (pieces, number), steps[0].node)
            for step in steps:
                piece = insert_call(nodes, step.target, (piece, *step.rest), step.node, step.named)
            if cut.drops:
                piece = insert_call(nodes, aten.select.int, (piece, cut.dim, 0), last)
            for user in users:
                user.replace_all_uses_with(piece)
    for node in [*(user for users in cut.users for user in users), *last.users, *reversed([s.node for s in steps])]:
        if not node._erased:
            nodes.erase_node(node)
