"""The layers that recovery can give other weights, each as one matrix product (im2col for convolutions).

A convolution or linear layer adds up, at each place of its output, what it takes in there: ``(rows, inputs x taps)``
times its weights ``(outputs, inputs, taps)``; a grouped convolution does so in every group. Where a constant is to be
added to its outputs, it goes into the layer's own bias or into the mean of the BatchNorm behind it. A weight that the
model uses at several places is one layer with several calls: what it takes in at all of them counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.graph.stored_tensors import computed_from, storage_key
from slim_model.ops import kind_of, linear_form_of
from slim_model.ops.linear_form import LinearForm, Window
from slim_model.ranking.evidence.sampling import SAMPLED, sample_positions

Kept = Mapping[tuple[str, int], np.ndarray]
"""(tensor, axis) -> the positions of the dense model that are left; axes that keep all are not listed."""


class Call(NamedTuple):
    """The node (its name) at which a layer is used, and what it reads there."""

    node: str
    operand: str


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A layer that is used at ``calls`` and stores ``weight``; ``constant``: the tensor that a constant goes into, and
    the sign it has there. ``inputs`` and ``outputs``: the dense positions left in each group, and left of the output
    axis; ``groups``: those that are left, of ``all_groups``."""

    calls: tuple[Call, ...]
    weight: str
    constant: tuple[str, int] | None
    window: Window | None
    turned: bool
    inputs: Tensor
    outputs: Tensor
    groups: Tensor
    all_groups: int
    width: int

    @property
    def node(self) -> str:
        """Where it is used first."""
        return self.calls[0].node

    @property
    def operand(self) -> str:
        """What it reads there."""
        return self.calls[0].operand

    @property
    def key(self) -> Hashable:
        """Tells the layers of a graph apart."""
        return self.node

    @property
    def repeated(self) -> bool:
        """What it takes in may depend on what it gave elsewhere."""
        return len(self.calls) > 1

    @property
    def names(self) -> tuple[str, ...]:
        """The stored weights."""
        return (self.weight,)

    @property
    def cut(self) -> bool:
        """Some of what it reads is gone."""
        return len(self.inputs) < self.width or len(self.groups) < self.all_groups

    @property
    def taps(self) -> int:
        return math.prod(self.window.kernel) if self.window else 1

    def matrix(self, stored: Tensor, groups: int) -> Tensor:
        """``(group, output, input, tap)`` of a stored weight."""
        whole = stored.T if self.turned else stored
        return whole.reshape(groups, whole.shape[0] // groups, whole.shape[1], -1)

    def as_stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        whole = matrix.flatten(0, 1)
        return (whole[..., 0].T if self.turned else whole).reshape(like.shape).to(like).contiguous()

    def weights_in(self, tensors: Mapping[str, Tensor], groups: int) -> Tensor:
        """``(group, output, input, tap)`` of the stored tensors of a graph."""
        return self.matrix(tensors[self.weight].detach(), groups)

    def constant_in(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """float64 ``(outputs,)``: what is added to the outputs, as far as a constant goes there."""
        if self.constant is None:
            return None
        name, sign = self.constant
        return sign * tensors[name].detach().double()

    def changed(self, weights: Tensor, constant: Tensor | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stored tensors that hold ``weights (group, output, input, tap)`` and ``constant`` in place of ``tensors``."""
        stored = tensors[self.weight].detach()
        changed = {self.weight: self.as_stored(weights, stored)}
        if constant is not None and self.constant is not None:
            name, sign = self.constant
            changed[name] = (sign * constant.to(tensors[name].device)).to(tensors[name])
        return changed

    def silent_in(self, graph: Graph) -> bool:
        """It reads with weights that are all zero: whatever comes in, it gives a constant."""
        return not self.weights_in(graph.tensors, len(self.groups)).any()

    @property
    def columns(self) -> int:
        """Of its regression: a column for each tap of each input left, and one for the constant."""
        return len(self.inputs) * self.taps + (self.constant is not None)

    def now(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """float64 ``(group, column, output)``: the weights there are, and the constant as a last row."""
        groups, constant = len(self.groups), self.constant_in(tensors)
        weights = self.weights_in(tensors, groups).flatten(2).transpose(1, 2).double()
        return weights if constant is None else torch.cat([weights, constant.view(groups, 1, -1)], 1)

    def refitted(self, weights: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stored tensors that hold ``weights (group, column, output)`` in place of ``tensors``."""
        constant = None
        if self.constant is not None:
            constant, weights = weights[:, -1].flatten(), weights[:, :-1]
        return self.changed(weights.transpose(1, 2).unflatten(2, (-1, self.taps)), constant, tensors)

    def rows(self, x: Tensor, groups: int, first: int, positions: int) -> Tensor:
        """``(group, row, input x tap)`` of an operand, at ``positions`` places of each sample's output."""
        if self.window is None:
            return x.reshape(1, -1, x.shape[-1])
        return read_patches(x, self.window, groups, first, positions)

    def targets(self, y: Tensor, groups: int, first: int, positions: int, index: Tensor | None = None) -> Tensor:
        """``(group, row, output)`` of an output, at the same places; of the channels ``index`` alone."""
        if self.window is None:
            chosen = y if index is None else y.index_select(-1, index)
            return chosen.reshape(1, -1, chosen.shape[-1])
        flat = as_map(y).flatten(2)
        at = sample_positions(first, len(flat), flat.shape[2], at_most=positions).to(y.device)
        taken = flat.gather(2, at[:, None].expand(-1, flat.shape[1], -1))
        taken = taken if index is None else taken.index_select(1, index)
        return taken.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)

    def taken_on_average(self, mean: Tensor, groups: int) -> Tensor:
        """``(group, input, tap)``: what each tap reads on average over the output, from the operand's mean map."""
        if self.window is None:
            return mean.reshape(1, -1, 1)
        window = self.window
        padded = F.pad(as_map(mean[None]), window.sides)
        columns = F.unfold(padded, window.kernel, window.dilation, 0, window.stride)
        return columns[0].mean(-1).view(groups, -1, self.taps)


def read_patches(x: Tensor, window: Window, groups: int, first: int, positions: int = SAMPLED) -> Tensor:
    """``(group, row, input x tap)``: what a convolution with this ``window`` on maps reads of ``x``, at some places of
    each sample's output; ``positions``: at most so many."""
    x = F.pad(as_map(x), window.sides)
    at = _places(x, window, first, positions)
    taken = x.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, x.shape[1], -1))
    taken = taken.unflatten(2, at.shape[1:]).unflatten(1, (groups, -1))  # (n, group, input, place, tap)
    return taken.permute(1, 0, 3, 2, 4).flatten(3, 4).flatten(1, 2)


def _places(padded: Tensor, window: Window, first: int, positions: int) -> Tensor:
    """``(sample, place, tap)`` in the flattened padded map."""
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
    height, width = padded.shape[2:]
    across = (width - dw * (kw - 1) - 1) // sw + 1
    total = ((height - dh * (kh - 1) - 1) // sh + 1) * across
    at = sample_positions(first, len(padded), total, at_most=positions).to(padded.device)
    corner = at // across * sh * width + at % across * sw
    taps = torch.arange(kh)[:, None] * dh * width + torch.arange(kw) * dw
    return corner[..., None] + taps.flatten().to(padded.device)


def as_map(x: Tensor) -> Tensor:
    """A line is a map of height one."""
    return x[:, :, None] if x.dim() == 3 else x


def find_linear_layers(dense: Graph, small: Graph, kept: Kept) -> list[LinearLayer]:
    """Every layer that can be given other weights, in the order of the graph."""
    used, calls = count_readers(dense), dict[Hashable, list[tuple[fx.Node, LinearForm]]]()
    constants = nodes_without_data(dense)
    for node in dense.nodes:
        form = linear_form_of(node) if node.op == "call_function" else None
        if form is not None and form.operand not in constants:
            alike = (form.weight, form.bias, form.window, form.groups, form.turned)
            calls.setdefault(alike, []).append((node, form))
    layers = (_layer(places, dense, small, kept, used) for places in calls.values())
    return [layer for layer in layers if layer is not None]


def nodes_without_data(graph: Graph) -> set[fx.Node]:
    """The stored tensors, and what is computed from these alone (position biases of Swin v2): samples change nothing
    there."""
    return set(computed_from(graph, lambda node: node.op == "get_attr" or node.name in graph.owners))


def count_readers(graph: Graph) -> Counter[Hashable]:
    """How many nodes read each stored tensor; several names may share its memory."""
    counts: Counter[Hashable] = Counter()
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in graph.owners:
            counts[storage_key(graph.tensors[graph.owners[node.name]])] += len(node.users)
    return counts


def stored_name_of(graph: Graph, node: fx.Node | None, used: Counter[Hashable], times: int = 1) -> str | None:
    """The stored tensor behind ``node``, where it is read ``times`` times and no more."""
    if node is None or node.op != "placeholder" or node.name not in graph.owners:
        return None
    tensor = graph.tensors[graph.owners[node.name]]
    return graph.owners[node.name] if tensor.is_floating_point() and used[storage_key(tensor)] == times else None


def positions(kept: Kept, name: str, axis: int, size: int) -> Tensor:
    """The dense positions that are left of an axis."""
    return torch.from_numpy(kept.get((name, axis), np.arange(size)).astype(np.int64))


def _layer(
    places: Sequence[tuple[fx.Node, LinearForm]], dense: Graph, small: Graph, kept: Kept, used: Counter[Hashable]
) -> LinearLayer | None:
    _, form = places[0]
    weight = stored_name_of(dense, form.weight, used, len(places))
    stored = dense.tensors.get(weight or "")
    if weight is None or stored is None or not all(_has_rows(form, stored) for _, form in places):
        return None
    out, taken = (1, 0) if form.turned else (0, 1)
    outputs, inputs = (positions(kept, weight, axis, stored.shape[axis]) for axis in (out, taken))
    groups = torch.unique(outputs // (stored.shape[out] // form.groups))
    left = small.tensors[weight]
    if (left.shape[out], left.shape[taken]) != (len(outputs), len(inputs)) or len(outputs) % len(groups):
        return None
    if form.bias is not None and stored_name_of(dense, form.bias, used, len(places)) is None:
        return None  # a constant that others read, too
    return LinearLayer(
        calls=tuple(Call(node.name, form.operand.name) for node, form in places),
        weight=weight,
        constant=_constant([node for node, _ in places], form.bias, dense, used),
        window=form.window.on_maps() if form.window else None,
        turned=form.turned,
        inputs=inputs,
        outputs=outputs,
        groups=groups,
        all_groups=form.groups,
        width=stored.shape[taken],
    )


def _has_rows(form: LinearForm, stored: Tensor) -> bool:
    """What is read is an activation of samples; volumes, and one map without a batch, are left out."""
    value = form.operand.meta.get("val")
    if not isinstance(value, Tensor) or form.operand.op == "get_attr" or value.dim() < 2:
        return False
    return form.window is None or (len(form.window.kernel) <= 2 and value.dim() == stored.dim())


def _constant(
    nodes: Sequence[fx.Node], bias: fx.Node | None, graph: Graph, used: Counter[Hashable]
) -> tuple[str, int] | None:
    stored = stored_name_of(graph, bias, used, len(nodes))
    if stored is not None:
        return stored, 1
    norms = [norm_behind(node) for node in nodes]
    means = {arguments_of(norm)["running_mean"] if norm is not None else None for norm in norms}
    mean = stored_name_of(graph, means.pop(), used, len(nodes)) if len(means) == 1 else None
    return (mean, -1) if mean is not None else None


def norm_behind(node: fx.Node) -> fx.Node | None:
    """The BatchNorm that alone reads ``node``, with stored statistics."""
    (user,) = node.users if len(node.users) == 1 else (None,)
    return user if user is not None and is_norm(user) else None


def is_norm(node: fx.Node) -> bool:
    """A BatchNorm that normalises by stored statistics."""
    if kind_of(node) != "batch_norm" or not isinstance(node.meta.get("val"), Tensor):
        return False  # a decomposed one gives its statistics, too
    given = arguments_of(node)
    return given["running_mean"] is not None and not given["training"]
