"""A coupling -> which channels go together and why, what holds the others, and what would free them.

What frees is measured. With all pins taken away, channels are the components of the ties alone; each pin then holds
the components it touches. A component that one reason alone touches would be free without it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import fx

from slim_model.coupling.coupling import Coupling, Group
from slim_model.coupling.layer_names import layer_name, roles_of
from slim_model.coupling.pin_reasons import Reason, list_reasons
from slim_model.coupling.remedies import remedy_for
from slim_model.errors import InputError
from slim_model.graph.graph import source_line
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import FIXED
from slim_model.ops import kind_of

SCHEMA = "slim-model-explain/1"


@dataclass(frozen=True, slots=True)
class Member:
    """``positions`` along ``axis`` of ``parameter`` are the group's; ``role`` as in ``coupling.Slice``."""

    parameter: str
    axis: int
    role: str
    positions: int

    @property
    def layer(self) -> str:
        return self.parameter.rpartition(".")[0] or self.parameter


@dataclass(frozen=True, slots=True)
class ExplainedGroup:
    """One group: ``channels`` that may go, each at ``positions_per_channel`` positions of the widest layer that makes
    it; ``because``: what ties these positions and layers, in words."""

    name: str
    where: str
    channels: int
    positions_per_channel: int
    because: tuple[str, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """What fixes channels: all nodes of one operator on one line of the user's code, for one reason.

    ``holds``: output channels by layer. ``frees``: those of them that could go if this alone were not there;
    ``beside``: what else holds the rest.
    """

    op: str
    where: str
    why: str
    remedy: str
    is_output: bool
    holds: dict[str, int]
    frees: dict[str, int]
    beside: tuple[str, ...]

    @property
    def short(self) -> str:
        return Reason(self.op, self.where, self.why).short


@dataclass(frozen=True, slots=True)
class ExplainedLayer:
    """``parts``: (group, output channels); group -1 cannot go. Layers are in the order they run."""

    name: str
    where: str
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What ``explain`` says of a coupling: every layer, every group with what ties it, every reason that holds
    channels."""

    layers: tuple[ExplainedLayer, ...]
    groups: tuple[ExplainedGroup, ...]
    holds: tuple[Hold, ...]
    unknown_ops: tuple[tuple[str, str], ...]

    @property
    def free(self) -> int:
        """Output channels of layers that may go; a group of one channel cannot lose it."""
        parts = [part for layer in self.layers for part in layer.parts]
        return sum(n for group, n in parts if group >= 0 and self.groups[group].channels > 1)

    @property
    def total(self) -> int:
        return sum(n for layer in self.layers for _, n in layer.parts)

    def about(self, pattern: str) -> Explanation:
        """Only what touches layers that match ``pattern``: a glob, a name, or the beginning of one (``layer3``)."""

        def matches(name: str) -> bool:
            return name.startswith(f"{pattern}.") or fnmatch(name, pattern)

        layers = [layer for layer in self.layers if matches(layer.name)]
        kept = [
            i
            for i, group in enumerate(self.groups)
            if matches(group.name) or any(matches(m.layer) or matches(m.parameter) for m in group.members)
        ]
        holds = [hold for hold in self.holds if any(map(matches, hold.holds))]
        if not layers and not kept and not holds:
            some = ", ".join(layer.name for layer in self.layers[:8])
            raise InputError(f"--layer '{pattern}' matches no layer of this model. Its layers are named {some}, ...")
        # Layers point at groups by number: those that are left are counted anew, and -1 is none.
        numbers = {group: i for i, group in enumerate(kept)}
        renumbered = [
            dataclasses.replace(x, parts=tuple((numbers.get(group, -1), n) for group, n in x.parts)) for x in layers
        ]
        narrowed = [
            dataclasses.replace(
                hold,
                holds={name: n for name, n in hold.holds.items() if matches(name)},
                frees={name: n for name, n in hold.frees.items() if matches(name)},
            )
            for hold in holds
        ]
        return Explanation(tuple(renumbered), tuple(self.groups[i] for i in kept), tuple(narrowed), self.unknown_ops)

    def as_dict(self) -> dict[str, Any]:
        counts = {"output_channels": self.total, "free": self.free}
        unknown = [{"op": op, "where": where} for op, where in self.unknown_ops]
        return {"schema": SCHEMA} | counts | asdict(self) | {"unknown_ops": unknown}


def explain(coupling: Coupling) -> Explanation:
    """Say which channels go together and why, what holds the others, and what would free them."""
    made = list(_made(coupling))
    index = coupling.index().group
    because = _ties(coupling, index)
    groups = tuple(_explain_group(group, because[i]) for i, group in enumerate(coupling.groups))
    layers = []
    for name, node, labels in made:
        channels_in = Counter(index[coupling.component[labels]].tolist())
        layers.append(ExplainedLayer(name, source_line(node), tuple(sorted(channels_in.items()))))
    return Explanation(tuple(layers), groups, _holds(coupling, made), coupling.unknown)


def _made(coupling: Coupling) -> Iterator[tuple[str, fx.Node, np.ndarray]]:
    """(layer, node, labels) of the outputs of layers, each label once, at the layer that makes it first."""
    seen = np.zeros(len(coupling.component), bool)
    seen[FIXED] = True
    for axis, node in coupling.labelled.made:
        labels = np.unique(axis.numpy())
        labels = labels[~seen[labels]]
        if len(labels):
            seen[labels] = True
            yield layer_name(coupling.labelled, node), node, labels


def _explain_group(group: Group, because: Iterable[str]) -> ExplainedGroup:
    members = [Member(s.parameter, s.axis, s.role, int((s.channel >= 0).sum())) for s in group.slices]
    return ExplainedGroup(group.name, group.where, group.width, group.span, tuple(because), tuple(members))


# -- why they go together -------------------------------------------------------------------------------------------

_OP_NAMES = {"add": "an addition", "sub": "a subtraction", "mul": "a multiplication", "div": "a division",
             "view": "a view", "reshape": "a view", "unflatten": "a view", "_unsafe_view": "a view"}  # fmt: skip

_CONVOLUTIONS = ("convolution", "transposed_convolution")


def _ties(coupling: Coupling, index: np.ndarray) -> list[list[str]]:
    """For each group: which operators made positions or layers one channel, in words."""
    labelled, component = coupling.labelled, coupling.component
    starts = np.array([birth.start for birth in labelled.births])
    roles = roles_of(labelled)
    makes = np.array([roles.get((b.owner, b.axis)) == "makes" for b in labelled.births] or [False])
    reasons: list[Counter[str]] = [Counter() for _ in coupling.groups]
    for left, right, node in labelled.ties:
        # What is fixed is explained by what holds it; a label tied to itself says nothing.
        a, b = left.numpy(), right.numpy()
        free = (a != b) & (a != FIXED) & (b != FIXED) & (component[a] != FIXED)
        a, b = a[free], b[free]
        if not len(a):
            continue
        # A user thinks of layers: only axes that a layer makes are named, not the norms and biases that follow them.
        birth_a, birth_b = (np.searchsorted(starts, x, side="right") - 1 for x in (a, b))
        group = index[component[a]]
        # Two axes: the operator joined two layers (an addition).
        between = (birth_a != birth_b) & makes[birth_a] & makes[birth_b]
        for g in np.unique(group[between & (group >= 0)]).tolist():
            reasons[g][f"tied by {_named(node)}"] += 1
        # One axis: the operator joined positions of one layer (heads, gates, whole groups).
        inside = (birth_a == birth_b) & makes[birth_a] & (group >= 0)
        for g, birth in {*zip(group[inside].tolist(), birth_a[inside].tolist(), strict=True)}:
            labels = np.arange(starts[birth], starts[birth] + labelled.births[birth].size)
            reasons[g][_blocks(component[labels], coupling.groups[g], node)] += 1
    return [[text + (f" ({n} times)" if n > 1 else "") for text, n in counter.items()] for counter in reasons]


def _named(node: fx.Node) -> str:
    name, where = _plain(node), source_line(node)
    named = "a grouped convolution" if kind_of(node) in _CONVOLUTIONS else _OP_NAMES.get(name, name)
    return named + (f" at {where}" if where else "")


def _plain(node: fx.Node) -> str:
    """``aten.add_.Tensor`` -> ``add``"""
    target = node.target
    name = target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else str(target)
    return name.removesuffix("_")


def _blocks(component: np.ndarray, group: Group, node: fx.Node) -> str:
    """How the positions of one channel lie along an axis: side by side, or the same position in every block."""
    positions = np.flatnonzero(component == component[np.isin(component, group.channels)][0])
    count = len(positions)
    if positions[-1] - positions[0] == count - 1:
        kind = "groups" if kind_of(node) in _CONVOLUTIONS else "blocks"
        return f"whole {kind} of {count} go: {_named(node)}"
    kind = "gates" if kind_of(node) == "recurrent" else "heads" if _attends(node) else "blocks"
    return f"{count} {kind} share each channel: {_named(node)}"


def _attends(node: fx.Node, reach: int = 8) -> bool:
    """Attention is computed from what ``node`` gives."""
    frontier = {node}
    for _ in range(reach):
        frontier = {user for n in frontier for user in n.users}
        if any(kind_of(n) in ("attention", "softmax") for n in frontier):
            return True
    return False


# -- what holds the others ------------------------------------------------------------------------------------------


def _holds(coupling: Coupling, made: list[tuple[str, fx.Node, np.ndarray]]) -> tuple[Hold, ...]:
    """Every reason that fixes some layer's outputs, those that fix most first, the model's outputs last."""
    part = _parts(coupling.labelled, len(coupling.component))
    outputs = np.unique(part[np.concatenate([labels for _, _, labels in made])]) if made else np.zeros(0, int)
    # Without pins channels are parts; a reason fixes every part that it touches.
    touched: dict[Reason, np.ndarray] = {}
    for reason, labels in list_reasons(coupling.labelled, coupling.protected):
        touched.setdefault(reason, np.zeros(part.max() + 1, bool))[part[labels]] = True
    touched = {reason: here for reason, here in touched.items() if here[outputs].any()}
    # What several reasons touch is not freed by taking one of them away.
    several = np.sum(list(touched.values()), axis=0) > 1
    holds = []
    for reason, here in touched.items():
        others = [other for other, there in touched.items() if other != reason and (here & there)[outputs].any()]
        holds.append(
            Hold(
                op="" if reason.is_output else reason.op,
                where="" if reason.is_output else reason.where,
                why=reason.why,
                remedy=remedy_for(reason.why),
                is_output=reason.is_output,
                holds=_counted(made, here[part]),
                frees=_counted(made, (here & ~several)[part]),
                beside=tuple(dict.fromkeys("being an output" if other.is_output else other.short for other in others)),
            )
        )
    return tuple(sorted(holds, key=lambda hold: (hold.is_output, -sum(hold.holds.values()))))


def _parts(labelled: Labelled, size: int) -> np.ndarray:
    """Components of the ties alone, without any pin and without the fixed positions."""
    pairs = [np.stack((a.numpy(), b.numpy())) for a, b, _ in labelled.ties] + [np.zeros((2, 0), np.int32)]
    rows, columns = np.concatenate(pairs, axis=1)
    free = (rows != FIXED) & (columns != FIXED)
    matrix = coo_matrix((np.ones(int(free.sum()), np.int8), (rows[free], columns[free])), shape=(size, size))
    part: np.ndarray = connected_components(matrix, directed=False)[1]
    return part


def _counted(made: list[tuple[str, fx.Node, np.ndarray]], here: np.ndarray) -> dict[str, int]:
    """Output channels by layer among the labels that ``here`` marks."""
    counts: Counter[str] = Counter()
    for name, _, labels in made:
        counts[name] += int(here[labels].sum())
    return {name: n for name, n in counts.items() if n}
