"""affine: what is removed, written by what is left, and folded into the layers that read both.

With ``x`` what a layer reads, of mean ``m`` and covariance ``S``, the removed inputs P are predicted from the kept K by
ridge regression, ``x_P = A x_K + b`` with ``A = S_PK (S_KK + l I)^-1``, and ``W' = W_K + W_P A`` reads the kept alone:
one ``A`` for all taps of a kernel (Polyak, Wolf 2015). ``b`` goes into the layer's constant, such that the mean of
its outputs stays what it was, borders and all. With ``A = 0`` this is mean replacement (Evci et al. 2019). Each layer
takes, of nothing, the constant alone and several ``l``, what has the smallest error on samples that are held out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.recovery.parts import Parts
from slim_model.recovery.sums import Sum, as_map
from slim_model.statistics import SAMPLED, places
from slim_model.trace import Graph

RIDGES = (1e-6, 1e-4, 1e-2)
"""Relative to the mean of the diagonal."""
LARGEST = 4096
"""Inputs of a layer beyond which those that were one channel before they were flattened share their coefficients."""
_ROWS_EACH = 5
_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True)
class Moments:
    """``(group, input)`` means and ``(group, input, input)`` scatter about them over ``count`` rows; ``average``: the
    mean of the operand over samples, of which there were ``samples``."""

    count: int
    mean: Tensor
    scatter: Tensor
    samples: int
    average: Tensor

    @classmethod
    def of(cls, rows: Tensor, x: Tensor, samples: int) -> Moments:
        rows = rows.double()
        mean = rows.mean(1)
        centred = rows - mean[:, None]
        return cls(rows.shape[1], mean, centred.transpose(1, 2) @ centred, samples, x.double().mean(0))

    def merge(self, other: Moments) -> Moments:
        count, delta = self.count + other.count, other.mean - self.mean
        between = delta[:, :, None] * delta[:, None] * (self.count * other.count / count)
        share = other.samples / (self.samples + other.samples)
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.scatter + other.scatter + between,
            self.samples + other.samples,
            self.average + (other.average - self.average) * share,
        )


@dataclass(frozen=True, slots=True)
class _Problem:
    """One layer: its dense weights ``(group, output left, input, tap)``, which inputs are kept, and how many features
    each input stands for (``tied``)."""

    layer: Sum
    weights: Tensor
    kept: Tensor
    tied: int


def fold(
    dense: Graph, small: Graph, layers: list[Sum], fit: Parts, held: Parts, *, ridges: tuple[float, ...] = RIDGES
) -> tuple[Graph, dict[str, str]]:
    """The small graph with what was removed folded into its readers, and for each layer what it took.

    Without ``ridges``, constants alone. Statistics are those of the dense graph, gathered in one pass, or in several
    where those of all layers take more than a gigabyte.
    """
    tensors, took = dict(small.tensors), dict[str, str]()
    samples = sum(part.samples for part in fit())
    problems = [_problem(dense, layer, samples) for layer in layers if layer.cut and layer.inputs.numel()]
    for some in _chunks(problems):
        seen = [observed(dense, some, part) for part in (fit, held)]
        for problem in some:
            here, other = (s.get(problem.layer.node) for s in seen)
            took[problem.layer.weight] = _folded(problem, here, other, ridges, tensors)
    return small.with_tensors(tensors), took


def _problem(dense: Graph, layer: Sum, samples: int) -> _Problem:
    weights = layer.matrix(dense.tensors[layer.weight].detach(), layer.all_groups).double().cpu()
    chosen = torch.zeros(layer.all_groups * weights.shape[1], dtype=torch.bool)
    chosen[layer.outputs] = True
    each = len(layer.outputs) // len(layer.groups)
    rows = weights[layer.groups][chosen.view(layer.all_groups, -1)[layer.groups]].unflatten(0, (-1, each))
    kept = torch.zeros(layer.width, dtype=torch.bool)
    kept[layer.inputs] = True
    tied = 1
    if layer.window is None and (layer.width > LARGEST or layer.width * _ROWS_EACH > samples):
        tied = _run_length(kept)
    return _Problem(layer, rows.unflatten(2, (-1, tied)).flatten(3), kept.view(-1, tied)[:, 0], tied)


def _run_length(kept: Tensor) -> int:
    """The largest m such that the inputs go in runs of m: what the positions of a flattened channel do."""
    edges = np.flatnonzero(np.diff(kept.numpy())) + 1
    return math.gcd(len(kept), *edges.tolist())


def _chunks(problems: list[_Problem]) -> Iterator[list[_Problem]]:
    """As many at once as their statistics fit the memory."""
    number, held, of = 0, 0, []
    for problem in problems:
        size = 2 * 8 * len(problem.layer.groups) * len(problem.kept) ** 2
        number, held = (number + 1, size) if held + size > _MEMORY else (number, held + size)
        of.append(number)
    for _, some in itertools.groupby(zip(of, problems, strict=True), key=lambda pair: pair[0]):
        yield [problem for _, problem in some]


def observed(graph: Graph, problems: list[_Problem], parts: Parts) -> dict[str, Moments]:
    """Moments of what each layer reads, by the layer's node."""
    found: dict[str, Moments] = {}
    for part in parts():
        watch = _Watch(graph, problems, part.first, part.samples)
        with torch.no_grad():
            watch.run(initial_env=graph.bind(part.inputs))
        for node, here in watch.found.items():
            found[node] = found[node].merge(here) if node in found else here
    return found


class _Watch(fx.Interpreter):
    def __init__(self, graph: Graph, problems: list[_Problem], first: int, samples: int) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self.due = {problem.layer.node: problem for problem in problems}
        self.first, self.samples, self.found = first, samples, dict[str, Moments]()

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.due:
            problem = self.due[n.name]
            x = next(self.env[m] for m in n.all_input_nodes if m.name == problem.layer.operand).detach()
            self.found[n.name] = self._of(problem, x)
        return super().run_node(n)

    def _of(self, problem: _Problem, x: Tensor) -> Moments:
        layer = problem.layer
        if layer.window is None:
            rows = x.reshape(-1, x.shape[-1])
            return Moments.of(
                rows.unflatten(1, (-1, problem.tied)).transpose(1, 2).flatten(0, 1)[None], rows, len(rows)
            )
        flat = as_map(x).flatten(2)
        at = places(self.first, len(flat), flat.shape[2], wanted=SAMPLED).to(x.device)
        taken = flat.gather(2, at[:, None].expand(-1, flat.shape[1], -1)).unflatten(1, (layer.all_groups, -1))
        return Moments.of(taken.permute(1, 0, 3, 2).flatten(1, 2)[layer.groups], x, len(x))


# -- one layer ------------------------------------------------------------------------------------------------------


def _folded(
    problem: _Problem, fit: Moments | None, held: Moments | None, ridges: tuple[float, ...], tensors: dict[str, Tensor]
) -> str:
    """Puts the best candidate's values into ``tensors``; returns what it is called."""
    if fit is None:
        return "nothing"
    layer = problem.layer
    found = {"nothing": _Candidate(problem, None, None, None)}
    for ridge in (None, *ridges) if layer.constant else ridges:
        found["bias" if ridge is None else f"affine {ridge:g}"] = _candidate(problem, fit, ridge)
    errors = {name: candidate.error(held or fit) for name, candidate in found.items()}
    best = min(errors, key=lambda name: errors[name])
    found[best].store(tensors)
    return best


def _candidate(problem: _Problem, fit: Moments, ridge: float | None) -> _Candidate:
    layer, kept = problem.layer, problem.kept
    spread = fit.scatter / fit.count
    if layer.constant is None:  # through the origin
        spread = spread + fit.mean[:, :, None] * fit.mean[:, None]
    coefficients = None
    if ridge is not None:
        among = spread[:, kept][:, :, kept]
        level = ridge * among.diagonal(dim1=1, dim2=2).mean(1) + 1e-300
        among = among + level[:, None, None] * torch.eye(among.shape[1]).to(among)
        coefficients = torch.linalg.solve(among, spread[:, kept][:, :, ~kept]).transpose(1, 2)  # (group, P, K)
    return _Candidate(problem, coefficients, _taken(problem, fit), fit)


def _taken(problem: _Problem, moments: Moments) -> Tensor:
    """``(group, input, tap)``: what each tap reads on average."""
    layer = problem.layer
    mean = layer.taken_on_average(moments.average, layer.all_groups)[layer.groups]
    return mean.unflatten(1, (-1, problem.tied)).flatten(2).cpu()


class _Candidate:
    """Coefficients ``(group, removed, kept)``, None for none; ``taken`` by which the constant is made up, or None."""

    def __init__(
        self, problem: _Problem, coefficients: Tensor | None, taken: Tensor | None, fit: Moments | None
    ) -> None:
        self.problem = problem
        weights, kept = problem.weights, problem.kept
        self.added = torch.zeros_like(weights[:, :, kept])
        if coefficients is not None:
            self.added = torch.einsum("gopt,gpk->gokt", weights[:, :, ~kept], coefficients.cpu())
        self.missing = torch.empty_like(weights)  # what the dense layer has and this one has not
        self.missing[:, :, kept], self.missing[:, :, ~kept] = -self.added, weights[:, :, ~kept]
        self.constant = weights.new_zeros(weights.shape[:2])
        if taken is not None and problem.layer.constant is not None:
            self.constant = torch.einsum("goct,gct->go", self.missing, taken)

    def error(self, moments: Moments) -> float:
        """The mean squared error of the layer's outputs, where taps are taken as independent of one another."""
        spread = (moments.scatter / moments.count).cpu()
        noise = torch.einsum("goct,gcd,godt->", self.missing, spread, self.missing)
        off = torch.einsum("goct,gct->go", self.missing, _taken(self.problem, moments)) - self.constant
        return float(noise + off.square().sum())

    def store(self, tensors: dict[str, Tensor]) -> None:
        layer = self.problem.layer
        stored = tensors[layer.weight].detach()
        added = self.added.flatten(2)[..., None] if layer.window is None else self.added
        small = layer.matrix(stored, len(layer.groups)).double().cpu()
        tensors[layer.weight] = layer.as_stored(small + added, stored)
        if layer.constant is not None:
            name, sign = layer.constant
            held = tensors[name].detach()
            tensors[name] = (held.double() + sign * self.constant.flatten().to(held.device)).to(held)
