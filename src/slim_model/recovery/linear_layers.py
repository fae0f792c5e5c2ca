"""The layers whose weights may get other values, each seen as one product of rows and columns.

A convolution or linear layer adds up, at each place of its output, what it takes in there: ``(rows, inputs x taps)``
times its weights ``(outputs, inputs, taps)``; a grouped convolution does so in every group. Where a constant is to be
added to its outputs, it goes into the layer's own bias or into the mean of the BatchNorm behind it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from slim_model.graph.graph import Graph
from slim_model.graph.nodes import bound, packet_of
from slim_model.graph.stored_tensors import storage_key
from slim_model.ranking.evidence.sampling import places

aten = torch.ops.aten
_CONVOLUTIONS = {aten.conv1d, aten.conv2d}
Kept = Mapping[tuple[str, int], np.ndarray]
"""(tensor, axis) -> the positions of the dense model that are left; axes that keep all are not listed."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution looks at a map, height first; ``sides`` as ``F.pad`` takes them."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    sides: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Sum:
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
        at = places(first, len(flat), flat.shape[2], wanted=wanted).to(y.device)
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
        at = places(first, len(padded), total, wanted=wanted).to(padded.device)
        corner = at // across * sh * width + at % across * sw
        taps = torch.arange(kh)[:, None] * dh * width + torch.arange(kw) * dw
        return corner[..., None] + taps.flatten().to(padded.device)


def as_map(x: Tensor) -> Tensor:
    """A line is a map of height one."""
    return x[:, :, None] if x.dim() == 3 else x


def find_sums(dense: Graph, small: Graph, kept: Kept) -> list[Sum]:
    """Every layer that can be given other weights, in the order of the graph."""
    used = readers(dense)
    found = []
    for node in dense.nodes:
        if node.op == "call_function" and (parts := _parts(node)) is not None:
            layer = _sum(node, parts, dense, small, kept, used)
            if layer is not None:
                found.append(layer)
    return found


@dataclass(frozen=True, slots=True)
class _Parts:
    operand: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    turned: bool = False


def _parts(node: fx.Node) -> _Parts | None:
    kind, given = packet_of(node), bound(node)
    if kind in _CONVOLUTIONS or kind is aten.linear:
        found = given["input"], given["weight"], given["bias"]
    elif kind is aten.addmm and given["alpha"] == given["beta"] == 1:
        found = given["mat1"], given["mat2"], given["self"]
    elif kind is aten.mm:
        found = given["self"], given["mat2"], None
    else:
        return None
    return _Parts(*found, turned=kind in (aten.addmm, aten.mm))


def readers(graph: Graph) -> Counter[Hashable]:
    """How many nodes read each stored tensor; several names may share its memory."""
    counts: Counter[Hashable] = Counter()
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in graph.owners:
            counts[storage_key(graph.tensors[graph.owners[node.name]])] += len(node.users)
    return counts


def own(graph: Graph, node: fx.Node | None, used: Counter[Hashable]) -> str | None:
    """The stored tensor behind ``node``, where nothing else reads it."""
    if node is None or node.op != "placeholder" or node.name not in graph.owners:
        return None
    tensor = graph.tensors[graph.owners[node.name]]
    return graph.owners[node.name] if tensor.is_floating_point() and used[storage_key(tensor)] == 1 else None


def _sum(node: fx.Node, parts: _Parts, dense: Graph, small: Graph, kept: Kept, used: Counter[Hashable]) -> Sum | None:
    weight = own(dense, parts.weight, used)
    value, stored = parts.operand.meta.get("val"), dense.tensors.get(weight or "")
    if weight is None or stored is None or not isinstance(value, Tensor) or parts.operand.op == "get_attr":
        return None
    given, convolves = bound(node), node.target.overloadpacket in _CONVOLUTIONS  # type: ignore[union-attr]
    if stored.dim() != (value.dim() if convolves else 2) or value.dim() < 2:
        return None
    count = int(given["groups"]) if convolves else 1
    out, taken = (1, 0) if parts.turned else (0, 1)
    outputs = torch.from_numpy(kept.get((weight, out), np.arange(stored.shape[out])).astype(np.int64))
    inputs = torch.from_numpy(kept.get((weight, taken), np.arange(stored.shape[taken])).astype(np.int64))
    groups = torch.unique(outputs // (stored.shape[out] // count))
    left = small.tensors[weight]
    if (left.shape[out], left.shape[taken]) != (len(outputs), len(inputs)) or len(outputs) % len(groups):
        return None
    if parts.bias is not None and own(dense, parts.bias, used) is None:
        return None  # a constant that others read, too
    window = _window(given, tuple(stored.shape[2:])) if convolves else None
    return Sum(
        *(node.name, parts.operand.name, weight, _constant(node, parts, dense, used), window, parts.turned),
        *(inputs, outputs, groups, count, stored.shape[taken]),
    )


def _window(given: dict[str, Any], kernel: tuple[int, ...]) -> Window:
    def pair(sizes: Any, ahead: int) -> tuple[int, int]:
        sizes = [sizes] * len(kernel) if isinstance(sizes, int) else list(sizes)
        sizes = sizes * len(kernel) if len(sizes) < len(kernel) else sizes
        return (ahead, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

    size, stride, dilation = pair(list(kernel), 1), pair(given["stride"], 1), pair(given["dilation"], 1)
    reach = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    if given["padding"] == "same":
        sides = [(r // 2, r - r // 2) for r in reach]
    else:
        sides = [(p, p) for p in pair(0 if given["padding"] == "valid" else given["padding"], 0)]
    return Window(size, stride, dilation, (*sides[1], *sides[0]))


def _constant(node: fx.Node, parts: _Parts, graph: Graph, used: Counter[Hashable]) -> tuple[str, int] | None:
    bias = own(graph, parts.bias, used)
    if bias is not None:
        return bias, 1
    norm = norm_behind(node)
    mean = own(graph, bound(norm)["running_mean"], used) if norm is not None else None
    return (mean, -1) if mean is not None else None


def norm_behind(node: fx.Node) -> fx.Node | None:
    """The BatchNorm that alone reads ``node``, with stored statistics."""
    (user,) = node.users if len(node.users) == 1 else (None,)
    return user if user is not None and is_norm(user) else None


def is_norm(node: fx.Node) -> bool:
    return (
        packet_of(node) is aten.batch_norm and bound(node)["running_mean"] is not None and not bound(node)["training"]
    )
