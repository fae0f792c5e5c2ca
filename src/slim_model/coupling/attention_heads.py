"""Which axes count attention heads, and which groups of channels are such heads.

A projection of ``heads * width`` channels is viewed as heads x width. Either whole heads may go, or the same positions
in every head; which axis is which follows from where it ends. Heads are what attention has in parallel: an axis over
which a product of two activations is batched, and the softmax behind it too. So a walk is made in which both parts of
a view carry channels of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from torch import Tensor, fx

from slim_model.coupling.couple import couple, find_components
from slim_model.coupling.coupling import Coupling, Group
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.graph.varying_axes import varying_axes, without_constant_axes
from slim_model.labels.label import label
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import Axis, Value
from slim_model.labels.walk import Walk
from slim_model.ops import flow_of, kind_of
from slim_model.ops.contract import letters


@dataclass(frozen=True, slots=True)
class Heads:
    """For views that split channels into attention heads, by name: axes that count heads, and the others."""

    heads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    width: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def groups(self, coupling: Coupling) -> list[bool]:
        """Whether each group's channels are whole heads, where heads go."""
        nodes = {node.name: node for node in coupling.graph.nodes}
        axes = [
            coupling.labelled.values[nodes[name]].axes[a] for name, counting in self.heads.items() for a in counting
        ]
        channels = _channels(coupling.component, axes)
        return [bool(np.isin(group.channels, channels).any()) for group in coupling.groups]


def find_heads(graph: Graph) -> Heads:
    """Find the views that split channels into attention heads, and which of their axes count heads."""
    if not any(kind_of(n) in ("softmax", "attention") for n in graph.nodes):
        return Heads()
    probe = _Probe(graph)
    labelled = label(probe, flow_of)
    component = find_components(labelled, [])
    counted = _counted(labelled, component)
    result = Heads()
    for name, axes in probe.parts.items():
        heads = tuple(a for a, labels in axes.items() if np.isin(component[labels.numpy()], counted).any())
        if heads and len(heads) < len(axes):
            result.heads[name] = heads
            result.width[name] = tuple(a for a in axes if a not in heads)
    return result


def couple_attention(
    graph: Graph,
    *,
    loses: str = "width",
    heads: Heads | None = None,
    keep: tuple[str, ...] = (),
    pinned_nodes: Mapping[str, str] = MappingProxyType({}),
    equal_pieces: bool = False,
) -> Coupling:
    """``couple``, where attention ``loses`` the same positions of every head (``width``) or whole ``heads``.

    ``heads`` are those of ``find_heads(graph)``, where they are known already; all else is as for ``couple``.
    """
    heads = heads or find_heads(graph)
    apart = heads.heads if loses == "heads" else heads.width
    return couple(graph, keep=keep, pinned_nodes=pinned_nodes, apart=apart, equal_pieces=equal_pieces)


def share_left(group: Group, now: Graph, dense: Graph) -> float:
    """The share of a group's channels that is left in ``now``: 0.5 where every second head has gone."""
    made = [part for part in group.slices if part.role == "makes"] or group.slices
    sizes = [[graph.tensors[part.parameter].shape[part.axis] for part in made] for graph in (now, dense)]
    return sum(sizes[0]) / sum(sizes[1]) if made else 1.0


class _Probe(Walk):
    """A walk in which every part of a channel axis that is split gets labels of its own."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.parts: dict[str, dict[int, Tensor]] = {}

    def settle(self, labels: Tensor) -> list[tuple[int, Axis]]:
        varying = varying_axes(labels) if labels.numel() else []
        if len(varying) < 2:
            return super().settle(labels)
        parts = self.parts.setdefault(self.node.name, {})
        for axis in varying:
            if axis not in parts:
                # Whole rows: labels may vary along the axis at some places of the others alone (a shuffle of pixels).
                rows = without_constant_axes(labels.movedim(axis, 0), keep=1).reshape(labels.shape[axis], -1)
                alike = rows.unique(dim=0, return_inverse=True)[1]
                made = self.fresh(int(alike.max()) + 1, axis=axis)
                assert made is not None
                parts[axis] = made[alike]
        return [(axis, parts[axis]) for axis in varying]


def _counted(labelled: Labelled, component: np.ndarray) -> np.ndarray:
    """Components over which attention is batched."""
    compared = _channels(component, [axis for axes in _compared(labelled) for axis in axes])
    whole: list[Axis] = []
    by_hand: list[Axis] = []
    for node in labelled.graph.nodes:
        kind = kind_of(node)
        if kind == "attention":
            whole += labelled.values[node].axes[:-2]
        elif kind in ("matmul", "einsum"):
            by_hand += _batch_axes(labelled, node)
    both = np.intersect1d(_channels(component, by_hand), compared)
    return np.union1d(both, _channels(component, whole))


def _compared(labelled: Labelled) -> Iterator[tuple[Axis, ...]]:
    """The other axes of what goes into each softmax."""
    for node in labelled.graph.nodes:
        if kind_of(node) == "softmax":
            source: Value = labelled.values[node.all_input_nodes[0]]
            dim = arguments_of(node)["dim"] % len(source.shape)
            yield tuple(axis for a, axis in enumerate(source.axes) if a != dim)


def _batch_axes(labelled: Labelled, node: fx.Node) -> tuple[Axis, ...]:
    out: Value = labelled.values[node]
    arguments = labelled.arguments(node)
    if "equation" not in arguments:
        return out.axes[:-2]
    terms, output = letters(arguments["equation"], arguments["tensors"])
    return tuple(axis for letter, axis in zip(output, out.axes, strict=True) if all(letter in term for term in terms))


def _channels(component: np.ndarray, axes: list[Axis]) -> np.ndarray:
    labels = [axis.numpy() for axis in axes if axis is not None]
    channels = np.unique(component[np.concatenate(labels)]) if labels else np.zeros(0, np.int32)
    return channels[channels != 0]
