"""The layers that recovery can give other weights, each as one matrix product (im2col for convolutions).

A convolution or linear layer adds up, at each place of its output, what it takes in there: ``(rows, inputs x taps)``
times its weights ``(outputs, inputs, taps)``; a grouped convolution does so in every group. Where a constant is to be
added to its outputs, it goes into the layer's own bias or into the mean of the BatchNorm behind it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.graph.stored_tensors import storage_key
from slim_model.ops import kind_of, linear_form_of
from slim_model.ops.linear_form import LinearForm, Window
from slim_model.ranking.evidence.sampling import sample_positions

Kept = Mapping[tuple[str, int], np.ndarray]
"""(tensor, axis) -> the positions of the dense model that are left; axes that keep all are not listed."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """The layer ``node`` (its name) reads ``operand`` and stores ``weight``; ``constant``: the tensor that a constant
    goes into, and the sign it has there. ``inputs`` and ``outputs``: the dense positions left in each group, and left
    of the output axis; ``groups``: those that are left, of ``all_groups``."""

    node: str
    operand: str
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

    def rows(self, x: Tensor, groups: int, first: int, wanted: int) -> Tensor:
        """``(group, row, input x tap)`` of an operand, at ``wanted`` places of each sample's output."""
        if self.window is None:
            return x.reshape(1, -1, x.shape[-1])
        x = F.pad(as_map(x), self.window.sides)
        at = self._at(x, first, wanted)
        taken = x.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, x.shape[1], -1))
        taken = taken.unflatten(2, at.shape[1:]).unflatten(1, (groups, -1))  # (n, group, input, place, tap)
        return taken.permute(1, 0, 3, 2, 4).flatten(3, 4).flatten(1, 2)

    def targets(self, y: Tensor, groups: int, first: int, wanted: int) -> Tensor:
        """``(group, row, output)`` of an output, at the same places."""
        if self.window is None:
            return y.reshape(1, -1, y.shape[-1])
        flat = as_map(y).flatten(2)
        at = sample_positions(first, len(flat), flat.shape[2], at_most=wanted).to(y.device)
        taken = flat.gather(2, at[:, None].expand(-1, flat.shape[1], -1))
        return taken.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)

    def taken_on_average(self, mean: Tensor, groups: int) -> Tensor:
        """``(group, input, tap)``: what each tap reads on average over the output, from the operand's mean map."""
        if self.window is None:
            return mean.reshape(1, -1, 1)
        window = self.window
        padded = F.pad(as_map(mean[None]), window.sides)
        columns = F.unfold(padded, window.kernel, window.dilation, 0, window.stride)
        return columns[0].mean(-1).view(groups, -1, self.taps)

    def _at(self, padded: Tensor, first: int, wanted: int) -> Tensor:
        """``(sample, place, tap)`` in the flattened padded map."""
        assert self.window is not None
        (kh, kw), (sh, sw), (dh, dw) = self.window.kernel, self.window.stride, self.window.dilation
        height, width = padded.shape[2:]
        across = (width - dw * (kw - 1) - 1) // sw + 1
        total = ((height - dh * (kh - 1) - 1) // sh + 1) * across
        at = sample_positions(first, len(padded), total, at_most=wanted).to(padded.device)
        corner = at // across * sh * width + at % across * sw
        taps = torch.arange(kh)[:, None] * dh * width + torch.arange(kw) * dw
        return corner[..., None] + taps.flatten().to(padded.device)


def as_map(x: Tensor) -> Tensor:
    """A line is a map of height one."""
    return x[:, :, None] if x.dim() == 3 else x


def find_linear_layers(dense: Graph, small: Graph, kept: Kept) -> list[LinearLayer]:
    """Every layer that can be given other weights, in the order of the graph."""
    used = count_readers(dense)
    found = []
    for node in dense.nodes:
        if node.op == "call_function" and (form := linear_form_of(node)) is not None:
            layer = _sum(node, form, dense, small, kept, used)
            if layer is not None:
                found.append(layer)
    return found


def count_readers(graph: Graph) -> Counter[Hashable]:
    """How many nodes read each stored tensor; several names may share its memory."""
    counts: Counter[Hashable] = Counter()
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in graph.owners:
            counts[storage_key(graph.tensors[graph.owners[node.name]])] += len(node.users)
    return counts


def stored_name_of(graph: Graph, node: fx.Node | None, used: Counter[Hashable]) -> str | None:
    """The stored tensor behind ``node``, where nothing else reads it."""
    if node is None or node.op != "placeholder" or node.name not in graph.owners:
        return None
    tensor = graph.tensors[graph.owners[node.name]]
    return graph.owners[node.name] if tensor.is_floating_point() and used[storage_key(tensor)] == 1 else None


def _sum(
    node: fx.Node, form: LinearForm, dense: Graph, small: Graph, kept: Kept, used: Counter[Hashable]
) -> LinearLayer | None:
    weight = stored_name_of(dense, form.weight, used)
    value, stored = form.operand.meta.get("val"), dense.tensors.get(weight or "")
    if weight is None or stored is None or not isinstance(value, Tensor) or form.operand.op == "get_attr":
        return None
    if form.window is not None and (len(form.window.kernel) > 2 or value.dim() != stored.dim()):
        return None  # volumes, and one map without a batch
    if value.dim() < 2:
        return None
    out, taken = (1, 0) if form.turned else (0, 1)
    outputs = torch.from_numpy(kept.get((weight, out), np.arange(stored.shape[out])).astype(np.int64))
    inputs = torch.from_numpy(kept.get((weight, taken), np.arange(stored.shape[taken])).astype(np.int64))
    groups = torch.unique(outputs // (stored.shape[out] // form.groups))
    left = small.tensors[weight]
    if (left.shape[out], left.shape[taken]) != (len(outputs), len(inputs)) or len(outputs) % len(groups):
        return None
    if form.bias is not None and stored_name_of(dense, form.bias, used) is None:
        return None  # a constant that others read, too
    return LinearLayer(
        node=node.name,
        operand=form.operand.name,
        weight=weight,
        constant=_constant(node, form.bias, dense, used),
        window=form.window.on_maps() if form.window else None,
        turned=form.turned,
        inputs=inputs,
        outputs=outputs,
        groups=groups,
        all_groups=form.groups,
        width=stored.shape[taken],
    )


def _constant(node: fx.Node, bias: fx.Node | None, graph: Graph, used: Counter[Hashable]) -> tuple[str, int] | None:
    stored = stored_name_of(graph, bias, used)
    if stored is not None:
        return stored, 1
    norm = norm_behind(node)
    mean = stored_name_of(graph, arguments_of(norm)["running_mean"], used) if norm is not None else None
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
