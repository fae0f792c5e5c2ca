"""How the loss answers to each channel. A gate of 1 stands wherever a channel is read; these are the
derivatives of each sample's loss with respect to it, signed and summed over all members of the group."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from slim_model.coupling.coupling import Coupling
from slim_model.data.batches import Batch
from slim_model.data.loss import Loss, total_loss
from slim_model.errors import InputError
from slim_model.graph.decisions import Decided
from slim_model.graph.tensor_trees import batch_of, not_finite, tensors_among
from slim_model.ranking.evidence.read_sites import Positions, ReadSite, by_sample, has_writes

DIRECTIONS = 16
"""Directions along which curvature is taken; where there are no more gates than these, it is exact."""


@dataclass(frozen=True, slots=True)
class GateGradients:
    """Over ``count`` samples, per channel: sums of ``t``, ``|t|`` and ``t^2``, where t is the gate's gradient."""

    count: int
    total: Tensor
    absolute: Tensor
    squared: Tensor

    def merge(self, other: GateGradients) -> GateGradients:
        sums = (a + b for a, b in zip(self._sums, other._sums, strict=True))
        return GateGradients(self.count + other.count, *sums)

    @property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.total, self.absolute, self.squared


@dataclass(frozen=True, slots=True)
class GateCurvature:
    """Second derivatives of the summed loss along all gates of the model: ``directions (p, gate)`` and their products
    with the Hessian, of which ``channels`` are this group's. Diagonals are ``sum_p direction * product``."""

    count: int
    channels: slice
    directions: Tensor
    products: Tensor

    def merge(self, other: GateCurvature) -> GateCurvature:
        return GateCurvature(self.count + other.count, self.channels, self.directions, self.products + other.products)

    def diagonal(self) -> Tensor:
        """Of the Hessian of the mean loss. Hutchinson 1989: ``E[v * Hv]`` for random signs v."""
        mine = (self.directions * self.products)[:, self.channels]
        return mine.sum(0) / self.count

    def leading(self) -> tuple[Tensor, Tensor]:
        """The Hessian's eigenvalue of largest size, and the group's part of its eigenvector.

        One pass gives H only along the directions; ``H = Y (directions Y)^-1 Y^T`` is exact where they span its range
        (Nystrom; Halko, Martinsson, Tropp 2011, section 5.5).
        """
        y = self.products.T / self.count
        core = self.directions @ y
        q, r = torch.linalg.qr(y)
        inverse = torch.linalg.pinv((core + core.T) / 2, rtol=1e-10, hermitian=True)
        values, vectors = torch.linalg.eigh(r @ inverse @ r.T)
        largest = int(values.abs().argmax())
        return values[largest], (q @ vectors[:, largest])[self.channels]


def draw_directions(coupling: Coupling, seed: int) -> Tensor:
    """Directions ``(p, gate)`` for Hutchinson's estimate of a Hessian's diagonal: their outer products average to the
    identity. Random signs, or every axis where these are fewer."""
    gates = sum(group.width for group in coupling.groups)
    if gates <= DIRECTIONS:
        return torch.eye(gates, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (DIRECTIONS, gates), generator=generator, dtype=torch.float64) * 2 - 1
    return signs / math.sqrt(DIRECTIONS)


def gate_gradients(
    coupling: Coupling, sites: list[ReadSite], batch: Batch, loss: Loss | None
) -> dict[int, GateGradients]:
    """The gate gradients of each group, by one backward pass over one batch."""
    if batch.samples > 1 and any(p.read.layout.axis is None for p in sites):  # a value that all samples share
        return _merged([gate_gradients(coupling, sites, one, loss) for one in _alone(batch, coupling)])
    run = _Graded(coupling, sites)
    with torch.enable_grad():
        total = _loss_of(run, coupling, batch, loss)
        taps = [tap for tap, _ in run.taps.values()]
        slopes = _gradient(total, taps)
    gradients = {
        g: torch.zeros(batch.samples, coupling.groups[g].width, dtype=torch.float64) for g in {p.group for p in sites}
    }
    rows = batch_of(batch.inputs)
    for ((operand, _), (_, value)), slope in zip(run.taps.items(), slopes, strict=True):
        for site in run.reading[operand] if slope is not None else ():
            t = by_sample(slope * value, site.read, rows).flatten(2).sum(2, dtype=torch.float64)
            gradients[site.group].index_add_(1, site.channel, t[: batch.samples].cpu())
    return {g: GateGradients(batch.samples, t.sum(0), t.abs().sum(0), t.square().sum(0)) for g, t in gradients.items()}


def _alone(batch: Batch, coupling: Coupling) -> list[Batch]:
    """Batches in which one sample counts; where the batch is fixed it stands in front of the others."""
    if coupling.graph.dynamic_batch:
        return batch.split(1)
    rows = batch_of(batch.inputs)
    order = [[i, *range(i), *range(i + 1, rows)] for i in range(batch.samples)]
    return [
        Batch(
            tuple(x[o] if isinstance(x, Tensor) and x.dim() else x for x in batch.inputs),
            None if batch.labels is None else batch.labels[i : i + 1],
            1,
        )
        for i, o in enumerate(order)
    ]


def _merged(parts: list[dict[int, GateGradients]]) -> dict[int, GateGradients]:
    result = parts[0]
    for part in parts[1:]:
        result = {g: result[g].merge(part[g]) for g in result}
    return result


def _loss_of(run: fx.Interpreter, coupling: Coupling, batch: Batch, loss: Loss | None) -> Tensor:
    outputs = [x[: batch.samples] for x in tensors_among(run.run(initial_env=_bound(coupling, batch)))]
    total = total_loss(loss, outputs, batch.labels, batch.samples)
    if not_finite(total):
        raise InputError("the loss is NaN or infinite on the data. Check inputs, labels and weights.")
    if not total.requires_grad:
        raise InputError("the loss has no gradient: it does not depend on the model's channels, or detaches them.")
    return total


def _gradient(total: Tensor, inputs: list[Tensor], *, create_graph: bool = False) -> Any:
    try:
        return torch.autograd.grad(total, inputs, allow_unused=True, create_graph=create_graph)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise InputError(
            "the model writes in place over values that its gradient needs, as it would in training. "
            "Use a criterion without gradients, or operators that do not write in place."
        ) from error


def _bound(coupling: Coupling, batch: Batch) -> dict[fx.Node, Any]:
    """Placeholders, with weights that want no gradient."""
    bound = coupling.graph.bind(batch.inputs)
    return {node: x.detach() if isinstance(x, Tensor) else x for node, x in bound.items()}


class _Graded(Decided):
    """A run in which each reader takes its operand through a tap of its own, where the gradient is asked for."""

    def __init__(self, coupling: Coupling, sites: list[ReadSite]) -> None:
        super().__init__(coupling.graph.module, coupling.graph.decisions, garbage_collect_values=True)
        self.copies = has_writes(coupling)
        self.operands: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        self.reading: dict[fx.Node, list[ReadSite]] = defaultdict(list)
        self.taps: dict[tuple[fx.Node, fx.Node], tuple[Tensor, Tensor]] = {}
        for site in sites:
            self.reading[site.read.node].append(site)
            for reader in site.readers:
                self.operands[reader].add(site.read.node)

    def run_node(self, n: fx.Node) -> Any:
        operands = self.operands.get(n, ())
        ungated = {m: self.env[m] for m in operands}
        self.env.update({m: self.tapped(n, m, x) for m, x in ungated.items()})
        try:
            return super().run_node(n)
        finally:
            self.env.update(ungated)

    def tapped(self, reader: fx.Node, operand: fx.Node, x: Tensor) -> Tensor:
        value = x.detach().clone() if self.copies else x.detach()
        tap = x.view_as(x) if x.requires_grad else value.view_as(value).requires_grad_()
        self.taps[operand, reader] = tap, value
        return tap


class _Gated(_Graded):
    """A run in which each reader takes its operand times the gates of its channels."""

    def __init__(self, coupling: Coupling, sites: list[ReadSite], gates: Tensor, starts: list[int]) -> None:
        super().__init__(coupling, sites)
        self.gates, self.starts = gates, starts

    def tapped(self, reader: fx.Node, operand: fx.Node, x: Tensor) -> Tensor:
        for site in self.reading[operand]:
            if reader in site.readers:
                x = x * self._factors(site.read, self.starts[site.group] + site.channel, x)
        return x

    def _factors(self, positions: Positions, which: Tensor, x: Tensor) -> Tensor:
        own = self.gates[which][:, None].expand(positions.index.shape).flatten().to(x)
        line = x.new_ones(x.shape[positions.axis]).index_put((positions.index.flatten().to(x.device),), own)
        return line.view([-1 if a == positions.axis else 1 for a in range(x.dim())])


def gate_curvature(
    coupling: Coupling, sites: list[ReadSite], batch: Batch, loss: Loss | None, directions: Tensor
) -> dict[int, GateCurvature]:
    """Products of the loss's Hessian, along all gates, with each direction, over one batch."""
    widths = [group.width for group in coupling.groups]
    starts = [sum(widths[:i]) for i in range(len(widths))]
    gates = torch.ones(sum(widths), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        total = _loss_of(_Gated(coupling, sites, gates, starts), coupling, batch, loss)
        (slope,) = _gradient(total, [gates], create_graph=True)
        products = [torch.autograd.grad(slope @ direction, gates, retain_graph=True)[0] for direction in directions]
    rows = torch.stack(products)
    return {
        g: GateCurvature(batch.samples, slice(start, start + widths[g]), directions, rows)
        for g, start in enumerate(starts)
    }
