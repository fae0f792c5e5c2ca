"""Stored tensors: which of them are one and the same, and what follows from them alone (constant folding)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of


def storage_key(tensor: Tensor) -> Hashable:
    """The identity of a stored tensor: two tensors have the same key where they are the same numbers in memory.

    It names the storage, and how offset, shape, strides and dtype read it: strides tell a square weight from its
    transpose. The storage is named by the object that owns it and not by its address, which is 0 on the meta device
    and for a tensor without elements, so that all of these would seem to be one. A key holds as long as its tensor
    lives; afterwards another storage may get the same name.

    >>> weight = torch.zeros(2, 2)
    >>> storage_key(weight) == storage_key(weight.detach()), storage_key(weight) == storage_key(weight.t())
    (True, False)
    """
    storage = tensor.untyped_storage()._cdata  # as torch.save tells storages apart
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The names that stand for a tensor which an earlier name has already, each with the first such name."""
    first: dict[Hashable, str] = {}
    firsts = {name: first.setdefault(storage_key(tensor), name) for name, tensor in tensors.items()}
    return {name: earlier for name, earlier in firsts.items() if earlier != name}


# -- what follows from stored tensors ---------------------------------------------------------------------------------

_PURE = ("aten", "prims", "quantized_decomposed")
SWITCHES = ("train", "training")
"""Arguments without which an operator that can be random (dropout) is not."""


class Constants:
    """The real value of any node of ``graph`` that no input reaches; each is computed once, when it is asked for.

    ``sizes``: what nodes give that are no tensors, at the example's sizes.
    """

    def __init__(self, graph: Graph, sizes: Mapping[fx.Node, Any] = MappingProxyType({})) -> None:
        self._graph, self._sizes = graph, sizes
        self._known: dict[fx.Node, Tensor | None] = {}

    def of(self, node: fx.Node) -> Tensor | None:
        """The value of ``node`` where it is a tensor that follows from stored tensors alone, else None."""
        if node not in self._known:
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        operands: dict[fx.Node, Tensor | None] = {}
        if node.op == "call_function":
            # Neither a random number nor what is written to later is a constant.
            if not isinstance(node.target, torch._ops.OpOverload) or not is_pure(node) or is_written(node):
                return None
            operands = {n: self.of(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
            if any(value is None for value in operands.values()):
                return None
        elif node.op != "get_attr" and node.name not in self._graph.owners:
            return None
        value = _value(self._graph, node, lambda n: operands.get(n, self._sizes.get(n)))
        return value if isinstance(value, Tensor) else None


def values_of(graph: Graph, nodes: Iterable[fx.Node]) -> dict[fx.Node, Any]:
    """The values of ``nodes``, which hold all that they are computed from, in order; without gradients."""
    values: dict[fx.Node, Any] = {}
    for node in nodes:
        values[node] = _value(graph, node, values.__getitem__)
    return values


def _value(graph: Graph, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """The stored tensor of ``node``, or what its operator gives for the values of what it reads."""
    if node.op == "placeholder":
        return graph.tensors[graph.owners[node.name]]
    if node.op == "get_attr":
        return getattr(graph.module, str(node.target), None)
    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def is_pure(node: fx.Node) -> bool:
    """Whether ``node`` gives tensors that follow from its arguments alone, the same at every run."""
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or not isinstance(node.meta.get("val"), Tensor | list | tuple):
        return False
    random = torch.Tag.nondeterministic_seeded in target.tags
    if random:
        given = arguments_of(node)
        random = all(given.get(switch) is not False for switch in SWITCHES)
    name = target.overloadpacket.__name__
    return target.namespace in _PURE and not writes(target) and not random and "empty" not in name


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
    return target._schema.is_mutable and target is not torch.ops.aten.detach_.default


def computed_from(graph: Graph, given: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The ``given`` nodes and all that are computed from these alone, in order, without those that are written to."""
    nodes: dict[fx.Node, None] = {}
    for node in graph.nodes:
        computed = node.op == "call_function" and is_pure(node) and all(n in nodes for n in node.all_input_nodes)
        if (given(node) or computed) and not is_written(node):
            nodes[node] = None
    return list(nodes)


def cone_of(node: fx.Node) -> set[fx.Node]:
    """``node`` and all that it is computed from."""
    cone: set[fx.Node] = set()
    pending = [node]
    while pending:
        if (here := pending.pop()) not in cone:
            cone.add(here)
            pending += here.all_input_nodes
    return cone


def as_used(graph: Graph, name: str) -> Tensor:
    """The stored tensor ``name`` as layers see it: times a mask or a scale, rounded, where the one thing that reads it
    treats each value alone and knows all it needs. Else as it is stored."""
    node = next((n for n in graph.nodes if graph.owners.get(n.name) == name), None)
    if node is None or not _alone(node):
        return graph.tensors[name]
    known = set(computed_from(graph, lambda n: n.op == "get_attr" or n.name in graph.owners))
    chain = [node]
    while (after := _alone(chain[-1])) is not None and after in known:
        chain.append(after)
    needed = cone_of(chain[-1])
    value: Tensor = values_of(graph, [n for n in graph.nodes if n in needed])[chain[-1]]
    return value


def _alone(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, where it gives a value for each of its values."""
    (after, *others) = [*node.users, None]
    if after is None or any(others) or torch.Tag.pointwise not in getattr(after.target, "tags", ()):
        return None
    before, here = (n.meta.get("val") for n in (node, after))
    alike = isinstance(before, Tensor) and isinstance(here, Tensor) and before.shape == here.shape
    return after if alike else None


def add_placeholder(graph: Graph, name: str, tensor: Tensor, like: fx.Node) -> fx.Node:
    """A new stored tensor behind those that are there, in the fake mode of ``like``."""
    nodes = graph.module.graph
    stored = [n for n in nodes.nodes if n.op == "placeholder" and n.name in graph.owners]
    with nodes.inserting_after(stored[-1]) if stored else nodes.inserting_before(next(iter(nodes.nodes))):
        made = nodes.placeholder(name)
    mode = getattr(like.meta["val"], "fake_mode", None)
    made.meta["val"] = tensor if mode is None else mode.from_tensor(tensor, static_shapes=True)
    return made
