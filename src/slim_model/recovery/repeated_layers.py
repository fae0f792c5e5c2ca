"""Least squares for layers whose inputs change with their own weights: recurrent ones, and weights used several times.

All calls and steps are rows of one regression. Its columns are what the small model takes in when it runs by itself,
its own states among them, and its targets the sums of the dense model (of its gates, ahead of their curves). After each
fit the small model runs anew and is fitted again, as in the data aggregation of Ross, Gordon, Bagnell 2011; what has
the least error when it runs by itself, on samples held out, is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from slim_model.ranking.evidence.sampling import sample_positions
from slim_model.recovery.gate_layers import GateLayer, Trail, trail_of
from slim_model.recovery.linear_layers import Call, LinearLayer
from slim_model.recovery.regression_rows import RegressionRows, Rows, products_of, solved
from slim_model.recovery.streamed_run import StreamedRun

ROUNDS = 4
_GAIN = 0.99
"""What a round must leave of the error, for another one to follow."""
Tracks = tuple[StreamedRun, StreamedRun]
"""The dense model, and the small one."""


def fitted_together(layers: list[LinearLayer]) -> list[list[LinearLayer]]:
    """Gates of one layer and direction are; any other layer is alone."""

    def unit(layer: LinearLayer) -> tuple[object, ...]:
        return (layer.node, layer.at) if isinstance(layer, GateLayer) else (layer.node,)

    return [list(some) for _, some in itertools.groupby(layers, key=unit)]


def fit_in_rounds(
    unit: list[LinearLayer], tracks: list[Tracks], places: int, ridges: Sequence[float], tensors: dict[str, Tensor]
) -> tuple[list[str], dict[str, Tensor]]:
    """What each layer of the unit took, and the values that change. ``tracks``: on what is fitted, and what is held
    out; ``places`` of each sample become rows."""
    layer, (fit, held_out) = unit[0], tracks
    best = first = _own_error(unit, held_out, {}, places)
    judged = held_out
    if best is None:  # nothing is held out
        judged, best = fit, _own_error(unit, fit, {}, places)
        first = best
    assert best is not None
    assert first is not None
    changed: dict[str, Tensor] = {}
    for _ in range(ROUNDS if _feeds_itself(layer, fit[1]) else 1):
        known = [products_of(_rows(part, fit, changed, places)) for part in unit]
        tried = {}
        for ridge in ridges:
            trial = dict(changed)
            for part, products in zip(unit, known, strict=True):
                assert products is not None
                now = part.now(tensors | trial)
                trial |= part.refitted(solved(part, products, now, ridge), tensors | trial)
            error = _own_error(unit, judged, trial, places)
            if error is not None and error < best:
                tried[error] = trial
        if not tried:
            break
        error = min(tried)
        changed, enough, best = tried[error], error > _GAIN * best, error
        if enough:
            break
    return [f"{'fitted' if changed else 'kept'}: error {first:.3g} -> {best:.3g}"] * len(unit), changed


def _feeds_itself(layer: LinearLayer, track: StreamedRun) -> bool:
    """What it gives at one step or call comes back at a later one."""
    calls = {call.node for call in layer.calls}
    reached = {track.nodes[track.index[layer.node]]}
    for node in track.nodes[track.index[layer.node] + 1 :]:
        if any(source in reached for source in node.all_input_nodes):
            if node.name in calls:
                return True
            reached.add(node)
    return isinstance(layer, GateLayer)


def _with(track: StreamedRun, layer: LinearLayer, changed: dict[str, Tensor]) -> StreamedRun:
    """A run with other values, which leaves the track where it is."""
    run = track.trying(changed)
    return run.at_start() if len(layer.calls) > 1 else run


def _rows(layer: LinearLayer, tracks: Tracks, changed: dict[str, Tensor], places: int) -> Iterator[RegressionRows]:
    dense, small = _with(tracks[0], layer, {}), _with(tracks[1], layer, changed)
    for call in layer.calls:
        yield from (
            _of_gates(layer, call, dense, small, places)
            if isinstance(layer, GateLayer)
            else Rows(layer, call, dense, small, places)
        )


def _of_gates(
    layer: GateLayer, call: Call, dense: StreamedRun, small: StreamedRun, places: int
) -> Iterator[RegressionRows]:
    weights, constant = layer.weights_in(dense.tensors, 1)[0, :, :, 0], layer.constant_in(dense.tensors)
    for theirs, ours, first in _trails(layer, call, dense, small):
        targets = layer.taken(theirs) @ weights.T
        if constant is not None:
            targets = targets + constant.to(targets)
        targets = targets.index_select(-1, layer.outputs.to(targets.device))
        taken = layer.taken(ours)
        if constant is not None:
            taken = torch.cat([taken, taken.new_ones(*taken.shape[:2], 1)], 2)
        at = sample_positions(first, taken.shape[1], taken.shape[0], at_most=places).T.to(
            taken.device
        )  # (step, sample)
        taken, targets = (
            x.gather(0, at[..., None].expand(-1, -1, x.shape[2])).flatten(0, 1)[None] for x in (taken, targets)
        )
        yield RegressionRows(taken, targets, None)


def _trails(layer: GateLayer, call: Call, dense: StreamedRun, small: StreamedRun) -> Iterator[tuple[Trail, Trail, int]]:
    """Of the dense and of the small model, and the number of the first sample."""
    nodes = [track.nodes[track.index[call.node]] for track in (dense, small)]
    for big, little in zip(dense.before(call.node), small.before(call.node), strict=True):
        theirs = trail_of(nodes[0], layer.at, partial(dense.value, big))
        ours = trail_of(nodes[1], layer.at, partial(small.value, little))
        yield theirs, ours, big.part.first


def _own_error(unit: list[LinearLayer], tracks: Tracks, changed: dict[str, Tensor], places: int) -> float | None:
    """Squared, of what the small model gives when it runs by itself with ``changed``, relative to the spread of what
    it should give; None where there is no sample."""
    layer, wrong, whole, some = unit[0], 0.0, 0.0, False
    dense, small = _with(tracks[0], layer, {}), _with(tracks[1], layer, changed)
    weights = layer.now(small.tensors)
    for call in layer.calls:
        if isinstance(layer, GateLayer):
            for theirs, ours, _ in _trails(layer, call, dense, small):
                targets = theirs.output.index_select(-1, _units(unit, theirs).to(theirs.output.device)).double()
                wrong += float((ours.output - targets).square().sum())
                whole += float((targets - targets.mean((0, 1))).square().sum())
                some = True
            continue
        rows = Rows(layer, call, dense, small, places)
        for row in rows:
            wrong += rows.error(row, row.taken @ weights.to(row.taken))
            whole += rows.error(row, torch.zeros_like(row.targets))
            some = True
    return wrong / max(whole, 1e-300) if some else None


def _units(unit: list[LinearLayer], trail: Trail) -> Tensor:
    """The dense positions left of the output."""
    last = unit[-1]
    assert isinstance(last, GateLayer)
    outputs, width = last.outputs, trail.output.shape[-1]
    return outputs[outputs < width]
