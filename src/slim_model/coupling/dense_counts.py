"""Statistics over channels, written so that a removed channel counts as the zero that it was.

``x.mean(1)`` in a smaller graph would divide by the number of channels that are left. A dead channel is zero for every
input: it adds nothing to the sum, and counts in the number. So a mean becomes the sum over the dense number of
channels; a variance gets the square of the mean for a channel that is gone; a maximum is not below zero where one is
gone. In the dense graph each is what it was, and in the small one sums alone follow what is cut.

Norms keep their definition: there the statistic goes back to the channels that it is taken of (subtracted, or as a
divisor), as in a LayerNorm written by hand. They take it over the channels that are left, as PyTorch's own norms do.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of, insert_call
from slim_model.graph.stored_tensors import add_placeholder
from slim_model.labels.values import FIXED, Value
from slim_model.ops import kind_of, row_of
from slim_model.ops.along import COUNTED, FLOORED, dims_of

aten = torch.ops.aten
_EXTREMES = ("maximum", "minimum")
_SPREADS = ("variance", "deviation")
_STATISTICS = ("mean", *_SPREADS, *_EXTREMES)
_INSTEAD = "instead_of"
"""Marks what reads the channels now: the name of the statistic in whose place it stands."""


def keep_dense_counts(graph: Graph) -> Graph:
    """``graph``, or a copy in which statistics over channels that may go count the dense model's channels."""
    if not any(kind_of(node) in _STATISTICS for node in graph.nodes):
        return graph
    coupling = couple(graph)
    names = [node.name for node in graph.nodes if _counts_channels(coupling, node) and not feeds_a_norm(coupling, node)]
    if not names:
        return graph
    if graph.decisions:  # its own class is what is handed out, and would count what is left
        graph = graph.copy()
        for node in graph.nodes:
            node.meta |= {COUNTED: True} if node.name in names else {}
        return graph
    # A maximum pins what it looks at, so what is free is known once all are written. Where something else pins the
    # channels, too, nothing is gained by writing it otherwise.
    tried = couple(_written(graph, coupling, names))
    free = {node.meta[_INSTEAD] for node in tried.graph.nodes if _INSTEAD in node.meta and _is_free(tried, node)}
    return _written(graph, coupling, [name for name in names if name in free]) if free else graph


def _counts_channels(coupling: Coupling, node: fx.Node) -> bool:
    """A statistic over channels that can be written otherwise."""
    kind = kind_of(node)
    channels = _channel_axes(coupling, node) if kind in _STATISTICS else []
    if not channels or node.name in coupling.graph.decisions or FLOORED in node.meta:
        return False
    if kind in _EXTREMES and isinstance(node.meta["val"], list | tuple) and not _reads_only(node, 0):
        return False
    counted = dims_of(coupling.labelled.values[node.all_input_nodes[0]], arguments_of(node).get("dim"))
    shape = node.all_input_nodes[0].meta["val"].shape
    return all(isinstance(shape[axis], int) for axis in (counted if kind in _SPREADS else channels))


def _reads_only(node: fx.Node, index: int) -> bool:
    return all(user.target is operator.getitem and (user.args[1] == index or not user.users) for user in node.users)


def _channel_axes(coupling: Coupling, node: fx.Node) -> list[int]:
    """The axes that are reduced and hold channels."""
    source = coupling.labelled.values[node.all_input_nodes[0]] if node.all_input_nodes else None
    if not isinstance(source, Value) or "other" in arguments_of(node):
        return []
    return [axis for axis in dims_of(source, arguments_of(node).get("dim")) if source.axes[axis] is not None]


def _is_free(coupling: Coupling, node: fx.Node) -> bool:
    source: Value = coupling.labelled.values[node.all_input_nodes[0]]
    axes = (source.axes[axis] for axis in dims_of(source, arguments_of(node)["dim"]))
    return any((coupling.component[axis.numpy()] != FIXED).any() for axis in axes if axis is not None)


# -- norms ----------------------------------------------------------------------------------------------------------

_ARITHMETIC = ("addition", "subtraction", "division", "inverse", "power", "arithmetic")


def feeds_a_norm(coupling: Coupling, node: fx.Node) -> bool:
    """Whether the statistic that ``node`` is goes back to the channels that it is taken of: subtracted from them, or as
    their divisor, by arithmetic alone (no layer, no sigmoid on the way)."""
    widths = {len(axis) for axis in _labelled(coupling, node.all_input_nodes[0])}
    pending = [(user, node, False) for user in node.users]
    seen: set[tuple[fx.Node, fx.Node, bool]] = set()
    while pending:
        step = user, given, inverse = pending.pop()
        if step in seen:
            continue
        seen.add(step)
        # Any layer or activation on the way makes it another value: then it is no statistic any more.
        row, kind = row_of(user.target), kind_of(user)
        if row is None or not (kind in _ARITHMETIC or row.only_moves):
            if user.target is operator.getitem:
                pending += [(after, user, inverse) for after in user.users]
            continue
        divides = kind == "division" and len(user.args) > 1 and user.args[1] is given
        raised = kind == "power" and isinstance(user.args[1], int | float) and user.args[1] < 0
        # Two divisions undo each other.
        inverse = inverse != (divides or raised or kind == "inverse")
        others = [n for n in user.all_input_nodes if n is not given]
        back = any(len(axis) in widths for n in others for axis in _labelled(coupling, n))
        if back and (kind == "subtraction" or inverse):
            return True
        if not back:
            pending += [(after, user, inverse) for after in user.users]
    return False


def _labelled(coupling: Coupling, node: fx.Node) -> list[Tensor]:
    value = coupling.labelled.values[node]
    return [axis for axis in value.axes if axis is not None] if isinstance(value, Value) else []


# -- the same by sums -----------------------------------------------------------------------------------------------


def _written(graph: Graph, coupling: Coupling, names: Iterable[str]) -> Graph:
    """A copy of ``graph`` in which the nodes called ``names`` are written by sums."""
    axes = {node.name: _channel_axes(coupling, node) for node in coupling.graph.nodes if node.name in names}
    writer = _Writer(graph.copy())
    for node in [n for n in writer.graph.nodes if n.name in axes]:
        writer.write(node, axes[node.name])
    writer.graph.module.recompile()
    owners = writer.graph.owners | {name: name for name in writer.stored}
    return dataclasses.replace(writer.graph, owners=owners, tensors=writer.graph.tensors | writer.stored)


class _Writer:
    """Writes nodes of ``graph`` by sums; ``stored`` are tensors that are added to it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stored: dict[str, Tensor] = {}
        self._node: fx.Node

    def write(self, node: fx.Node, channels: list[int]) -> None:
        """Put the same value in the place of ``node``; ``channels`` are its reduced axes that hold channels."""
        self._node = node
        kind, given = kind_of(node), arguments_of(node)
        x = node.all_input_nodes[0]
        rank = x.meta["val"].dim()
        dims = [d % rank for d in _dims(given, rank)]
        keepdim = bool(given.get("keepdim"))
        with self.graph.module.graph.inserting_before(node):
            if kind == "mean":
                self._replace(node, self._mean(x, channels, dims, keepdim, given.get("dtype")))
            elif kind in _SPREADS:
                self._write_spread(node, x, channels, dims, keepdim)
            else:
                extreme = self._extreme(node, x, channels)
                for user in list(node.users) if isinstance(node.meta["val"], list | tuple) else [node]:
                    self._replace(user, extreme)
        if not node._erased and not node.users:
            self.graph.module.graph.erase_node(node)

    def _replace(self, node: fx.Node, made: fx.Node) -> None:
        node.replace_all_uses_with(made)
        self.graph.module.graph.erase_node(node)

    def _call(self, target: Any, *args: Any, **named: Any) -> fx.Node:
        return insert_call(self.graph.module.graph, target, args, self._node, named)

    def _mean(self, x: fx.Node, channels: list[int], dims: list[int], keepdim: bool, dtype: Any = None) -> fx.Node:
        """The sum over channels, by the dense number of them; the mean over the other axes stays a mean."""
        named = {} if dtype is None else {"dtype": dtype}
        whole = set(dims) == set(channels)
        total = self._call(aten.sum.dim_IntList, x, channels, keepdim or not whole, **named)
        total.meta[_INSTEAD] = self._node.name
        if not whole:
            total = self._call(aten.mean.dim, total, dims, keepdim)
        return self._call(aten.mul.Tensor, total, 1 / self._count(x, channels))

    def _write_spread(self, node: fx.Node, x: fx.Node, channels: list[int], dims: list[int], keepdim: bool) -> None:
        """``(sum (x - m)^2 + gone m^2) / (n - correction)``: a channel that is gone lies m from the mean."""
        given, count = arguments_of(node), self._count(x, dims)
        correction = given.get("correction", 1)
        if given.get("unbiased") is False:
            correction = 0
        correction = 1 if correction is None else correction
        mean = self._mean(x, channels, dims, True)
        zeros, gone = self._gone(x, channels)
        apart = self._call(aten.sub.Tensor, x, mean)
        squares = self._call(aten.mul.Tensor, apart, apart)
        # The sum ties the zeros to the channels: they are cut with them, and tell how many are gone.
        for zero in zeros:
            squares = self._call(aten.add.Tensor, squares, zero)
        here = self._call(aten.sum.dim_IntList, squares, dims, True)
        square = self._call(aten.mul.Tensor, mean, mean)
        there = self._call(aten.mul.Tensor, square, gone)
        # Each channel that is gone stands for all positions over which the spread is taken.
        if others := count // self._count(x, channels) - 1:
            there = self._call(aten.mul.Tensor, there, float(others + 1))
        spread = self._call(aten.mul.Tensor, self._call(aten.add.Tensor, here, there), 1 / max(count - correction, 0))
        if kind_of(node) == "deviation":
            spread = self._call(aten.sqrt.default, spread)
        if not keepdim:
            mean, spread = (self._call(aten.squeeze.dims, value, dims) for value in (mean, spread))
        if isinstance(node.meta["val"], Tensor):
            self._replace(node, spread)
        else:
            for user in list(node.users):
                self._replace(user, (spread, mean)[user.args[1]])  # type: ignore[index]

    def _extreme(self, node: fx.Node, x: fx.Node, channels: list[int]) -> fx.Node:
        """At least 0 (at most, for a minimum) where a channel is gone: ``log(min(gone, 1))`` is -infinity before."""
        zeros, gone = self._gone(x, channels)
        for zero in zeros:
            x = self._call(aten.add.Tensor, x, zero)
        extreme = self._call(node.target, x, *node.args[1:], **node.kwargs)
        extreme.meta |= {FLOORED: True, _INSTEAD: node.name}
        if isinstance(node.meta["val"], list | tuple):
            extreme = self._call(operator.getitem, extreme, 0)
        least = self._call(aten.log.default, self._call(aten.clamp_max.default, gone, 1))
        if kind_of(node) == "maximum":
            return self._call(aten.maximum.default, extreme, least)
        return self._call(aten.minimum.default, extreme, self._call(aten.neg.default, least))

    def _gone(self, x: fx.Node, channels: list[int]) -> tuple[list[fx.Node], fx.Node]:
        """Zeros to be added to ``x``, which lose the channels that it loses, and how many positions are lost."""
        zeros, left = [], None
        value = x.meta["val"]
        for axis in channels:
            name = f"channels_{len(self.stored)}"
            while name in self.graph.tensors:
                name += "_"
            self.stored[name] = torch.zeros([value.shape[axis], *[1] * (value.dim() - 1 - axis)], dtype=value.dtype)
            zeros.append(add_placeholder(self.graph, name, self.stored[name], x))
            here = self._call(aten.sum.default, self._call(aten.add.Tensor, zeros[-1], 1))
            left = here if left is None else self._call(aten.mul.Tensor, left, here)
        return zeros, self._call(aten.rsub.Scalar, left, self._count(x, channels))

    def _count(self, x: fx.Node, axes: Iterable[int]) -> int:
        return math.prod(x.meta["val"].shape[axis] for axis in axes)


def _dims(given: dict[str, Any], rank: int) -> list[int]:
    dims = given.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return [dims] if isinstance(dims, int) else list(dims)
