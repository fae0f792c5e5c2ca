"""Least-squares recovery: each layer in turn is fitted to the dense layer's output on what the small model feeds it.

With X what a layer of the small graph takes in on the data (all taps of all channels, and a one), fitted layers before
it included, and Y the output of the dense layer, ``W = (X'X + l I)^-1 (X'Y + l W0)`` (He, Zhang, Sun 2017, with ridge
towards the weights there are). Where the output is added to a value that is there already, as at the end of a residual
block, Y also makes up for what that value has lost; where a ReLU follows, only what comes out of it counts. A layer
whose error on samples held out does not fall keeps its weights. What recurrent and shared layers take in changes with
their weights: ``repeated_layers``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slim_model.data.holdout import Parts
from slim_model.graph.graph import Graph
from slim_model.progress import Progress, count_in_text, say_nothing
from slim_model.recovery.gate_layers import note
from slim_model.recovery.linear_layers import LinearLayer
from slim_model.recovery.regression_rows import Products, Rows, products_of, solved
from slim_model.recovery.repeated_layers import fit_in_rounds, fitted_together
from slim_model.recovery.streamed_run import MEMORY, StreamedRun

RIDGES = (1e-5, 1e-3, 1e-1)
"""Relative to the mean of the diagonal."""
LARGEST = 4096
"""Columns of a layer beyond which it keeps its weights: their products alone take 128 MB."""
_ROWS_EACH = 100  # rows for each column
_PLACES = 16  # of a sample, at least
_TURNS = 2


def fit_layers(
    dense: Graph,
    small: Graph,
    layers: list[LinearLayer],
    fit: Parts,
    held_out: Parts,
    *,
    ridges: Sequence[float] = RIDGES,
    memory: int = MEMORY,
    progress: Progress = say_nothing,
) -> tuple[Graph, dict[str, str]]:
    """The small graph with fitted weights, and for each layer behind the first cut what it took.

    ``ridges`` are tried, each relative to the mean of the diagonal; ``memory``: bytes of values kept between layers.
    """
    half = memory // 2  # each pair of tracks shares the memory
    tracks = [(StreamedRun(dense, part, half), StreamedRun(small, part, half)) for part in (fit, held_out)]
    samples, tensors, took = sum(part.samples for part in fit()), dict(small.tensors), dict[str, str]()
    start = next((i for i, layer in enumerate(layers) if layer.cut or layer.silent_in(small)), len(layers))
    units = fitted_together(layers[start:])
    count = count_in_text(progress, "fitting layers")
    for number, unit in enumerate(units):
        count(number, len(units))
        if (size := max(layer.columns for layer in unit)) > LARGEST:
            said, changed = [f"kept: {size} columns"] * len(unit), dict[str, Tensor]()
        elif unit[0].repeated:
            places = max(_PLACES, -(-_ROWS_EACH * size // (samples * len(unit[0].calls))))
            said, changed = fit_in_rounds(unit, tracks, places, ridges, tensors)
        else:
            places = max(_PLACES, -(-_ROWS_EACH * size // samples))
            ours, unseen = (Rows(unit[0], unit[0].calls[0], big, little, places) for big, little in tracks)
            what, changed = _fitted(unit[0], ours, unseen, tensors, ridges)
            said = [what]
        for layer, what in zip(unit, said, strict=True):
            note(took, layer, what)
        tensors |= changed
        for _, little in tracks:
            little.replace(changed)
    return small.with_tensors(tensors), took


def _fitted(
    layer: LinearLayer, fit: Rows, held_out: Rows, tensors: dict[str, Tensor], ridges: Sequence[float]
) -> tuple[str, dict[str, Tensor]]:
    """What the layer took, and the values that change."""
    now = layer.now(tensors)
    known, unseen = products_of(fit), products_of(held_out)
    assert known is not None
    solutions = {ridge: solved(layer, known, now, ridge) for ridge in ridges}
    judged = unseen or known
    ridge = min(solutions, key=lambda r: judged.error(solutions[r]))
    candidates = {"kept": now, "fitted": solutions[ridge]}
    if fit.sink.rectified:
        candidates["fitted behind its ReLU"] = _behind(layer, fit, known, ridge, candidates["fitted"], now)
    errors = _errors(held_out if unseen else fit, candidates)
    best = min(errors, key=lambda name: errors[name])
    said = f"{best}: error {errors['kept']:.3g} -> {errors[best]:.3g}"
    return said, {} if best == "kept" else layer.refitted(candidates[best], tensors)


def _behind(layer: LinearLayer, rows: Rows, known: Products, ridge: float, weights: Tensor, now: Tensor) -> Tensor:
    """Where the ReLU shuts it does not matter how far: the targets follow the fit there (Zhang, Zou, He, Sun
    2015), which never raises the error behind the ReLU."""
    for _ in range(_TURNS):
        xy = torch.zeros_like(known.xy)
        for row in rows:
            targets = row.targets
            if row.rises is not None:
                targets = rows.targets_of(row, row.taken @ weights.to(row.taken))
            xy += (row.taken.transpose(1, 2) @ targets).double()
        weights = solved(layer, Products(known.xx, xy, known.yy), now, ridge)
    return weights


def _errors(rows: Rows, candidates: dict[str, Tensor]) -> dict[str, float]:
    """Of each candidate, relative to that of giving nothing."""
    wrong, whole = dict.fromkeys(candidates, 0.0), 0.0
    for row in rows:
        for name, weights in candidates.items():
            wrong[name] += rows.error(row, row.taken @ weights.to(row.taken))
        whole += rows.error(row, torch.zeros_like(row.targets))
    return {name: error / max(whole, 1e-300) for name, error in wrong.items()}
