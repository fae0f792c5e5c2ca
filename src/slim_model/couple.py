"""couple: a graph -> the channels that stand or fall together, and what is pinned, by whom and why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from types import MappingProxyType

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx

from slim_model.errors import InputError
from slim_model.labels import FIXED, Birth, Replay, Value, Walk
from slim_model.ops import flow_of
from slim_model.trace import Graph, module_path, source_line

ASKED = "you asked to keep it (--keep)"
MEETS_FIXED = "it meets positions that are fixed"

_WEIGHT = re.compile(r"\.weight(_ih(_l0)?)?$")  # a recurrent layer has several


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a group's channels sit: ``channel[i]`` is the channel (index in the group) at position i of ``axis`` of
    ``parameter``, -1 where the position belongs to none of them. ``role``: ``makes`` the channels (a layer's output),
    ``reads`` them (its input), or ``holds`` something per channel (norm, bias)."""

    parameter: str
    axis: int
    channel: np.ndarray
    role: str


@dataclass(frozen=True, slots=True)
class Group:
    """Channels ranked together: one layer makes them first, and where its output is split, into the same piece.
    ``channels`` are component numbers."""

    name: str
    channels: np.ndarray
    slices: tuple[Slice, ...]
    where: str

    @property
    def width(self) -> int:
        return len(self.channels)

    @property
    def span(self) -> int:
        """Positions one channel takes in the widest layer that makes it (heads share a channel, say)."""
        made = [s for s in self.slices if s.role == "makes"] or list(self.slices)
        return max(int(np.bincount(s.channel[s.channel >= 0]).max()) for s in made)


@dataclass(frozen=True, slots=True)
class Pinned:
    """Channels of one layer that cannot go: the operator and source line that fix them, and why."""

    name: str
    channels: int
    op: str
    where: str
    why: str
    is_output: bool


@dataclass(frozen=True, slots=True)
class Coupling:
    """``component[label]`` is the channel a label belongs to; 0 is fixed. ``protected``: labels the user keeps."""

    graph: Graph
    walk: Walk
    component: np.ndarray
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    unknown: tuple[tuple[str, str], ...]
    protected: np.ndarray

    @property
    def free(self) -> int:
        """Channels of layers' outputs that may go."""
        return sum(g.width * g.span for g in self.groups if g.width > 1)

    @property
    def free_share(self) -> float:
        """Share of the channels that are free, leaving out those that are the model's own outputs."""
        single = sum(g.span for g in self.groups if g.width == 1)
        total = self.free + single + sum(p.channels for p in self.pinned if not p.is_output)
        return self.free / total if total else 0.0

    @property
    def batch_holds_channels(self) -> bool:
        """Some axis with channels is as long as the batch says (filters of their own for each sample, side by side):
        its labels hold for the example's batch only."""
        return any(
            axis is not None and _varies(size)
            for node, value in self.walk.values.items()
            if isinstance(value, Value) and isinstance(node.meta.get("val"), Tensor)
            for axis, size in zip(
                value.axes, node.meta["val"].shape, strict=False
            )  # torch 2.11 notes an axis too many for the states of an LSTM
        )

    def births_of(self, owner: str) -> list[Birth]:
        """Where labels of this stored tensor begin, for each of its axes; shared tensors have one set."""
        return self.walk.births_of.get(self.walk.shared.get(owner, owner), [])

    def born(self, keep: np.ndarray) -> Replay:
        """The kept channels along each axis where labels are born: what a walk over the small graph starts from."""
        axes = {}
        for birth in self.walk.births:
            labels = np.arange(birth.start, birth.start + birth.size)
            axes[birth.owner, birth.axis] = self.component[labels[keep[labels]]]
        return Replay(_as_tensors(axes), self.walk.choices, self.walk.pinned_nodes)


def _varies(size: int | torch.SymInt) -> bool:
    if isinstance(size, int):
        return False
    expression = size.node.expr  # (12 * b) // b does not
    return len({expression.subs(dict.fromkeys(expression.free_symbols, b)) for b in (2, 3)}) > 1


def couple(
    graph: Graph,
    *,
    keep: tuple[str, ...] = (),
    pinned_nodes: Mapping[str, str] = MappingProxyType({}),
    apart: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> Coupling:
    """Walk the labels through ``graph`` and join what is tied.

    ``keep``: glob patterns of parameter or module names whose channels are not touched. ``pinned_nodes``: names of
    nodes where an earlier attempt failed to cut, and how. ``apart``: for views that split a channel axis, by name, the
    axes of which one keeps channels apart (see ``heads``).

    Of a grouped layer with many small groups whole groups go. Where one of its sides turns out to be fixed, none could:
    then the walk is made again with the same places of every group going, and is taken if it frees more.
    """
    walk = Walk(graph, flow_of, pinned_nodes=pinned_nodes, apart=apart).run()
    roles, protected, component = _joined(walk, keep)
    if stuck := {node.name for labels, node in walk.whole_blocks if not component[labels.numpy()].any()}:
        other = Walk(graph, flow_of, pinned_nodes=pinned_nodes, apart=apart, in_blocks=stuck).run()
        found = _joined(other, keep)
        if _channels_left(other, found[2]) > _channels_left(walk, component):
            walk, (roles, protected, component) = other, found
    groups = _groups(walk, component, roles)
    unknown = tuple((str(n.target), source_line(n)) for n in walk.unknown)
    return Coupling(graph, walk, component, groups, _pinned(walk, component, protected), unknown, protected)


def _joined(walk: Walk, keep: tuple[str, ...]) -> tuple[dict[tuple[str, int], str], np.ndarray, np.ndarray]:
    """Roles of parameters, labels that the user keeps, and the component of each label."""
    roles = roles_of(walk)
    protected = _protected(walk, keep, roles)
    return roles, protected, components(walk, [pin.labels.numpy() for pin in walk.pins] + [protected])


def _channels_left(walk: Walk, component: np.ndarray) -> int:
    """How many labels of layers' outputs are not fixed."""
    return sum(int(np.count_nonzero(component[axis.numpy()])) for axis, _ in walk.made)


def components(walk: Walk, fixed: list[np.ndarray]) -> np.ndarray:
    """By label: the number of the component its ties put it in. That of ``FIXED``, which all ``fixed`` join, is 0."""
    size = walk.next_label
    left = [a.numpy() for a, _, _ in walk.ties] + [np.zeros(0, np.int32)]
    right = [b.numpy() for _, b, _ in walk.ties] + [np.zeros(0, np.int32)]
    rows = np.concatenate(left + fixed)
    columns = np.concatenate([*right, np.zeros(sum(map(len, fixed)), np.int32)])
    matrix = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    _, component = connected_components(matrix, directed=False)
    zero = component[FIXED]
    return np.where(component == zero, 0, np.where(component == 0, zero, component)).astype(np.int32)


def _protected(walk: Walk, patterns: tuple[str, ...], roles: dict[tuple[str, int], str]) -> np.ndarray:
    """Labels of the channels that layers or parameters matching ``patterns`` make (or hold)."""
    chosen = [np.zeros(0, np.int32)]
    stored = [birth for birth in walk.births if not birth.owner.startswith("@")]
    for pattern in patterns:
        matching = [b for b in stored if fnmatch(b.owner, pattern) or fnmatch(b.owner.rpartition(".")[0], pattern)]
        if not matching:
            names = ", ".join(dict.fromkeys(b.owner.removesuffix(".weight") for b in stored[:8]))
            raise InputError(f"--keep '{pattern}' matches no layer of this model. Its layers are named {names}, ...")
        for birth in matching:
            if roles.get((birth.owner, birth.axis), "holds") != "reads":
                chosen.append(np.arange(birth.start, birth.start + birth.size, dtype=np.int32))
    return np.concatenate(chosen)


def _birth_of(walk: Walk, label: int) -> Birth:
    starts = walk.starts
    return walk.births[int(np.searchsorted(starts, label, side="right")) - 1]


def roles_of(walk: Walk) -> dict[tuple[str, int], str]:
    """(parameter, axis) -> 'makes' or 'reads', from the layers that used them."""
    roles: dict[tuple[str, int], str] = {}
    for axes, role in (([a for a, _ in walk.made], "makes"), (walk.read, "reads")):
        for axis in axes:
            label = int(axis.reshape(-1)[0])
            if label != FIXED:
                birth = _birth_of(walk, label)
                roles.setdefault((birth.owner, birth.axis), role)
    return roles


def _groups(walk: Walk, component: np.ndarray, roles: dict[tuple[str, int], str]) -> tuple[Group, ...]:
    members: dict[Maker, list[int]] = {}
    numbers: dict[Maker, int] = {}
    number = np.full(component.max() + 1, -1)
    order = np.full(component.max() + 1, -1)
    for channel, maker in _made_by(walk, component).items():
        if channel != FIXED:
            own = members.setdefault(maker, [])
            number[channel], order[channel] = numbers.setdefault(maker, len(numbers)), len(own)
            own.append(channel)
    slices: list[list[Slice]] = [[] for _ in members]
    for birth in walk.births:
        if birth.owner.startswith("@"):
            continue
        here = component[birth.start : birth.start + birth.size]
        role = roles.get((birth.owner, birth.axis), "holds")
        for index in np.unique(number[here]).tolist():
            if index >= 0:
                held = np.where(number[here] == index, order[here], -1)
                slices[index].append(Slice(birth.owner, birth.axis, held, role))
    return tuple(
        Group(layer_name(walk, node), np.array(channels), tuple(parts), source_line(node))
        for ((node, _), channels), parts in zip(members.items(), slices, strict=True)
    )


Maker = tuple[fx.Node, tuple[int, ...]]
"""A layer, and the pieces of its output in which a channel sits."""


def _made_by(walk: Walk, component: np.ndarray) -> dict[int, Maker]:
    made: dict[int, Maker] = {}
    piece = _pieces(walk)
    for axis, node in walk.made:
        labels = axis.numpy()
        places: dict[int, list[int]] = {}
        for channel, number in np.unique(np.stack([component[labels], piece[labels]]), axis=1).T.tolist():
            places.setdefault(channel, []).append(number)
        for channel, numbers in places.items():
            made.setdefault(channel, (node, tuple(numbers)))
    return made


def _pieces(walk: Walk) -> np.ndarray:
    """By label: the number of the piece it is in where it is split first; 0 where it is not."""
    piece = np.zeros(walk.next_label, np.int32)
    number = 0
    for pieces in walk.pieces:
        for axis in pieces:
            number += 1
            labels = axis.numpy() if axis is not None else np.zeros(0, np.int32)
            piece[labels[piece[labels] == 0]] = number
    return piece


def layer_name(walk: Walk, node: fx.Node) -> str:
    """The module that holds the weight; where the weight is a bare parameter, its name."""
    owned = []
    for read in node.all_input_nodes:
        while read.op == "call_function" and len(read.all_input_nodes) == 1:  # a transposed weight
            read = read.all_input_nodes[0]
        owned.append(walk.graph.owners.get(read.name, ""))
    weights = [name for name in owned if _WEIGHT.search(name)] or [name for name in owned if name]
    return _WEIGHT.sub("", (weights or [""])[0]) or module_path(node) or node.name


def _pinned(walk: Walk, component: np.ndarray, protected: np.ndarray) -> tuple[Pinned, ...]:
    """For each layer with fixed channels: the nearest reason, found by following ties back from a pin."""
    reasons = _reasons(walk, component, protected)
    found: dict[tuple[str, str, str], Pinned] = {}
    seen: set[int] = set()
    for axis, node in walk.made:
        labels = [x for x in np.unique(axis.numpy()).tolist() if x != FIXED and component[x] == 0 and x not in seen]
        if not labels:
            continue
        seen.update(labels)
        culprit, why = reasons.get(labels[0], (None, ASKED))
        op = "" if culprit is None else str(culprit.target)
        where = "" if culprit is None else source_line(culprit)
        name = layer_name(walk, node)
        previous = found.get((name, op, where))
        count = len(labels) + (previous.channels if previous else 0)
        found[name, op, where] = Pinned(name, count, op, where, why, culprit is not None and culprit.op == "output")
    return tuple(found.values())


def _reasons(walk: Walk, component: np.ndarray, protected: np.ndarray) -> dict[int, tuple[fx.Node | None, str]]:
    """label -> (node, why): breadth first from the pins along the ties, so that the nearest pin is named."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    met: dict[int, tuple[fx.Node | None, str]] = {}
    for a, b, node in walk.ties:
        fixed = component[a.numpy()] == 0
        for x, y in zip(a.numpy()[fixed].tolist(), b.numpy()[fixed].tolist(), strict=True):
            neighbours[x].append(y)
            neighbours[y].append(x)
            if FIXED in (x, y) and x != y:
                met.setdefault(max(x, y), (node, MEETS_FIXED))
    reasons: dict[int, tuple[fx.Node | None, str]] = {}
    for label in protected.tolist():
        reasons[label] = (None, ASKED)
    for pin in sorted(walk.pins, key=lambda pin: pin.node.op != "output"):
        for label in pin.labels.tolist():
            if label != FIXED:
                reasons.setdefault(label, (pin.node, pin.why))
    reasons = {**met, **reasons}
    frontier = list(reasons)
    while frontier:
        reached = []
        for label in frontier:
            for other in neighbours.get(label, ()):
                if other not in reasons and other != FIXED:
                    reasons[other] = reasons[label]
                    reached.append(other)
        frontier = reached
    return reasons


def _as_tensors(axes: dict[tuple[str, int], np.ndarray]) -> dict[tuple[str, int], Tensor]:
    return {key: torch.from_numpy(np.ascontiguousarray(v.astype(np.int32))) for key, v in axes.items()}
