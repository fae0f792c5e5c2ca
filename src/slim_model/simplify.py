"""simplify: a channel shuffle written as view, transpose, view becomes one look-up by a constant.

Seen as views, a shuffle (Zhang 2018) ties every block of channels to every other, and stacked shuffles tie nearly all
of them. Seen as a permutation it ties nothing: the small graph looks up the channels that are left.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.labels import shape_of
from slim_model.trace import Graph

aten = torch.ops.aten
_LINKS = {
    *(aten.view, aten.reshape, aten._unsafe_view, aten.transpose, aten.permute, aten.contiguous, aten.clone),
    *(aten.flatten, aten.unflatten, aten.swapaxes, aten.swapdims, aten.channel_shuffle, aten.movedim),
}
_LONGEST = 6


def simplify(graph: Graph) -> Graph:
    """The same graph with pure channel permutations as ``index_select``; computes exactly the same."""
    nodes = graph.module.graph
    found = []
    done: set[fx.Node] = set()
    for node in nodes.nodes:
        if node not in done and _links(node) and (hit := _permutation(node)):
            done.update(hit[0])
            found.append(hit)
    if not found:
        return graph
    owners, tensors = dict(graph.owners), dict(graph.tensors)
    last_stored = [n for n in nodes.nodes if n.op == "placeholder" and n.name in owners][-1]
    for number, (chain, axis, order) in enumerate(found):
        name = f"channel_order_{number}"
        with nodes.inserting_after(last_stored):
            constant = nodes.placeholder(name)
        value = chain[-1].meta["val"]
        constant.meta["val"] = value.fake_mode.from_tensor(order) if hasattr(value, "fake_mode") else order
        with nodes.inserting_after(chain[-1]):
            look_up = nodes.call_function(aten.index_select.default, (chain[0].args[0], axis, constant))
        look_up.meta = dict(chain[-1].meta)
        chain[-1].replace_all_uses_with(look_up)
        owners[constant.name], tensors[constant.name] = constant.name, order
    for chain, _, _ in found:
        for node in reversed(chain):
            nodes.erase_node(node)
    graph.module.recompile()
    return dataclasses.replace(graph, owners=owners, tensors=tensors)


def _links(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket in _LINKS


def _permutation(start: fx.Node) -> tuple[list[fx.Node], int, Tensor] | None:
    """The chain from ``start`` that permutes one axis of its input and nothing else: (nodes, axis, order)."""
    source = start.args[0]
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return None
    shape = shape_of(source.meta["val"])
    chain = [start]
    while len(chain) <= _LONGEST:
        end = chain[-1]
        whole = len(chain) > 2 or end.target is aten.channel_shuffle.default
        if whole and shape_of(end.meta["val"]) == shape and (order := _order(chain, shape)):
            return chain, *order
        users = list(end.users)
        if len(users) != 1 or not _links(users[0]) or users[0].args[0] is not end:
            return None
        chain.append(users[0])
    return None


def _order(chain: list[fx.Node], shape: tuple[int, ...]) -> tuple[int, Tensor] | None:
    found = None
    for axis, size in enumerate(shape):
        line = torch.arange(size, dtype=torch.int32).view([-1 if a == axis else 1 for a in range(len(shape))])
        moved = _through(chain, line.expand(shape))
        row = moved
        for other in range(len(shape) - 1, -1, -1):
            row = row if other == axis else row.select(other, 0)
        if not torch.equal(row.view_as(line).expand(shape), moved):
            return None
        if not torch.equal(row, line.reshape(-1)):
            if found is not None or axis == 0:
                return None
            found = axis, row.long().contiguous()
    return found


def _through(chain: list[fx.Node], labels: Tensor) -> Tensor:
    for node in chain:
        rest: Any = fx.map_arg(node.args[1:], _size)
        if node.target.overloadpacket in (aten.view, aten._unsafe_view):  # type: ignore[union-attr]
            labels = labels.reshape(*rest)
        else:
            labels = node.target(labels, *rest, **node.kwargs)  # type: ignore[operator]
    return labels


def _size(node: fx.Node) -> int:
    value = node.meta["val"]
    return value if isinstance(value, int) else int(value.node.hint)
