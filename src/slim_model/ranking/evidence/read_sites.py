"""Where in the graph the channels of each group are read, and how a tensor there is seen by channel.

A channel matters through the layers that sum over it. Those are the rows whose masked form acts on channels, where
the channel ends: a depthwise convolution or a norm hands each channel on, so it is observed at the layer behind.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from slim_model.coupling.coupling import Coupling, GroupIndex
from slim_model.errors import InputError
from slim_model.graph.decisions import Decided
from slim_model.graph.graph import source_line
from slim_model.graph.nodes import arguments_of
from slim_model.graph.tensor_trees import batch_of
from slim_model.labels.values import Value, tensors_in
from slim_model.ops import row_of


@dataclass(frozen=True, slots=True)
class Layout:
    """How samples lie along ``axis``: its positions are (outer, sample, inner). ``axis`` None: no sample axis, the
    value is the same for all samples."""

    axis: int | None
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Positions:
    """Where channels sit in the value of ``node``: along ``axis``, each at the m positions of ``index (k, m)``."""

    node: fx.Node
    axis: int
    index: Tensor
    layout: Layout = Layout(0)


@dataclass(frozen=True, slots=True)
class ReadSite:
    """Channels of one group, ``channel (k,)`` by number, where the layers ``readers`` sum over them.

    ``read``: the operand itself. ``seen``: what is observed, the operand or the tensor that it is a flattened view
    of. ``before``: the same channels ahead of a smooth activation, where there is one. ``weights``: ``(k, rest)`` for
    each reader that has some: its columns for these channels.
    """

    group: int
    channel: Tensor
    read: Positions
    seen: Positions
    before: Positions | None
    readers: tuple[fx.Node, ...]
    weights: tuple[Tensor, ...]


def find_read_sites(coupling: Coupling) -> list[ReadSite]:
    """The read sites of all channels that may go, in the order of the graph."""
    # Layers that sum over the same axis of the same value see the same: one site for all of them.
    reached = _from_inputs(coupling)
    readers: dict[tuple[fx.Node, int], list[fx.Node]] = defaultdict(list)
    for node in coupling.graph.nodes:
        for operand, axis in _summed_operands(coupling, node, reached):
            readers[operand, axis].append(node)

    # An axis may hold channels of several groups (a concatenation): each has a site of its own.
    index = coupling.index()
    candidates = [
        (group, channel, positions, nodes)
        for (operand, axis), nodes in readers.items()
        for group, channel, positions in _positions_by_group(coupling, operand, axis, index)
    ]

    # Weights computed from weights are no evidence where data reaches the group elsewhere.
    fed = {group for group, _, positions, _ in candidates if positions.node in reached}
    candidates = [c for c in candidates if c[2].node in reached or c[0] not in fed]

    # Two runs on other samples show along which axis samples lie, and what a value was before it was flattened.
    runs = _two_runs(coupling, {n for _, _, positions, _ in candidates for n in _upstream(coupling, positions.node)})
    sites = []
    for group, channel, positions, nodes in candidates:
        weights = [_weights(coupling, node, positions.node, group, channel, index) for node in nodes]
        seen = _unflattened(coupling, group, channel, positions, index, runs[0])
        before = _before(coupling, group, channel, positions, index)
        sites.append(
            ReadSite(
                group=group,
                channel=channel,
                read=_laid_out(coupling, positions, runs, positions.node in reached),
                seen=_laid_out(coupling, seen, runs, seen.node in reached),
                before=before and _laid_out(coupling, before, runs, before.node in reached),
                readers=tuple(nodes),
                weights=tuple(w for w in weights if w is not None),
            )
        )
    return sites


def _from_inputs(coupling: Coupling) -> set[fx.Node]:
    """Nodes whose value depends on the model's input."""
    reached: set[fx.Node] = set()
    for node in coupling.graph.nodes:
        is_input = node.op == "placeholder" and node.name not in coupling.graph.owners
        if is_input or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _summed_operands(coupling: Coupling, node: fx.Node, reached: set[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    """(operand, axis) where ``node`` sums over channels that do not come out of it again."""
    row = row_of(node.target) if node.op == "call_function" else None
    if row is None or row.masks == "nothing":
        return
    values, states = coupling.labelled.values, pytree.tree_leaves(arguments_of(node).get("hx", ()))
    read = [n for n in node.all_input_nodes if n not in states]  # a recurrent layer hands its state on
    labelled = [n for n in read if isinstance(values[n], Value) and values[n].labelled]
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


def _positions_by_group(
    coupling: Coupling, node: fx.Node, axis: int, index: GroupIndex
) -> Iterator[tuple[int, Tensor, Positions]]:
    """(group, channels, positions) for each group along an axis, and for each number of positions a channel takes."""
    component = coupling.component[coupling.labelled.values[node].axes[axis].numpy()]
    for group in np.unique(index.group[component]).tolist():
        if group < 0:
            continue
        positions = np.flatnonzero(index.group[component] == group)
        positions = positions[np.argsort(index.number[component[positions]], kind="stable")]
        names, starts, counts = np.unique(index.number[component[positions]], return_index=True, return_counts=True)
        for many in np.unique(counts).tolist():
            chosen = counts == many
            at = positions[starts[chosen][:, None] + np.arange(many)]
            yield group, torch.from_numpy(names[chosen].astype(np.int64)), Positions(node, axis, torch.from_numpy(at))


def _positions_of(
    coupling: Coupling, node: fx.Node, group: int, channel: Tensor, index: GroupIndex, *, near: int = 0
) -> Positions | None:
    """Where just these channels sit in the value of ``node``; on axis ``near`` rather than another."""
    value = coupling.labelled.values[node]
    axes = [a for a, x in enumerate(value.axes) if x is not None] if isinstance(value, Value) else []
    axes.sort(key=lambda axis: axis != near)
    hits = (hit for axis in axes for hit in _positions_by_group(coupling, node, axis, index))
    return next((positions for g, c, positions in hits if g == group and torch.equal(c, channel)), None)


def _weights(
    coupling: Coupling, node: fx.Node, operand: fx.Node, group: int, channel: Tensor, index: GroupIndex
) -> Tensor | None:
    """``(k, rest)``: the columns of the weights by which ``node`` reads these channels, if it has weights."""
    for other in node.all_input_nodes:
        weight = coupling.labelled.constants.of(other)
        if other is operand or weight is None or weight.dim() < 2:
            continue
        # Layers read along axis 1 of their weight.
        positions = _positions_of(coupling, other, group, channel, index, near=1)
        if positions is not None:
            rows = weight.detach().movedim(positions.axis, 0)
            return rows[positions.index.to(rows.device)].flatten(1).cpu()
    return None


def _upstream(coupling: Coupling, node: fx.Node) -> Iterator[fx.Node]:
    """``node`` and where its channels came from, one by one, through operators that mix none and write nowhere."""
    yield node
    while node.op == "call_function":
        row, schema = row_of(node.target), getattr(node.target, "_schema", None)
        inputs = [n for n in node.all_input_nodes if coupling.labelled.constants.of(n) is None]
        if row is None or row.masks != "nothing" or schema is None or schema.is_mutable or len(inputs) != 1:
            return
        node = inputs[0]
        yield node


def _before(
    coupling: Coupling, group: int, channel: Tensor, positions: Positions, index: GroupIndex
) -> Positions | None:
    """Where these channels enter a smooth activation on their way here."""
    way = list(_upstream(coupling, positions.node))
    for node, source in itertools.pairwise(way):
        row = row_of(node.target)
        if row is not None and row.curve in ("leaky", "saturating"):  # no exact zeros: off is at most 0 ahead of it
            return _positions_of(coupling, source, group, channel, index)
    return None


def _unflattened(
    coupling: Coupling, group: int, channel: Tensor, positions: Positions, index: GroupIndex, run: dict[fx.Node, Any]
) -> Positions:
    """Where a flattened tensor is a view of one with a channel axis of its own, that one: it has maps."""
    if positions.index.shape[1] == 1:
        return positions
    flat = run[positions.node]
    for node in _upstream(coupling, positions.node):
        whole = run.get(node)
        if not isinstance(whole, Tensor) or whole.numel() != flat.numel() or whole.data_ptr() != flat.data_ptr():
            break
        apart = _positions_of(coupling, node, group, channel, index)
        if apart is not None and apart.index.shape[1] == 1:
            return apart
    return positions


# -- how samples lie in a tensor ------------------------------------------------------------------------------------


class _Kept(Decided):
    """Runs the graph and keeps the tensors of some nodes."""

    def __init__(self, coupling: Coupling, nodes: set[fx.Node]) -> None:
        super().__init__(coupling.graph.module, coupling.graph.decisions, garbage_collect_values=True)
        self.nodes, self.kept = nodes, dict[fx.Node, Any]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.nodes:
            self.kept[n] = result
        return result


def _two_runs(coupling: Coupling, nodes: set[fx.Node]) -> list[dict[fx.Node, Any]]:
    """Values of some nodes on the example, and on the example with its last sample changed."""
    graph, runs = coupling.graph, []
    for inputs in (graph.inputs, tuple(map(_last_changed, graph.inputs))):
        interpreter = _Kept(coupling, nodes)
        with torch.no_grad():
            interpreter.run(initial_env=graph.bind(inputs))
        runs.append(interpreter.kept)
    return runs


def _laid_out(coupling: Coupling, positions: Positions, runs: list[dict[fx.Node, Any]], varies: bool) -> Positions:
    """The same positions, with the axis along which samples lie."""
    if not varies:
        return dataclasses.replace(positions, layout=Layout(None))
    batch = batch_of(coupling.graph.inputs)
    one, two = runs[0][positions.node], runs[1][positions.node]
    layout = _layout((one == two) | (one.isnan() & two.isnan()), batch, positions.axis)
    if layout.axis is None:
        sizes = {x.shape[0] for x in coupling.graph.inputs if isinstance(x, Tensor) and x.dim()}
        mixed = f"samples of a batch mix before {source_line(positions.node)}"
        apart = "the first axes of the inputs differ in size, so that no samples can be told apart"
        raise InputError(
            f"{apart if len(sizes) > 1 else mixed}, so data cannot rank channels there. Use a criterion of weights."
        )
    return dataclasses.replace(positions, layout=layout)


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


def by_sample(tensor: Tensor, positions: Positions, samples: int) -> Tensor:
    """``tensor`` at these positions as ``(sample, channel, m, *rest)``; one sample where it has no sample axis."""
    layout = positions.layout
    if layout.axis is None:
        tensor = tensor.movedim(positions.axis, 0).unsqueeze(0)
    else:
        tensor = tensor.movedim((layout.axis, positions.axis), (0, 1))
        if layout.outer * layout.inner > 1:
            tensor = tensor.reshape(layout.outer, samples, layout.inner, *tensor.shape[1:])
            tensor = tensor.permute(1, 3, 0, 2, *range(4, tensor.dim()))
    channels, many = positions.index.shape
    start = int(positions.index[0, 0])
    if many == 1 and torch.equal(positions.index[:, 0], torch.arange(start, start + channels)):
        return tensor.narrow(1, start, channels).unsqueeze(2)  # no copy
    chosen = tensor.index_select(1, positions.index.flatten().to(tensor.device))
    return chosen.unflatten(1, (channels, many))


def has_writes(coupling: Coupling) -> bool:
    """Whether some operator writes in place, so that a tensor may change after it was observed."""
    schemas = [getattr(n.target, "_schema", None) for n in coupling.graph.nodes if n.op == "call_function"]
    return any(schema is not None and schema.is_mutable for schema in schemas)
