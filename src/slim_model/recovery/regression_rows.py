"""Rows of a regression: sampled inputs of a small layer, and the outputs that it should give there; the sums over rows
that a least-squares fit needs, and its solution with a ridge towards the weights there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from slim_model.graph.nodes import arguments_of
from slim_model.ops import kind_of
from slim_model.recovery.linear_layers import Call, LinearLayer, norm_behind
from slim_model.recovery.streamed_run import StreamedRun


@dataclass(frozen=True, slots=True)
class Sink:
    """Where the output of a layer goes: through ``norm``, a BatchNorm; into a sum with ``other``; and from there, if
    ``rectified``, into nothing but a ReLU."""

    norm: fx.Node | None
    other: fx.Node | None
    rectified: bool


def sink_of(node: fx.Node) -> Sink:
    norm = norm_behind(node)
    end = norm or node
    while (user := _only_user(end)) is not None and kind_of(user) == "dropout":
        end = user
    other = None
    if user is not None and kind_of(user) == "addition" and arguments_of(user)["alpha"] == 1:
        sides = [arguments_of(user)["self"], arguments_of(user)["other"]]
        other = next((side for side in sides if side is not end and isinstance(side, fx.Node)), None)
        user = _only_user(user) if other is not None else None
    return Sink(norm, other, user is not None and kind_of(user) == "relu")


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


class RegressionRows(NamedTuple):
    """``taken (group, row, column)``, the last column one where the layer has a constant; ``targets (group, row,
    output)``: what it should give, constant included; ``rises``: that value where it enters the ReLU, or None."""

    taken: Tensor
    targets: Tensor
    rises: Tensor | None


class Rows:
    """Of one call of a layer, from all parts. ``targets`` is what the dense layer gives, and what the other side of the
    sum that it enters has lost, as far as that is known when the layer is fitted."""

    def __init__(self, layer: LinearLayer, call: Call, dense: StreamedRun, small: StreamedRun, places: int) -> None:
        self.layer, self.call, self.dense, self.small, self.places = layer, call, dense, small, places
        self.sink = sink_of(dense.nodes[dense.index[call.node]])
        self.slope, self.shift = _line(self.sink.norm, small, len(layer.outputs))
        passes = self.slope.abs() > 1e-3 * self.slope.abs().max()  # else a BatchNorm that lets nearly nothing through
        self.scale = torch.where(passes, 1 / self.slope, 0.0)
        self.silent = layer.silent_in(small.graph)
        self.held: list[RegressionRows] | None = None

    def __iter__(self) -> Iterator[RegressionRows]:
        """The same each time: a layer is fitted in several passes over them. They are held where memory allows."""
        if self.held is not None:
            yield from self.held
            return
        held, size = list[RegressionRows](), 0
        for row in self._made():
            size += sum(x.nbytes for x in row if x is not None)
            if size <= self.small.memory:
                held.append(row)
            else:
                held.clear()
            yield row
        self.held = held if size <= self.small.memory else None

    def _made(self) -> Iterator[RegressionRows]:
        name, groups = self.call.node, len(self.layer.groups)
        for big, little in zip(self.dense.after(name), self.small.before(name), strict=True):
            ours, first = little.values, little.part.first
            taken = self.layer.rows(ours[self.call.operand].detach(), groups, first, self.places)
            if self.silent:  # a block that is gone stays gone: its constant alone is fitted
                taken = torch.zeros_like(taken)
            if self.layer.constant is not None:
                taken = torch.cat([taken, taken.new_ones(*taken.shape[:2], 1)], 2)
            targets, rises = self._targets(big.values, ours, first)
            yield RegressionRows(taken, targets, rises)

    def _targets(self, theirs: dict[str, Any], ours: dict[str, Any], first: int) -> tuple[Tensor, Tensor | None]:
        layer, sink, groups = self.layer, self.sink, len(self.layer.groups)
        whole = theirs[self.call.node]
        index = layer.outputs.to(whole.device)

        def cut(value: Tensor, index: Tensor | None = None) -> Tensor:
            return layer.targets(value, groups, first, self.places, index)

        # Positions are drawn first: what follows is one number at a time.
        targets = cut(whole, index)
        slope, shift, scale = (x.view(groups, 1, -1) for x in (self.slope, self.shift, self.scale))
        if layer.constant is not None and layer.constant[1] < 0:  # BatchNorm takes its mean away
            targets = targets - self.dense.tensors[layer.constant[0]][index].view(groups, 1, -1)
        other: Any = 0.0
        if sink.other is not None:
            full, other = (values.get(sink.other.name) for values in (theirs, ours))
            if full is None or other is None or full.shape != whole.shape:
                return targets, None
            other = cut(other)
            targets = targets + (cut(full, index) - other) * scale
        return targets, targets * slope + shift + other if sink.rectified else None

    def targets_of(self, row: RegressionRows, given: Tensor) -> Tensor:
        """Targets relaxed by the ReLU: where the target is not positive, any prediction that is not positive is right
        (Zhang et al. 2015). ``given`` is the prediction now."""
        assert row.rises is not None
        groups = len(self.layer.groups)
        slope, scale = (x.to(given).view(groups, 1, -1) for x in (self.slope, self.scale))
        edge = row.targets - row.rises * scale  # where it would just open
        shut = torch.where((given - edge) * slope <= 0, given, edge)
        return torch.where((row.rises > 0) | (scale == 0), row.targets, shut)

    def error(self, row: RegressionRows, given: Tensor) -> float:
        """Squared error, behind the ReLU if there is one."""
        if row.rises is None:
            return float((given - row.targets).double().square().sum())
        slope = self.slope.to(given).view(len(self.layer.groups), 1, -1)
        return float((row.rises.relu() - (row.rises + (given - row.targets) * slope).relu()).double().square().sum())


# -- their sums, and what these give -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Products:
    """Sums over rows, by group: ``xx (d, d)``, ``xy (d, outputs)``, ``yy``."""

    xx: Tensor
    xy: Tensor
    yy: Tensor

    def merge(self, other: Products) -> Products:
        return Products(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy)

    def error(self, weights: Tensor) -> float:
        """Mean squared error of ``X W``, relative to that of 0; ``weights (group, d, outputs)``."""
        wrong = (weights * (self.xx @ weights)).sum() - 2 * (weights * self.xy).sum() + self.yy
        return float(wrong / self.yy.clamp(min=1e-300))


def products_of(rows: Iterable[RegressionRows]) -> Products | None:
    """All parts together; None where there is none."""
    products = None
    for row in rows:
        turned = row.taken.transpose(1, 2)
        here = Products(
            (turned @ row.taken).double(), (turned @ row.targets).double(), row.targets.double().square().sum()
        )
        products = here if products is None else products.merge(here)
    return products


def solved(layer: LinearLayer, fit: Products, now: Tensor, ridge: float) -> Tensor:
    """``(group, column, output)``: ridge towards the weights ``now``; the constant is free. ``ridge`` is relative to
    the mean of the diagonal."""
    diagonal = fit.xx.diagonal(dim1=1, dim2=2).clone()
    if layer.constant is not None:
        diagonal[:, -1] = 0
    largest = diagonal.amax(1, keepdim=True)
    level = torch.where(diagonal > 0, ridge * diagonal.mean(1, keepdim=True), 0.0)
    level = level + 1e-12 * torch.where(largest > 0, largest, 1.0)  # columns of zeros keep their weights
    return torch.linalg.solve(fit.xx + torch.diag_embed(level), fit.xy + level[..., None] * now)


def _line(norm: fx.Node | None, small: StreamedRun, outputs: int) -> tuple[Tensor, Tensor]:
    """Slope and shift of a BatchNorm, the mean aside."""
    if norm is None:
        return torch.ones(outputs), torch.zeros(outputs)
    given = arguments_of(norm)
    slope = (small.stored(given["running_var"]) + given["eps"]).rsqrt()
    if given["weight"] is not None:
        slope = slope * small.stored(given["weight"])
    return slope, torch.zeros_like(slope) if given["bias"] is None else small.stored(given["bias"])
