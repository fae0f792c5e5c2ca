"""Look-ups and writes by constant indices, written so that channels can be followed through them.

``index_select`` by a stored tensor of its own follows channels: the small graph looks up those that are left. Other
spellings (``x[:, index]`` with an index that is computed, used twice, or of several axes; ``gather`` by a row that is
expanded; ``index_put``) are the same look-up, written otherwise:

=========================================  ================================================================
``x[:, index]``, ``gather(x, 1, row)``     ``index_select(x, 1, index.flatten())``, then unflattened
``x[:, rows, columns]``                    the same of ``x.flatten(1, 2)``
``x[:, index] = y``                        ``index_select(cat(x, y), 1, order)``
``x[:, index] = 0.5``                      ``masked_fill(x, mask, 0.5)``
=========================================  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of, insert_call, packet_of
from slim_model.graph.stored_tensors import add_placeholder, computed_from, cone_of, values_of, writes
from slim_model.ops import row_of
from slim_model.ops.movement import stored_alone

aten = torch.ops.aten
_LARGEST = 2**20  # positions of an index
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)


def write_as_look_ups(graph: Graph) -> tuple[dict[str, Tensor], list[fx.Node]]:
    """Edit ``graph``: write its look-ups and writes by constants as above. Returns the tensors to be stored, by name,
    and the nodes that may be read no more."""
    places = [node for node in graph.nodes if packet_of(node) in _FORMS]
    if not places or graph.decisions:  # of a graph that follows one run the model's own class is handed out
        return {}, []
    known = dict.fromkeys(computed_from(graph, lambda n: n.op == "get_attr" or n.name in graph.owners))
    rewriter = _Rewriter(graph, known)
    for node in places:
        if node.args and node.args[0] not in known:  # else it is a look-up in weights, which are no channels
            _FORMS[packet_of(node)](rewriter, node)
    return rewriter.stored, [node for node in known if node.op == "call_function"]


@dataclass(slots=True)
class _Rewriter:
    """``known``: the nodes whose values follow from stored tensors alone. ``stored``: what is added to them."""

    graph: Graph
    known: dict[fx.Node, None]
    stored: dict[str, Tensor] = field(default_factory=dict)

    def constant(self, node: Any) -> Tensor | None:
        """Positions that ``node`` always gives; None where it may give others."""
        if not isinstance(node, fx.Node) or node not in self.known or node.meta["val"].dtype not in _WHOLE:
            return None
        if not 0 < node.meta["val"].numel() <= _LARGEST:
            return None
        cone = cone_of(node)
        value: Tensor = values_of(self.graph, [n for n in self.known if n in cone])[node]
        return value.long()

    def row(self, node: Any, dim: int, like: Tensor) -> Tensor | None:
        """The positions along ``dim`` that an index names which is the same at every other place, of which it has as
        many as ``like``."""
        whole = node.meta["val"].shape
        while packet_of(node) in (aten.expand, aten.broadcast_to, aten.expand_as):
            node = node.args[0]
        value = self.constant(node)
        if value is None or len(whole) != like.dim():
            return None
        value = value.reshape((1,) * (len(whole) - value.dim()) + value.shape)
        if any(str(n) != str(m) for i, (n, m) in enumerate(zip(whole, like.shape, strict=True)) if i != dim):
            return None
        rows = value.movedim(dim, 0).flatten(1) if value.dim() > 1 else value[:, None]
        return rows[:, 0].contiguous() if bool((rows == rows[:, :1]).all()) else None

    def keep(self, name: str, value: Tensor, like: fx.Node) -> fx.Node:
        node = add_placeholder(self.graph, f"{name}_{len(self.stored)}", value, like)
        self.stored[node.name] = value
        return node

    def call(self, before: fx.Node, target: Any, *args: Any) -> fx.Node:
        nodes = self.graph.module.graph
        with nodes.inserting_before(before):
            return insert_call(nodes, target, args, before)

    def replace(self, node: fx.Node, new: fx.Node) -> None:
        node.replace_all_uses_with(new)
        self.graph.module.graph.erase_node(node)

    def look_up(self, node: fx.Node, source: fx.Node, dim: int, positions: Tensor) -> None:
        """Put ``source[positions]`` along ``dim`` in the place of ``node``."""
        size = source.meta["val"].shape[dim]
        constant = self.keep("positions", positions.reshape(-1).remainder(size).contiguous(), source)
        looked_up = self.call(node, aten.index_select.default, source, dim, constant)
        if positions.dim() > 1:
            looked_up = self.call(node, aten.unflatten.int, looked_up, dim, list(positions.shape))
        self.replace(node, looked_up)


# -- look-ups ---------------------------------------------------------------------------------------------------------


def _index(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    source, indices = given["self"], given["indices"]
    addressed = [i for i, n in enumerate(indices) if n is not None]
    values = [rewriter.constant(indices[i]) for i in addressed]
    positions = [value for value in values if value is not None and value.dim()]
    first, last = addressed[0], addressed[-1]
    sizes = source.meta["val"].shape[first : last + 1]
    adjacent = addressed == list(range(first, last + 1))
    if len(positions) < len(values) or not adjacent or not all(isinstance(n, int) for n in sizes):
        return
    if len(positions) == 1:
        if positions[0].dim() == 1 and stored_alone(indices[first]):
            return
        rewriter.look_up(node, source, first, positions[0])
        return
    flat = torch.zeros((), dtype=torch.long)
    for size, value in zip(sizes, positions, strict=True):
        flat = flat * size + value.remainder(size)
    rewriter.look_up(node, rewriter.call(node, aten.flatten.using_ints, source, first, last), first, flat)


def _select(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    source, value = given["self"], rewriter.constant(given["index"])
    if value is not None and value.dim() == 1 and not stored_alone(given["index"]):
        rewriter.look_up(node, source, given["dim"] % source.meta["val"].dim(), value)


def _gather(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    source, dim = given["self"], given["dim"]
    like = source.meta["val"]
    if dim is None or not like.dim() or not isinstance(like.shape[dim], int):
        return
    dim %= like.dim()
    index = given.get("indices", given.get("index"))
    if packet_of(node) is aten.take_along_dim:  # its index is broadcast
        value = rewriter.constant(index)
        alone = value is not None and value.dim() == like.dim() and value.numel() == value.shape[dim]
        row = value.reshape(-1) if alone and value is not None else None
    else:
        row = rewriter.row(index, dim, like)
    if row is not None:
        rewriter.look_up(node, source, dim, row)


# -- writes -----------------------------------------------------------------------------------------------------------


def _put(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    addressed = [i for i, n in enumerate(given["indices"]) if n is not None]
    if len(addressed) == 1:
        positions = rewriter.constant(given["indices"][addressed[0]])
        _write(rewriter, node, addressed[0], positions, given["values"], adds=given["accumulate"])


def _copy(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    _write(rewriter, node, given["dim"], rewriter.constant(given["index"]), given["source"])


def _add(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    if given["alpha"] == 1:
        _write(rewriter, node, given["dim"], rewriter.constant(given["index"]), given["source"], adds=True)


def _fill(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    _write(rewriter, node, given["dim"], rewriter.constant(given["index"]), given["value"])


def _scatter(rewriter: _Rewriter, node: fx.Node) -> None:
    given = arguments_of(node)
    like = given["self"].meta["val"]
    if given.get("reduce") is None and like.dim():
        dim, adds = given["dim"] % like.dim(), packet_of(node) in (aten.scatter_add, aten.scatter_add_)
        row = rewriter.row(given["index"], dim, like)
        _write(rewriter, node, dim, row, given.get("src", given.get("value")), adds=adds)


def _write(
    rewriter: _Rewriter, node: fx.Node, dim: int, positions: Tensor | None, value: Any, *, adds: bool = False
) -> None:
    """Write ``node``, which puts ``value`` at ``positions`` along ``dim``, or adds it, as a look-up or a choice."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    while _sees_all(source) and len(source.users) == 1:  # x[:, index] = y writes to x[:]
        source = source.all_input_nodes[0]
    whole = source.meta["val"]
    if positions is None or positions.dim() != 1 or not whole.dim():
        return
    dim %= whole.dim()
    size = whole.shape[dim]
    if not isinstance(size, int) or (_is_write(node) and not _is_alone(source, node)):
        return
    positions = positions.remainder(size)
    if len(positions.unique()) < len(positions):  # which of two writes is last is not defined
        return
    given = value.meta["val"] if isinstance(value, fx.Node) else None
    if given is None or not given.dim():
        if not adds and (given is None or given.dtype == whole.dtype):
            mask = torch.zeros(size, dtype=torch.bool).index_fill(0, positions, True)
            mask = mask.view(-1, *[1] * (whole.dim() - 1 - dim))
            target = aten.masked_fill.Scalar if given is None else aten.masked_fill.Tensor
            _written(rewriter, node, source, target, source, rewriter.keep("written", mask, source), value)
        return
    expected = [len(positions) if i == dim else n for i, n in enumerate(whole.shape)]
    if [str(n) for n in given.shape] != [str(n) for n in expected] or given.dtype != whole.dtype:
        return
    if adds:
        there = rewriter.call(
            node, aten.index_select.default, source, dim, rewriter.keep("positions", positions, source)
        )
        value = rewriter.call(node, aten.add.Tensor, there, value)
    order = torch.arange(size).index_put((positions,), size + torch.arange(len(positions)))
    joined = rewriter.call(node, aten.cat.default, [source, value], dim)
    constant = rewriter.keep("order", order, source)
    _written(rewriter, node, source, aten.index_select.default, joined, dim, constant)


def _written(rewriter: _Rewriter, node: fx.Node, source: fx.Node, target: Any, *args: Any) -> None:
    """Put the call in the place of ``node``, and of ``source`` where that is written to and read behind it."""
    new = rewriter.call(node, target, *args)
    behind = False
    for other in list(source.graph.nodes) if _is_write(node) else ():
        if behind and source in other.all_input_nodes:
            other.replace_input_with(source, new)
        behind = behind or other is node
    rewriter.replace(node, new)


def _is_write(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and writes(node.target)


def _sees_all(node: fx.Node) -> bool:
    """``node`` is a view of all that its operand has, in its order."""
    if packet_of(node) is aten.alias:
        return True
    if packet_of(node) is not aten.slice:
        return False
    given = arguments_of(node)
    size = given["self"].meta["val"].shape[given["dim"]]
    end = given["end"]
    whole = end is None or (isinstance(end, int) and (end >= 2**31 if not isinstance(size, int) else end >= size))
    return given["start"] in (None, 0) and given["step"] == 1 and whole


def _is_alone(source: fx.Node, node: fx.Node) -> bool:
    """No other value shares the memory of ``source`` when ``node`` writes to it."""
    before = True
    for other in source.graph.nodes:
        before = before and other is not node
        if before and source in other.all_input_nodes and _may_share(other) and node not in _readers(other):
            return False
    while source.op == "call_function" and _may_share(source):  # what it is a view of is read by nothing else
        operands = source.all_input_nodes
        if len(operands) != 1 or len(operands[0].users) > 1:
            return False
        source = operands[0]
    return source.op == "call_function"


def _readers(view: fx.Node) -> set[fx.Node]:
    """What reads ``view``, where it sees all of its operand; through views that do so, too."""
    if not _sees_all(view) or len(view.users) != 1:
        return set()
    (user,) = view.users
    return {user} | _readers(user)


def _may_share(node: fx.Node) -> bool:
    """Whether what ``node`` gives may lie in the memory of its operand."""
    target, row = node.target, row_of(node.target)
    if not isinstance(target, torch._ops.OpOverload):
        return True
    return (
        any(r.alias_info for r in target._schema.returns) or writes(target) or (row is not None and row.returns_operand)
    )


_FORMS: dict[Any, Callable[[_Rewriter, fx.Node], None]] = {
    aten.index: _index,
    aten.index_select: _select,
    **dict.fromkeys((aten.gather, aten.take_along_dim), _gather),
    **dict.fromkeys((aten.index_put, aten.index_put_), _put),
    **dict.fromkeys((aten.index_copy, aten.index_copy_), _copy),
    **dict.fromkeys((aten.index_add, aten.index_add_), _add),
    **dict.fromkeys((aten.index_fill, aten.index_fill_), _fill),
    **dict.fromkeys((aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_), _scatter),
}
"""How each spelling is written as a look-up or a choice."""
