"""places: where in the graph the channels of each group are read, and how a tensor there becomes (sample, channel, ...).

A channel matters through the layers that sum over it. Those are the rows whose masked form acts on channels, where
the channel ends: a depthwise convolution or a norm hands each channel on, so it is observed at the layer behind.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from slim_model.couple import Coupling
from slim_model.labels import Value, tensors_in
from slim_model.ops import row_of

aten = torch.ops.aten
# Activations without exact zeros: a unit counts as off where its pre-activation is at most 0.
_SMOOTH = {aten.gelu, aten.silu, aten.mish, aten.elu, aten.celu, aten.selu, aten.leaky_relu, aten.prelu, aten.rrelu}


@dataclass(frozen=True, slots=True)
class Layout:
    """How samples lie along ``axis``: its positions are (outer, sample, inner). ``axis`` None: no sample axis, the
    value is the same for all samples."""

    axis: int | None
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor, and where along its ``axis`` the channels of a group sit.

    ``channel``: ``(k,)`` numbers within the group; ``index``: ``(k, m)`` the m positions of each. ``readers``: the
    layers that sum over it. ``source``: the node whose value is observed, the operand itself or what it is a view
    of. ``before``: the same channels before a smooth activation, where there is one. ``pull``: ``(k,)`` squared norm
    of the weights that read each channel.
    """

    group: int
    operand: fx.Node
    source: fx.Node
    axis: int
    channel: Tensor
    index: Tensor
    readers: tuple[fx.Node, ...]
    pull: Tensor
    layout: Layout = Layout(0)
    before: Place | None = None


def find_places(coupling: Coupling) -> list[Place]:
    """Every place where a channel that may go is read, in the order of the graph."""
    reached = _from_inputs(coupling)
    number, order = _numbers(coupling)
    readers: dict[tuple[fx.Node, int], list[fx.Node]] = defaultdict(list)
    for node in coupling.graph.nodes:
        for operand, axis in _ends(coupling, node, reached):
            readers[operand, axis].append(node)
    found = []
    for (operand, axis), nodes in readers.items():
        for place in _at(coupling, operand, axis, number, order):
            pull = sum(_pull(coupling, node, operand, place) for node in nodes)
            before = _before(coupling, operand, place, number, order)
            found.append(dataclasses.replace(place, readers=tuple(nodes), pull=pull, before=before))
    return _laid_out(coupling, found)


def _from_inputs(coupling: Coupling) -> set[fx.Node]:
    """Nodes whose value depends on the model's input."""
    reached: set[fx.Node] = set()
    for node in coupling.graph.nodes:
        is_input = node.op == "placeholder" and node.name not in coupling.graph.owners
        if is_input or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _numbers(coupling: Coupling) -> tuple[np.ndarray, np.ndarray]:
    """By component: the group it is in (-1: none), and its number within."""
    number = np.full(coupling.component.max() + 1, -1)
    order = np.full(coupling.component.max() + 1, -1)
    for i, group in enumerate(coupling.groups):
        number[group.channels], order[group.channels] = i, np.arange(group.width)
    return number, order


def _ends(coupling: Coupling, node: fx.Node, reached: set[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    """(operand, axis) where ``node`` sums over channels that do not come out of it again."""
    row = row_of(node.target) if node.op == "call_function" else None
    if row is None or row.masks == "nothing":
        return
    values = coupling.walk.values
    labelled = [n for n in node.all_input_nodes if isinstance(values[n], Value) and values[n].labelled]
    out = _channels(coupling, tensors_in([values[node]]))
    for operand in [n for n in labelled if n in reached] or labelled:
        for axis, labels in enumerate(values[operand].axes):
            if labels is None:
                continue
            here = np.setdiff1d(coupling.component[labels.numpy()], [0])
            carried = np.isin(here, out).any()
            others = [values[n] for n in labelled if n is not operand]
            if len(here) and (not carried or any(_twice(coupling, v, here) for v in others)):
                yield operand, axis


def _channels(coupling: Coupling, values: Iterable[Value]) -> np.ndarray:
    axes = [coupling.component[a.numpy()] for value in values for a in value.axes if a is not None]
    return np.unique(np.concatenate([*axes, np.zeros(0, np.int32)]))


def _twice(coupling: Coupling, value: Value, channels: np.ndarray) -> bool:
    """A weight with these channels on both axes: a layer inside a residual branch reads and makes them."""
    return sum(a is not None and bool(np.isin(coupling.component[a.numpy()], channels).any()) for a in value.axes) > 1


def _at(
    coupling: Coupling, operand: fx.Node, axis: int, number: np.ndarray, order: np.ndarray
) -> Iterator[Place]:
    """One place for each group along an axis, and for each number of positions a channel takes there."""
    component = coupling.component[coupling.walk.values[operand].axes[axis].numpy()]
    for group in np.unique(number[component]).tolist():
        if group < 0:
            continue
        positions = np.flatnonzero(number[component] == group)
        channel = order[component[positions]]
        by_channel = np.argsort(channel, kind="stable")
        names, starts, counts = np.unique(channel[by_channel], return_index=True, return_counts=True)
        for many in np.unique(counts).tolist():
            chosen = counts == many
            index = positions[by_channel][starts[chosen][:, None] + np.arange(many)]
            held = torch.from_numpy(names[chosen].astype(np.int64))
            ones = torch.ones(len(held), dtype=torch.float64)
            yield Place(group, operand, operand, axis, held, torch.from_numpy(index), (), ones)


def _pull(coupling: Coupling, node: fx.Node, operand: fx.Node, place: Place) -> Tensor:
    """Squared norm of the weights by which ``node`` reads each channel; 1 where it has none."""
    channels = coupling.groups[place.group].channels[place.channel.numpy()]
    for other in node.all_input_nodes:
        value, weight = coupling.walk.values[other], coupling.walk.constant(other)
        if other is operand or weight is None or not isinstance(value, Value) or weight.dim() < 2:
            continue
        for axis in sorted(range(weight.dim()), key=lambda a: a != 1):  # layers read along axis 1 of their weight
            labels = value.axes[axis]
            if labels is not None and np.isin(coupling.component[labels.numpy()], channels).any():
                squares = weight.detach().double().square().movedim(axis, 0).flatten(1).sum(1)
                by_component = torch.zeros(len(coupling.component), dtype=torch.float64)
                by_component.index_add_(0, torch.from_numpy(coupling.component[labels.numpy()]).long(), squares.cpu())
                return by_component[torch.from_numpy(channels)]
    return torch.ones(len(channels), dtype=torch.float64)


def _before(
    coupling: Coupling, operand: fx.Node, place: Place, number: np.ndarray, order: np.ndarray
) -> Place | None:
    """Where the channels enter a smooth activation on their way to ``operand``, passing only what mixes nothing."""
    node = operand
    while node.op == "call_function":
        row = row_of(node.target)
        inputs = [n for n in node.all_input_nodes if coupling.walk.constant(n) is None]
        if row is None or row.masks != "nothing" or not inputs:
            return None
        smooth = getattr(node.target, "overloadpacket", None) in _SMOOTH
        node = inputs[0]
        if smooth:
            axes = enumerate(coupling.walk.values[node].axes)
            found = [p for a, x in axes if x is not None for p in _at(coupling, node, a, number, order)]
            return next((p for p in found if p.group == place.group and torch.equal(p.channel, place.channel)), None)
        if len(inputs) > 1:
            return None
    return None


# -- how samples lie in a tensor ------------------------------------------------------------------------------------


class _Kept(fx.Interpreter):
    """Runs the graph and keeps the tensors of some nodes."""

    def __init__(self, coupling: Coupling, wanted: set[fx.Node]) -> None:
        super().__init__(coupling.graph.module, garbage_collect_values=True)
        self.wanted, self.kept = wanted, dict[fx.Node, Any]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = result
        return result


def _laid_out(coupling: Coupling, places: list[Place]) -> list[Place]:
    """Find the axis of samples: run the example twice, the second time with its last sample changed."""
    graph = coupling.graph
    wanted = {n for p in places for q in (p, p.before) if q for n in _views(q.operand)}
    runs = []
    for inputs in (graph.inputs, tuple(map(_last_changed, graph.inputs))):
        interpreter = _Kept(coupling, wanted)
        with torch.no_grad():
            interpreter.run(initial_env=graph.bind(inputs))
        runs.append(interpreter.kept)
    batch = next((x.shape[0] for x in graph.inputs if isinstance(x, Tensor) and x.dim()), 1)
    reached = _from_inputs(coupling)

    def located(place: Place) -> Place:
        place = _at_source(coupling, place, runs[0])
        same = runs[0][place.source] == runs[1][place.source]
        layout = _layout(same, batch, place.axis) if place.source in reached else Layout(None)
        return dataclasses.replace(place, layout=layout, before=located(place.before) if place.before else None)

    return [located(place) for place in places]


def _last_changed(x: Any) -> Any:
    """The same input, except for its last sample."""
    if not isinstance(x, Tensor) or not x.dim() or not len(x):
        return x
    x = x.clone()
    generator = torch.Generator().manual_seed(0)
    if x.is_floating_point():
        x[-1] += torch.randn(x[-1].shape, generator=generator).to(x)
    elif x[-1].numel():
        low, high = int(x.min()), int(x.max()) + 1
        x[-1] = torch.randint(low, high, x[-1].shape, generator=generator).to(x)
    return x


def _layout(same: Tensor, batch: int, channel_axis: int) -> Layout:
    """The axis along which all that changed belongs to the last sample."""
    for axis, size in enumerate(same.shape):
        if axis == channel_axis or size % batch:
            continue
        changed = ~same.movedim(axis, 0).flatten(1).all(1)
        for inner in [i for i in range(size // batch, 0, -1) if size // batch % i == 0]:
            grid = changed.view(-1, batch, inner)
            if not grid[:, :-1].any():
                return Layout(axis, size // batch // inner, inner)
    return Layout(None)


def _views(node: fx.Node) -> list[fx.Node]:
    """``node`` and what it may be a view of, through operators with one tensor input."""
    found = [node]
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        row, schema = row_of(node.target), getattr(node.target, "_schema", None)
        if row is None or row.masks != "nothing" or schema is None or schema.is_mutable:
            break
        node = node.all_input_nodes[0]
        found.append(node)
    return found


def _at_source(coupling: Coupling, place: Place, run: dict[fx.Node, Any]) -> Place:
    """Where a flattened tensor is a view of one with a channel axis of its own, observe that one: it has maps."""
    if place.index.shape[1] == 1:
        return place
    number, order = _numbers(coupling)
    flat = run[place.operand]
    for node in _views(place.operand)[1:]:
        whole = run.get(node)
        if not isinstance(whole, Tensor) or whole.numel() != flat.numel() or whole.data_ptr() != flat.data_ptr():
            break
        for axis, labels in enumerate(coupling.walk.values[node].axes):
            for seen in _at(coupling, node, axis, number, order) if labels is not None else ():
                if seen.group == place.group and seen.index.shape[1] == 1 and torch.equal(seen.channel, place.channel):
                    return dataclasses.replace(place, source=node, axis=axis, index=seen.index)
    return place


def by_sample(tensor: Tensor, place: Place, samples: int) -> Tensor:
    """``(sample, channel, m, *rest)`` of the tensor at ``place``; samples has one entry if it has no sample axis."""
    layout = place.layout
    if layout.axis is None:
        tensor = tensor.movedim(place.axis, 0).unsqueeze(0)
    else:
        tensor = tensor.movedim((layout.axis, place.axis), (0, 1))
        if layout.outer * layout.inner > 1:
            tensor = tensor.reshape(layout.outer, samples, layout.inner, *tensor.shape[1:])
            tensor = tensor.permute(1, 3, 0, 2, *range(4, tensor.dim()))
    channels, many = place.index.shape
    if many == 1 and channels == tensor.shape[1] and torch.equal(place.index[:, 0], torch.arange(channels)):
        return tensor.unsqueeze(2)
    chosen = tensor.index_select(1, place.index.flatten().to(tensor.device))
    return chosen.unflatten(1, (channels, many))


def has_writes(coupling: Coupling) -> bool:
    """Some operator writes in place, so a tensor may change after it was observed."""
    schemas = [getattr(n.target, "_schema", None) for n in coupling.graph.nodes if n.op == "call_function"]
    return any(schema is not None and schema.is_mutable for schema in schemas)


def leaves(result: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
