"""full: each layer fitted anew by least squares, from the input on, to what the dense model computes there.

With X what a layer of the small graph takes in on the data (all taps of all channels, and a one), fitted layers before
it included, and Y the output of the dense layer, ``W = (X'X + l I)^-1 (X'Y + l W0)`` (He, Zhang, Sun 2017, with ridge
towards the weights there are). Where the output is added to a value that is there already, as at the end of a residual
block, Y also makes up for what that value has lost. A layer whose error on samples held out does not fall keeps its
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.labels import bound
from slim_model.recovery.parts import Parts
from slim_model.recovery.sums import Sum, norm_behind
from slim_model.recovery.track import MEMORY, Track
from slim_model.trace import Graph

aten = torch.ops.aten
RIDGES = (1e-5, 1e-3, 1e-1)
"""Relative to the mean of the diagonal."""
LARGEST = 4096
"""Columns of a layer beyond which it keeps its weights: their products alone take 128 MB."""
_ROWS_EACH = 100  # rows for each column
_PLACES = 16  # of a sample, at least
Said = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Products:
    """Sums over rows, by group: ``xx (d, d)``, ``xy (d, outputs)``, ``yy``."""

    xx: Tensor
    xy: Tensor
    yy: Tensor

    def merge(self, other: _Products) -> _Products:
        return _Products(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy)

    def error(self, weights: Tensor) -> float:
        """Mean squared error of ``X W``, relative to that of 0; ``weights (group, d, outputs)``."""
        wrong = (weights * (self.xx @ weights)).sum() - 2 * (weights * self.xy).sum() + self.yy
        return float(wrong / self.yy.clamp(min=1e-300))


def refit(
    dense: Graph, small: Graph, layers: list[Sum], fit: Parts, held: Parts, said: Said = lambda text: None
) -> tuple[Graph, dict[str, str]]:
    """The small graph with fitted weights, and for each layer behind the first cut what it took."""
    nodes = {node.name: node for node in dense.nodes}
    tracks = [(Track(dense, part, MEMORY // 2), Track(small, part, MEMORY // 2)) for part in (fit, held)]
    samples, tensors, took = sum(part.samples for part in fit()), dict(small.tensors), dict[str, str]()
    start = next((i for i, layer in enumerate(layers) if layer.cut), len(layers))
    for number, layer in enumerate(layers[start:]):
        said(f"fitting layer {number + 1} of {len(layers) - start}")
        if (size := _columns(layer)) > LARGEST:
            took[layer.weight] = f"kept: {size} columns"
            continue
        wanted = max(_PLACES, -(-_ROWS_EACH * size // samples))
        seen = [_products(nodes[layer.node], layer, big, little, wanted) for big, little in tracks]
        assert seen[0] is not None
        took[layer.weight], changed = _fitted(layer, seen[0], seen[1] or seen[0], tensors)
        tensors |= changed
        for _, little in tracks:
            little.replace(changed)
    return small.with_tensors(tensors), took


def _columns(layer: Sum) -> int:
    return len(layer.inputs) * layer.taps + (layer.constant is not None)


def _products(node: fx.Node, layer: Sum, dense: Track, small: Track, wanted: int) -> _Products | None:
    """All parts together; None where there is none."""
    found = None
    scale = _scale(node, small)
    for big, little in zip(dense.after(layer.node), small.before(layer.node), strict=True):
        groups, first, ours = len(layer.groups), little.part.first, little.values
        x = layer.rows(ours[layer.operand].detach(), groups, first, wanted)
        if layer.constant is not None:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        y = layer.targets(_target(node, layer, big.values, ours, dense, scale), groups, first, wanted)
        turned = x.transpose(1, 2)
        here = _Products((turned @ x).double(), (turned @ y).double(), y.double().square().sum())
        found = here if found is None else found.merge(here)
    return found


def _target(
    node: fx.Node, layer: Sum, theirs: dict[str, Any], ours: dict[str, Any], dense: Track, scale: Tensor | None
) -> Tensor:
    """What the layer should give, its constant included: as the dense layer, and what the other side of the sum that it
    enters has lost."""
    axis = 1 if layer.window else -1
    index = layer.outputs.to(theirs[node.name].device)
    wanted = theirs[node.name].index_select(axis, index)
    shape = [-1, *[1] * (wanted.dim() - 2)] if layer.window else [-1]
    if layer.constant is not None and layer.constant[1] < 0:  # BatchNorm takes its mean away
        wanted = wanted - dense.tensors[layer.constant[0]][index].view(shape)
    other = added_to(node)
    if other is not None and other.name in theirs and other.name in ours:
        full = theirs[other.name]
        if full.dim() == wanted.dim() and full.shape[axis] == theirs[node.name].shape[axis]:
            lost = full.index_select(axis, index) - ours[other.name]
            wanted = wanted + (lost if scale is None else lost * scale.view(shape))
    return wanted


def _scale(node: fx.Node, small: Track) -> Tensor | None:
    """What a change of one behind the BatchNorm takes ahead of it; 0 where it lets nearly nothing through."""
    norm = norm_behind(node)
    if norm is None:
        return None
    given = bound(norm)
    deviation = (small.stored(given["running_var"]) + given["eps"]).sqrt()
    slope = (1.0 if given["weight"] is None else small.stored(given["weight"])) / deviation
    return torch.where(slope.abs() > 1e-3 * slope.abs().max(), 1 / slope, 0.0)


def added_to(node: fx.Node) -> fx.Node | None:
    """The value that the output of ``node`` is added to, straight or behind its BatchNorm."""
    end = norm_behind(node) or node
    while (
        len(end.users) == 1 and getattr((user := next(iter(end.users))).target, "overloadpacket", None) is aten.dropout
    ):
        end = user
    user = next(iter(end.users)) if len(end.users) == 1 else node
    if getattr(user.target, "overloadpacket", None) not in (aten.add, aten.add_) or bound(user)["alpha"] != 1:
        return None
    other = next((side for side in (bound(user)["self"], bound(user)["other"]) if side is not end), None)
    return other if isinstance(other, fx.Node) else None


def _fitted(layer: Sum, fit: _Products, held: _Products, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """What the layer took, and the values that change."""
    stored, groups = tensors[layer.weight].detach(), len(layer.groups)
    now = layer.matrix(stored, groups).flatten(2).transpose(1, 2).double()
    if layer.constant is not None:
        name, sign = layer.constant
        now = torch.cat([now, sign * tensors[name].detach().double().view(groups, 1, -1)], 1)
    found = {"kept": now} | {f"fitted {ridge:g}": _solved(layer, fit, now, ridge) for ridge in RIDGES}
    errors = {name: held.error(weights) for name, weights in found.items()}
    best = min(errors, key=lambda name: errors[name])
    said = f"{best}: error {errors['kept']:.3g} -> {errors[best]:.3g}"
    if best == "kept":
        return said, {}
    weights = found[best]
    changed = {}
    if layer.constant is not None:
        changed[name] = (sign * weights[:, -1].flatten()).to(tensors[name])
        weights = weights[:, :-1]
    changed[layer.weight] = layer.as_stored(weights.transpose(1, 2).unflatten(2, (-1, layer.taps)), stored)
    return said, changed


def _solved(layer: Sum, fit: _Products, now: Tensor, ridge: float) -> Tensor:
    """Ridge towards the weights ``now``; the constant is free."""
    diagonal = fit.xx.diagonal(dim1=1, dim2=2).clone()
    if layer.constant is not None:
        diagonal[:, -1] = 0
    level = torch.where(diagonal > 0, ridge * diagonal.mean(1, keepdim=True), 0.0) + 1e-12 * diagonal.amax(
        1, keepdim=True
    )
    return torch.linalg.solve(fit.xx + torch.diag_embed(level), fit.xy + level[..., None] * now)
