"""Least-squares recovery: each layer in turn is fitted to the dense layer's output on what the small model feeds it.

With X what a layer of the small graph takes in on the data (all taps of all channels, and a one), fitted layers before
it included, and Y the output of the dense layer, ``W = (X'X + l I)^-1 (X'Y + l W0)`` (He, Zhang, Sun 2017, with ridge
towards the weights there are). Where the output is added to a value that is there already, as at the end of a residual
block, Y also makes up for what that value has lost; where a ReLU follows, only what comes out of it counts. A layer
whose error on samples held out does not fall keeps its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.data.holdout import Parts
from slim_model.graph.graph import Graph
from slim_model.progress import Progress, say_nothing
from slim_model.recovery.linear_layers import LinearLayer
from slim_model.recovery.regression_rows import Rows
from slim_model.recovery.streamed_run import MEMORY, StreamedRun

RIDGES = (1e-5, 1e-3, 1e-1)
"""Relative to the mean of the diagonal."""
LARGEST = 4096
"""Columns of a layer beyond which it keeps its weights: their products alone take 128 MB."""
_ROWS_EACH = 100  # rows for each column
_PLACES = 16  # of a sample, at least
_TURNS = 2


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


def fit_layers(
    dense: Graph,
    small: Graph,
    layers: list[LinearLayer],
    fit: Parts,
    held: Parts,
    *,
    ridges: Sequence[float] = RIDGES,
    memory: int = MEMORY,
    progress: Progress = say_nothing,
) -> tuple[Graph, dict[str, str]]:
    """The small graph with fitted weights, and for each layer behind the first cut what it took.

    ``ridges`` are tried, each relative to the mean of the diagonal; ``memory``: bytes of values kept between layers.
    """
    nodes = {node.name: node for node in dense.nodes}
    tracks = [(StreamedRun(dense, part, memory // 2), StreamedRun(small, part, memory // 2)) for part in (fit, held)]
    samples, tensors, took = sum(part.samples for part in fit()), dict(small.tensors), dict[str, str]()
    start = next((i for i, layer in enumerate(layers) if layer.cut), len(layers))
    for number, layer in enumerate(layers[start:]):
        progress(f"fitting layer {number + 1} of {len(layers) - start}")
        if (size := _columns(layer)) > LARGEST:
            took[layer.weight] = f"kept: {size} columns"
            continue
        wanted = max(_PLACES, -(-_ROWS_EACH * size // samples))
        ours, unseen = (Rows(nodes[layer.node], layer, big, little, wanted) for big, little in tracks)
        took[layer.weight], changed = _fitted(layer, ours, unseen, tensors, ridges)
        tensors |= changed
        for _, little in tracks:
            little.replace(changed)
    return small.with_tensors(tensors), took


def _columns(layer: LinearLayer) -> int:
    return len(layer.inputs) * layer.taps + (layer.constant is not None)


def _products(rows: Rows) -> _Products | None:
    """All parts together; None where there is none."""
    found = None
    for row in rows:
        turned = row.taken.transpose(1, 2)
        here = _Products(
            (turned @ row.taken).double(), (turned @ row.wanted).double(), row.wanted.double().square().sum()
        )
        found = here if found is None else found.merge(here)
    return found


def _fitted(
    layer: LinearLayer, fit: Rows, held: Rows, tensors: dict[str, Tensor], ridges: Sequence[float]
) -> tuple[str, dict[str, Tensor]]:
    """What the layer took, and the values that change."""
    now = _now(layer, tensors)
    known, unseen = _products(fit), _products(held)
    assert known is not None
    solutions = {ridge: _solved(layer, known, now, ridge) for ridge in ridges}
    judged = unseen or known
    ridge = min(solutions, key=lambda r: judged.error(solutions[r]))
    found = {"kept": now, "fitted": solutions[ridge]}
    if fit.sink.rectified:
        found["fitted behind its ReLU"] = _behind(layer, fit, known, ridge, found["fitted"], now)
    errors = _errors(held if unseen else fit, found)
    best = min(errors, key=lambda name: errors[name])
    said = f"{best}: error {errors['kept']:.3g} -> {errors[best]:.3g}"
    return said, {} if best == "kept" else _stored(layer, found[best], tensors)


def _now(layer: LinearLayer, tensors: dict[str, Tensor]) -> Tensor:
    """``(group, column, output)``: the weights there are, and the constant as a last row."""
    groups = len(layer.groups)
    now = layer.matrix(tensors[layer.weight].detach(), groups).flatten(2).transpose(1, 2).double()
    if layer.constant is not None:
        name, sign = layer.constant
        now = torch.cat([now, sign * tensors[name].detach().double().view(groups, 1, -1)], 1)
    return now


def _stored(layer: LinearLayer, weights: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    changed = {}
    if layer.constant is not None:
        name, sign = layer.constant
        changed[name] = (sign * weights[:, -1].flatten()).to(tensors[name])
        weights = weights[:, :-1]
    stored = tensors[layer.weight].detach()
    changed[layer.weight] = layer.as_stored(weights.transpose(1, 2).unflatten(2, (-1, layer.taps)), stored)
    return changed


def _behind(layer: LinearLayer, rows: Rows, known: _Products, ridge: float, weights: Tensor, now: Tensor) -> Tensor:
    """Where the ReLU shuts it does not matter how far: the wanted values follow the fit there (Zhang, Zou, He, Sun
    2015), which never raises the error behind the ReLU."""
    for _ in range(_TURNS):
        xy = torch.zeros_like(known.xy)
        for row in rows:
            wanted = row.wanted
            if row.rises is not None:
                wanted = rows.wanted_of(row, row.taken @ weights.to(row.taken))
            xy += (row.taken.transpose(1, 2) @ wanted).double()
        weights = _solved(layer, _Products(known.xx, xy, known.yy), now, ridge)
    return weights


def _errors(rows: Rows, found: dict[str, Tensor]) -> dict[str, float]:
    """Of each candidate, relative to that of giving nothing."""
    wrong, whole = dict.fromkeys(found, 0.0), 0.0
    for row in rows:
        for name, weights in found.items():
            wrong[name] += rows.error(row, row.taken @ weights.to(row.taken))
        whole += rows.error(row, torch.zeros_like(row.wanted))
    return {name: error / max(whole, 1e-300) for name, error in wrong.items()}


def _solved(layer: LinearLayer, fit: _Products, now: Tensor, ridge: float) -> Tensor:
    """Ridge towards the weights ``now``; the constant is free."""
    diagonal = fit.xx.diagonal(dim1=1, dim2=2).clone()
    if layer.constant is not None:
        diagonal[:, -1] = 0
    level = torch.where(diagonal > 0, ridge * diagonal.mean(1, keepdim=True), 0.0) + 1e-12 * diagonal.amax(
        1, keepdim=True
    )
    return torch.linalg.solve(fit.xx + torch.diag_embed(level), fit.xy + level[..., None] * now)
