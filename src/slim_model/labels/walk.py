"""Which channel sits at which position of which axis, and the walk that carries this through the graph.

Every index of every axis of every parameter is born with a label, an integer of its own. Label 0 (``FIXED``) stands
for a position that can never go. The walk visits each ATen node once, computes the labels of its outputs from those
of its inputs, and writes down ties: pairs of labels that are one channel. Pinning is a tie to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.errors import first_line
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import bound, shape_of
from slim_model.graph.stored_tensors import storage_key
from slim_model.graph.varying_axes import varying_axes, without_constant_axes
from slim_model.labels.values import Axis, Birth, Flow, Pin, Replay, Value, fixed, leaves_in, tensors_in


class Walk:
    """One pass of labels through a graph.

    The same walk serves twice. On the dense graph parameters are born with fresh labels, and ties are collected. On
    the small graph (``replay``) they carry the channels that were kept, the choices of the dense walk are repeated,
    and the ties that come out are there to be checked.
    """

    def __init__(
        self,
        graph: Graph,
        flow_of: Callable[[fx.Node], Flow | None],
        *,
        replay: Replay | None = None,
        pinned_nodes: Mapping[str, str] = MappingProxyType({}),
        apart: Mapping[str, Collection[int]] = MappingProxyType({}),
        in_blocks: Collection[str] = (),
    ) -> None:
        self.graph = graph
        self.values: dict[fx.Node, Any] = {}
        self.births: list[Birth] = []
        self.births_of: dict[str, list[Birth]] = {}
        self.ties: list[tuple[Tensor, Tensor, fx.Node]] = []
        self.pins: list[Pin] = []
        self.read: list[Tensor] = []  # labels along contracted axes
        self.made: list[tuple[Tensor, fx.Node]] = []  # labels a layer gives to its output
        self.pieces: list[list[Axis]] = []  # labels of what an axis is split into
        self.unknown: list[fx.Node] = []
        self.choices: dict[str, list[Any]] = {}
        self.apart = apart  # axes of a view, by its name: one of these keeps its channels apart
        self.in_blocks = in_blocks  # nodes of which no whole block may go
        self.whole_blocks: list[tuple[Tensor, fx.Node]] = []  # one label of each block that goes as a whole
        self.node: fx.Node
        self._flow_of = flow_of
        self._replay = replay
        self.pinned_nodes = dict(pinned_nodes if replay is None else replay.pinned)
        self.next_label = 1
        self._stored: dict[str, Value] = {}
        self._first_owner: dict[Any, str] = {}
        self.shared: dict[str, str] = {}
        self._constants: dict[fx.Node, Tensor | None] = {}

    def run(self) -> Walk:
        for node in self.graph.nodes:
            self.node = node
            self.choices[node.name] = []
            self.values[node] = self._visit(node)
        return self

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            for value in tensors_in(fx.map_arg(node.args, self.values.__getitem__)):
                self.pin(value, "it is an output of the model")
            return None
        arguments = self.arguments(node)
        if not any(isinstance(x, Value) for x in leaves_in(arguments.values())):
            return self._without_tensors(node, arguments)
        flow = self._flow_of(node)
        if flow is None:
            self.unknown.append(node)
            for weight in tensors_in(arguments.values()):
                if len(weight.shape) > 1 and any(weight is stored for stored in self._stored.values()):
                    self.makes(weight.axes[0])
            return self._pin_all(arguments, "this operation has no rule")
        if node.name in self.pinned_nodes:
            return self._pin_all(arguments, self.pinned_nodes[node.name])
        if self._replay is not None:
            return flow(self, **arguments)
        try:
            return flow(self, **arguments)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
            why = f"its rule does not cover this case ({first_line(error, at_most=80)})"
            self.pinned_nodes[node.name] = why
            return self._pin_all(arguments, why)

    def _placeholder(self, node: fx.Node) -> Any:
        owner = self.graph.owners.get(node.name)
        if owner is None:
            value = node.meta.get("val")
            return fixed(shape_of(value)) if isinstance(value, Tensor) else value
        return self._tensor(owner, self.graph.tensors[owner])

    def _attribute(self, node: fx.Node) -> Any:
        target: Any = self.graph.module
        for part in str(node.target).split("."):
            target = getattr(target, part)
        return self._tensor(str(node.target), target) if isinstance(target, Tensor) else target

    def _tensor(self, owner: str, tensor: Tensor) -> Value:
        """A parameter or constant; one that is shared carries the same labels at every use."""
        first = self._first_owner.setdefault(storage_key(tensor), owner)
        if first != owner:
            self.shared[owner] = first
        elif owner not in self._stored:
            shape = tuple(tensor.shape)
            axes = tuple(self.fresh(n, owner, a) for a, n in enumerate(shape))
            self._stored[owner] = Value(shape, axes)
        return self._stored[self.shared.get(owner, owner)]

    def _without_tensors(self, node: fx.Node, arguments: dict[str, Any]) -> Any:
        value = node.meta.get("val")
        if isinstance(value, Tensor):  # a factory: full, arange, rand
            flow = self._flow_of(node)
            return flow(self, **arguments) if flow else fixed(shape_of(value))
        if not isinstance(node.target, torch._ops.OpOverload) and callable(node.target):
            return node.target(*fx.map_arg(node.args, self.values.__getitem__))
        return None

    def _pin_all(self, arguments: dict[str, Any], why: str) -> Any:
        for value in tensors_in(arguments.values()):
            self.pin(value, why)
        return self.fixed_outputs()

    @property
    def starts(self) -> list[int]:
        return [birth.start for birth in self.births]

    def fresh(self, size: int, owner: str = "", axis: int = 0) -> Axis:
        """New labels for an axis; an axis of one position cannot lose it and is fixed.

        Without an ``owner`` they are channels the current node creates (padding, a constant).
        """
        owner = owner or f"@{self.node.name}"
        if self._replay is not None:
            return self._replay.born.get((owner, axis))
        if size <= 1:
            return None
        self.births.append(Birth(self.next_label, size, owner, axis))
        self.births_of.setdefault(owner, []).append(self.births[-1])
        self.next_label += size
        return torch.arange(self.next_label - size, self.next_label, dtype=torch.int32)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Labels at the same position are the same channel."""
        a, b = torch.broadcast_tensors(a, b)
        self.ties.append((a.reshape(-1), b.reshape(-1), self.node))

    def pin(self, what: Value | Axis, why: str) -> None:
        axes = what.axes if isinstance(what, Value) else (what,)
        for axis in axes:
            if axis is not None:
                self.pins.append(Pin(axis.reshape(-1), self.node, why))

    def agree(self, axes: Iterable[Axis], why: str) -> Axis:
        """Tie these axes position by position. If one of them is fixed all are, because ``why``."""
        axes = list(axes)
        labelled = [axis for axis in axes if axis is not None]
        if len(labelled) < len(axes):
            for axis in labelled:
                self.pin(axis, why)
            return None
        for axis in labelled[1:]:
            if axis is not labelled[0]:
                self.tie(labelled[0], axis)
        return labelled[0] if labelled else None

    def meet(self, values: Sequence[Value], why: str) -> tuple[tuple[int, ...], tuple[Axis, ...]]:
        """Broadcast shapes of ``values`` and tie them axis by axis; an axis of size one asks for nothing."""
        rank = max(len(v.shape) for v in values)
        shape, axes = [], []
        for back in range(rank, 0, -1):
            here = [v for v in values if len(v.shape) >= back]
            size = max((v.shape[-back] for v in here if v.shape[-back] != 1), default=1)
            if any(v.shape[-back] == 0 for v in here):
                size = 0
            shape.append(size)
            if size == 1:  # all neutral, unless one channel is all that was kept
                axes.append(self.agree([v.axes[-back] for v in here if v.axes[-back] is not None], why))
            else:
                axes.append(self.agree([v.axes[-back] for v in here if v.shape[-back] != 1], why))
        return tuple(shape), tuple(axes)

    def settle(self, labels: Tensor) -> list[tuple[int, Axis]]:
        """A tensor of labels -> the axis they vary along, and the labels along it.

        Labels that vary along several axes (a channel axis viewed as heads x width) are tied until one is left: the
        one that keeps most channels apart, of those that ``apart`` allows. Labels that vary along none are a channel
        read by its number: it is pinned, and nothing is left.
        """
        keep = self.choose(lambda: self._axis_to_keep(labels))
        if keep is None:
            self.pin(labels.reshape(-1)[:1], "a single position of its axis is read by number")
            return []
        rows = without_constant_axes(labels.movedim(keep, 0), keep=1).reshape(labels.shape[keep], -1)
        if rows.shape[1] > 1:
            self.tie(rows[:, :1], rows[:, 1:])
        return [(keep, rows[:, 0].contiguous())]

    def _axis_to_keep(self, labels: Tensor) -> int | None:
        varying = varying_axes(labels) if labels.numel() else []
        chosen = [a for a in varying if a in self.apart.get(self.node.name, varying)] or varying
        if len(chosen) <= 1:
            return chosen[0] if chosen else None
        kinds = {a: len(torch.unique(labels.movedim(a, 0).flatten(1)[:, 0])) for a in chosen}
        return max(chosen, key=lambda a: (kinds[a], a))

    def blocks(self, axes: Sequence[Axis], count: int) -> bool:
        """Each of these axes falls into ``count`` equal blocks that belong together (grouped convolution, norm).

        Either whole blocks go (True), or the same places in every block (False): whichever leaves more choices, as far
        as can be seen here; ``couple`` looks again once it knows what is fixed.
        """
        sides = [None if axis is None else axis.reshape(count, -1) for axis in axes]
        labelled = [side for side in sides if side is not None]
        whole = self.choose(
            lambda: (
                len(labelled) == len(sides)
                and count > max(side.shape[1] for side in labelled)
                and self.node.name not in self.in_blocks
            )
        )
        for side in labelled:
            self.tie(side[:, :1] if whole else side[:1], side)
        if whole:
            self.agree([side[:, 0] for side in labelled], "")
            self.whole_blocks += [(side[:, 0], self.node) for side in labelled if side.shape[1] > 1]
        return bool(whole)

    def choose(self, decide: Callable[[], Any]) -> Any:
        """What ``decide`` says; in a replay, what was said at this place in the dense walk."""
        made = self.choices[self.node.name]
        if self._replay is None:
            made.append(decide())
        else:
            made.append(self._replay.choices[self.node.name][len(made)])
        return made[-1]

    def reads(self, *axes: Axis, why: str = "it is contracted with fixed values") -> None:
        """A layer sums over this axis: its operands agree, and what is removed is zero there."""
        shared = self.agree(axes, why)
        if shared is not None:
            self.read += [axis for axis in axes if axis is not None]

    def makes(self, axis: Axis) -> Axis:
        """A layer gives these labels to its output: they are channels a user counts."""
        if axis is not None:
            self.made.append((axis, self.node))
        return axis

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments of ``node`` by their names in the operator's schema, with Values in place of nodes."""
        return {name: fx.map_arg(arg, self.values.__getitem__) for name, arg in bound(node).items()}

    def out(self, axes: Sequence[Axis], index: int = 0) -> Value:
        """The Value of the current node's output (number ``index``): labelled axes are as long as their labels."""
        value = self.node.meta["val"]
        shape = shape_of(value[index] if isinstance(value, list | tuple) else value)
        axes = tuple(None if n == 1 else axis for axis, n in zip(axes, shape, strict=True))
        sizes = [n if axis is None else len(axis) for axis, n in zip(axes, shape, strict=True)]
        return Value(tuple(sizes), axes)

    def fixed_outputs(self) -> Any:
        value = self.node.meta.get("val")
        if isinstance(value, list | tuple):
            return [fixed(shape_of(v)) if isinstance(v, Tensor) else v for v in value]
        return fixed(shape_of(value)) if isinstance(value, Tensor) else value

    def constant(self, node: fx.Node) -> Tensor | None:
        """The real value of ``node`` where it follows from stored tensors alone, else None."""
        if node not in self._constants:
            self._constants[node] = self._evaluate(node)
        return self._constants[node]

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        if node.op == "placeholder":
            owner = self.graph.owners.get(node.name)
            return None if owner is None else self.graph.tensors[owner]
        if node.op == "get_attr":
            found = getattr(self.graph.module, str(node.target), None)
            return found if isinstance(found, Tensor) else None
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        known = {n: self.constant(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
        if any(value is None for value in known.values()):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known.get(n, self.values[n]))
        result = node.target(*args, **kwargs)
        return result if isinstance(result, Tensor) else None
