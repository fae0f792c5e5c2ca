"""Ridge regression of a layer's removed inputs on its kept ones, from their moments."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from slim_model.graph.graph import Graph
from slim_model.ranking.evidence.moments import Covariances, Moments
from slim_model.recovery.linear_layers import LinearLayer

LARGEST = 4096
"""Inputs of a layer beyond which those that were one channel before they were flattened share their coefficients."""
_ROWS_EACH = 5


@dataclass(frozen=True, slots=True)
class InputMoments:
    """What a layer reads: of its ``rows``, ``(group, input)`` means and ``(group, input, input)`` scatter about them;
    of ``samples``, the mean of the whole operand."""

    rows: Covariances
    samples: Moments

    @classmethod
    def of(cls, rows: Tensor, x: Tensor, samples: int) -> InputMoments:
        """``rows (group, row, input)`` of the operand ``x``, whose axis 0 holds ``samples``."""
        rows = rows.double()
        mean = rows.mean(1)
        centred = rows - mean[:, None]
        scatter = centred.transpose(1, 2) @ centred
        average = x.mean(0, dtype=torch.float64)
        return cls(Covariances(rows.shape[1], (mean,), (scatter,)), Moments(samples, (average,)))

    def merge(self, other: InputMoments) -> InputMoments:
        return InputMoments(self.rows.merge(other.rows), self.samples.merge(other.samples))

    @property
    def average(self) -> Tensor:
        return self.samples.means[0]


@dataclass(frozen=True, slots=True)
class RidgeProblem:
    """One layer: its dense weights ``(group, output left, input, tap)``, which inputs are kept, and how many features
    each input stands for (``tied``)."""

    layer: LinearLayer
    weights: Tensor
    kept: Tensor
    tied: int

    @property
    def key(self) -> Hashable:
        """Of two plans that have the same, the same is observed."""
        return self.layer.key, self.tied, tuple(self.layer.groups.tolist())

    def silent(self) -> RidgeProblem:
        """The same layer, of which no input is kept: its weights are zero, and a constant is all that it can give."""
        return replace(self, kept=torch.zeros_like(self.kept))


def problem_of(dense: Graph, layer: LinearLayer, samples: int) -> RidgeProblem:
    weights = layer.weights_in(dense.tensors, layer.all_groups).double().cpu()
    chosen = torch.zeros(layer.all_groups * weights.shape[1], dtype=torch.bool)
    chosen[layer.outputs] = True
    each = len(layer.outputs) // len(layer.groups)
    rows = weights[layer.groups][chosen.view(layer.all_groups, -1)[layer.groups]].unflatten(0, (-1, each))
    kept = torch.zeros(layer.width, dtype=torch.bool)
    kept[layer.inputs] = True
    tied = 1
    flat = layer.window is None and not layer.repeated
    if flat and (layer.width > LARGEST or layer.width * _ROWS_EACH > samples):
        tied = _run_length(kept)
    return RidgeProblem(layer, rows.unflatten(2, (-1, tied)).flatten(3), kept.view(-1, tied)[:, 0], tied)


def _run_length(kept: Tensor) -> int:
    """The largest m such that the inputs go in runs of m: what the positions of a flattened channel do."""
    edges = np.flatnonzero(np.diff(kept.numpy())) + 1
    return math.gcd(len(kept), *edges.tolist())


def solve_ridge(problem: RidgeProblem, fit: InputMoments, ridge: float | None) -> RidgeSolution:
    layer, kept = problem.layer, problem.kept
    spread = fit.rows.scatter / fit.rows.count
    if layer.constant is None:  # through the origin
        spread = spread + fit.rows.mean[:, :, None] * fit.rows.mean[:, None]
    coefficients = None
    if ridge is not None:
        among = spread[:, kept][:, :, kept]
        level = ridge * among.diagonal(dim1=1, dim2=2).mean(1) + 1e-300
        among = among + level[:, None, None] * torch.eye(among.shape[1]).to(among)
        coefficients = torch.linalg.solve(among, spread[:, kept][:, :, ~kept]).transpose(1, 2)  # (group, P, K)
    return RidgeSolution(problem, coefficients, mean_inputs(problem, fit))


def mean_inputs(problem: RidgeProblem, moments: InputMoments) -> Tensor:
    """``(group, input, tap)``: what each tap reads on average."""
    layer = problem.layer
    mean = moments.average
    if layer.window is None or not layer.repeated:
        mean = layer.taken_on_average(mean, layer.all_groups)
    mean = mean[layer.groups]
    return mean.unflatten(1, (-1, problem.tied)).flatten(2).cpu()


class RidgeSolution:
    """Coefficients ``(group, removed, kept)``, None for none; ``taken`` by which the constant is made up, or None."""

    def __init__(self, problem: RidgeProblem, coefficients: Tensor | None, taken: Tensor | None) -> None:
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

    def error(self, moments: InputMoments) -> float:
        """The mean squared error of the layer's outputs, where taps are taken as independent of one another."""
        spread = (moments.rows.scatter / moments.rows.count).cpu()
        noise = torch.einsum("goct,gcd,godt->", self.missing, spread, self.missing)
        off = torch.einsum("goct,gct->go", self.missing, mean_inputs(self.problem, moments)) - self.constant
        return float(noise + off.square().sum())

    def store(self, tensors: dict[str, Tensor]) -> None:
        layer = self.problem.layer
        added = self.added.flatten(2)[..., None] if layer.window is None else self.added
        small = layer.weights_in(tensors, len(layer.groups)).double().cpu()
        added = added if self.problem.kept.any() else torch.zeros_like(small)
        stored = layer.constant_in(tensors)
        constant = None if stored is None else stored.cpu() + self.constant.flatten()
        tensors |= layer.changed(small + added, constant, tensors)
