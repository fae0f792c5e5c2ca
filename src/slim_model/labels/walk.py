"""What the rules of operators say about labels, and where it is written down."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of, at_example, shape_of
from slim_model.graph.stored_tensors import Constants, storage_key
from slim_model.graph.varying_axes import varying_axes, without_constant_axes
from slim_model.labels.labelled import Labelled, Made, Pieces, Terms, Tie
from slim_model.labels.record import Record
from slim_model.labels.values import Axis, Birth, Pin, Replay, Value, fixed_value


class Walk:
    """The language of the rules: a rule is called at ``node`` and says what is tied, pinned, read or made there.

    The same rules serve twice. On the dense graph parameters are born with fresh labels, and ties are collected. On
    the small graph (``replay``) they carry the channels that were kept, the choices of the dense walk are repeated,
    and the ties that come out are there to be checked.

    ``apart``: axes of a view, by its name, one of which keeps its channels apart. ``in_blocks``: nodes of which no
    whole block may go.
    """

    node: fx.Node
    """The node that is visited."""

    def __init__(
        self,
        graph: Graph,
        *,
        replay: Replay | None = None,
        pinned_nodes: Mapping[str, str] = MappingProxyType({}),
        apart: Mapping[str, Collection[int]] = MappingProxyType({}),
        in_blocks: Collection[str] = (),
    ) -> None:
        self.record = Record(graph, dict(pinned_nodes if replay is None else replay.pinned))
        self._replay, self._apart, self._in_blocks = replay, apart, in_blocks
        self._termwise = {factor.node for layer in graph.factored for factor in layer.factors if factor.grouped}
        self._stored: dict[str, Value] = {}
        self._first_owner: dict[Any, str] = {}
        self._constants = Constants(graph, self.record.values)

    # -- the traversal ----------------------------------------------------------------------------------------------

    @property
    def replays(self) -> bool:
        """Whether this is the small graph."""
        return self._replay is not None

    def enter(self, node: fx.Node) -> None:
        """What is said from now on is said at ``node``."""
        self.node = node
        self.record.choices[node.name] = []

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """Arguments of ``node`` by their names in the operator's schema, with Values in place of nodes."""
        return {name: fx.map_arg(arg, self.record.values.__getitem__) for name, arg in arguments_of(node).items()}

    def stored(self, owner: str, tensor: Tensor) -> Value:
        """A parameter or constant; one that is shared carries the same labels at every use."""
        first = self._first_owner.setdefault(storage_key(tensor), owner)
        if first != owner:
            self.record.shared[owner] = first
        elif owner not in self._stored:
            shape = tuple(tensor.shape)
            axes = tuple(self.fresh(n, owner, a) for a, n in enumerate(shape))
            self._stored[owner] = Value(shape, axes)
        return self._stored[self.record.shared.get(owner, owner)]

    def is_stored(self, value: Value) -> bool:
        """Whether ``value`` is that of a parameter or constant as it stands."""
        return any(value is stored for stored in self._stored.values())

    def labelled(self) -> Labelled:
        """All that was said, once every node was visited."""
        return self.record.closed(self._constants)

    # -- what a rule says -------------------------------------------------------------------------------------------

    def fresh(self, size: int, owner: str = "", axis: int = 0) -> Axis:
        """New labels for an axis; an axis of one position cannot lose it and is fixed.

        Without an ``owner`` they are channels the current node creates (padding, a constant).
        """
        owner = owner or f"@{self.node.name}"
        if self._replay is not None:
            return self._replay.born.get((owner, axis))
        if size <= 1:
            return None
        first = self.record.labels
        self.record.births.append(Birth(first, size, owner, axis))
        return torch.arange(first, first + size, dtype=torch.int32)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Labels at the same position are the same channel."""
        a, b = torch.broadcast_tensors(a, b)
        self.record.ties.append(Tie(a.reshape(-1), b.reshape(-1), self.node))

    def pin(self, what: Value | Axis, why: str) -> None:
        axes = what.axes if isinstance(what, Value) else (what,)
        for axis in axes:
            if axis is not None:
                self.record.pins.append(Pin(axis.reshape(-1), self.node, why))

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
        # In a replay other axes may vary, once channels are gone: the small graph follows the dense one's choice.
        channel_axis = self.choose(lambda: self._channel_axis(labels))
        if channel_axis is None:
            self.pin(labels.reshape(-1)[:1], "a single position of its axis is read by number")
            return []
        # Row i: all labels at position i of that axis. Axes along which nothing varies (the batch) would repeat them.
        rows = without_constant_axes(labels.movedim(channel_axis, 0), keep=1).reshape(labels.shape[channel_axis], -1)
        # Whoever reads position i reads all of them, so they stay or go as one.
        if rows.shape[1] > 1:
            self.tie(rows[:, :1], rows[:, 1:])
        return [(channel_axis, rows[:, 0].contiguous())]

    def _channel_axis(self, labels: Tensor) -> int | None:
        """Of the axes along which labels vary, the one with most labels, the last of those that have as many."""
        varying = varying_axes(labels) if labels.numel() else []
        allowed = [a for a in varying if a in self._apart.get(self.node.name, varying)] or varying
        if len(allowed) <= 1:
            return allowed[0] if allowed else None
        labels_along = {a: len(torch.unique(labels.movedim(a, 0).flatten(1)[:, 0])) for a in allowed}
        return max(allowed, key=lambda a: (labels_along[a], a))

    def blocks(self, axes: Sequence[Axis], count: int) -> bool:
        """Each of these axes falls into ``count`` equal blocks that belong together (grouped convolution, norm).

        Either whole blocks go (True), or the same positions in every block (False): whichever leaves more choices, as
        far as can be seen here; ``couple`` looks again once it knows what is fixed.
        """
        sides = [None if axis is None else axis.reshape(count, -1) for axis in axes]
        labelled = [side for side in sides if side is not None]
        whole = self.choose(
            lambda: (
                len(labelled) == len(sides)
                and count > max(side.shape[1] for side in labelled)
                and self.node.name not in self._in_blocks
            )
        )
        for side in labelled:
            self.tie(side[:, :1] if whole else side[:1], side)
        if whole:
            self.agree([side[:, 0] for side in labelled], "")
            self.record.whole_blocks += [Made(side[:, 0], self.node) for side in labelled if side.shape[1] > 1]
        return bool(whole)

    def terms(self, inputs: Axis, made: Axis, count: int) -> bool:
        """Where the node is a factor that makes terms of each of ``count`` inputs alone: it reads ``inputs``, the same
        terms of all of them go together, and those of an input with it. False where it is no such factor."""
        if self.node.name not in self._termwise:
            return False
        self.reads(inputs)
        if made is not None:
            of_each = made.reshape(count, -1)
            self.tie(of_each[:1], of_each)
            if inputs is not None:
                self.record.terms.append(Terms(inputs, made, [made]))
        return True

    def choose(self, decide: Callable[[], Any]) -> Any:
        """What ``decide`` says; in a replay, what was said at this place in the dense walk."""
        made = self.record.choices[self.node.name]
        if self._replay is None:
            made.append(decide())
        else:
            made.append(self._replay.choices[self.node.name][len(made)])
        return made[-1]

    def reads(self, *axes: Axis, why: str = "it is contracted with fixed values") -> None:
        """A layer sums over this axis: its operands agree, and what is removed is zero there."""
        shared = self.agree(axes, why)
        if shared is not None:
            self.record.read += [axis for axis in axes if axis is not None]
        for terms in self.record.terms:  # who reads terms holds them, too
            if any(axis is terms.made for axis in axes):
                terms.held.extend(axis for axis in axes if axis is not None and axis is not terms.made)

    def splits(self, pieces: Sequence[Axis]) -> None:
        """An axis is split into ``pieces``: channels of different ones are ranked apart."""
        self.record.pieces.append(Pieces(tuple(pieces), self.node))

    def makes(self, axis: Axis) -> Axis:
        """A layer gives these labels to its output: they are channels a user counts."""
        if axis is not None:
            self.record.made.append(Made(axis, self.node))
        return axis

    def makes_alike(self, axes: Sequence[Axis], why: str) -> Axis:
        """`agree` of the first labelled axis, which a layer makes, and others; it counts where it is fixed, too."""
        self.makes(next((axis for axis in axes if axis is not None), None))
        return self.agree(axes, why)

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
            return [fixed_value(shape_of(v)) if isinstance(v, Tensor) else at_example(v) for v in value]
        return fixed_value(shape_of(value)) if isinstance(value, Tensor) else at_example(value)

    def constant(self, node: fx.Node) -> Tensor | None:
        """The real value of ``node`` where it follows from stored tensors alone, else None."""
        return self._constants.of(node)
