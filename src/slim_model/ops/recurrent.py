"""Recurrent layers. A hidden unit is one row in every gate of every weight and bias, one column of ``weight_hh``, and
one position of the state. All layers and directions of one call share the state's tensors, so unit i goes in all of
them.

A removed unit is exactly zero at every step: with zero rows its gates are sigmoid(0) and tanh(0), so the cell is half
the last one plus nothing (LSTM), half the last state (GRU), or tanh(0) (RNN), and starts from zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from slim_model.labels.values import Axis, Value
from slim_model.labels.walk import Walk
from slim_model.ops.row import Op
from slim_model.ops.training_switch import TrainingSwitch

aten = torch.ops.aten
_WEIGHTS = "its weights are fixed"
_STATE = "its initial state is fixed"
_PLACES = "its positions are steps, samples or layers"


def lstm(walk: Walk, hx: list[Value], params: list[Value], **rest: Any) -> list[Value]:
    """hx is (h, c). With a projection (Sak 2014) h is narrower: weight_hr makes it, weight_hh reads it."""
    return _layers(walk, 4, hx, params, **rest)


def simple(gates: int) -> Any:
    """GRU (three gates) and RNN (one): the state is one tensor."""

    def flow(walk: Walk, hx: Value, params: list[Value], **rest: Any) -> list[Value]:
        return _layers(walk, gates, [hx], params, **rest)

    return flow


def _layers(
    walk: Walk,
    gates: int,
    states: list[Value],
    params: list[Value],
    *,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    input: Value | None = None,
    data: Value | None = None,  # instead of an input, steps of all samples in one row (a packed sequence)
    **_: Any,
) -> list[Value]:
    """The output, and each state after the last step."""
    source = input or data
    assert source is not None
    for value in (source, *states):
        for axis in value.axes[:-1]:
            walk.pin(axis, _PLACES)
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    made: list[tuple[Axis, Axis]] = []
    given = source.axes[-1]
    for first in range(0, len(params), each * directions):
        starts = range(first, first + each * directions, each)
        here = [_layer(walk, gates, given, params[start : start + each], has_biases) for start in starts]
        given = _side_by_side([out for out, _ in here])
        made += here
    result = [walk.out((*[None] * (len(source.shape) - 1), given))]
    for i, value in enumerate(states):  # the state's own shape: torch 2.11 notes another for what comes out
        axis = walk.agree([value.axes[-1], *(axes[i] for axes in made)], _STATE)
        result.append(Value(value.shape, (None, None, axis)))
    return result


def _layer(walk: Walk, gates: int, given: Axis, weights: Sequence[Value], has_biases: bool) -> tuple[Axis, Axis]:
    """One layer and direction; labels of its output and of its units (the same without a projection)."""
    w_ih, w_hh, *more = weights
    projection = more[2 if has_biases else 0 :]
    units = _units(walk, gates, weights[: 4 if has_biases else 2])
    walk.reads(given, w_ih.axes[1])
    if not projection:
        walk.reads(units, w_hh.axes[1])
        return units, units
    walk.reads(units, projection[0].axes[1])
    out = walk.makes(projection[0].axes[0])
    walk.splits([out])  # ranked apart from the units
    walk.reads(out, w_hh.axes[1])
    return out, units


def _units(walk: Walk, gates: int, weights: Sequence[Value | None]) -> Axis:
    """Every weight and bias has one row a unit in each gate."""
    rows = [w.axes[0] for w in weights if w is not None]
    axis = walk.agree(rows, _WEIGHTS)
    if axis is None:  # a user counts units: those of one gate
        walk.makes(next((row.reshape(gates, -1)[0] for row in rows if row is not None), None))
        return None
    for row in rows[:2]:
        walk.makes(row)
    blocks = axis.reshape(gates, -1)
    walk.tie(blocks[:1], blocks)
    return blocks[0].contiguous()


def _side_by_side(axes: list[Axis]) -> Axis:
    labelled = [axis for axis in axes if axis is not None]
    return torch.cat(labelled) if len(labelled) == len(axes) else None


def lstm_cell(walk: Walk, input: Value, hx: list[Value], **weights: Any) -> list[Value]:
    axis = _cell(walk, 4, input, hx, **weights)
    return [walk.out((None, axis), 0), walk.out((None, axis), 1)]


def simple_cell(gates: int) -> Any:
    def flow(walk: Walk, input: Value, hx: Value, **weights: Any) -> Value:
        return walk.out((None, _cell(walk, gates, input, [hx], **weights)))

    return flow


def _cell(
    walk: Walk,
    gates: int,
    input: Value,
    states: list[Value],
    w_ih: Value,
    w_hh: Value,
    b_ih: Value | None,
    b_hh: Value | None,
) -> Axis:
    """One step."""
    for value in (input, *states):
        for axis in value.axes[:-1]:
            walk.pin(axis, _PLACES)
    units = _units(walk, gates, (w_ih, w_hh, b_ih, b_hh))
    walk.reads(input.axes[-1], w_ih.axes[1])
    walk.reads(units, w_hh.axes[1])
    return walk.agree([units, *(state.axes[-1] for state in states)], _STATE)


def pack_sequence(walk: Walk, input: Value, **_: Any) -> list[Value]:
    for axis in input.axes[:-1]:
        walk.pin(axis, _PLACES)
    return [walk.out((None, input.axes[-1]), 0), *walk.fixed_outputs()[1:]]


def unpack(walk: Walk, data: Value, **_: Any) -> list[Value]:
    walk.pin(data.axes[0], _PLACES)
    return [walk.out((None, None, data.axes[1]), 0), *walk.fixed_outputs()[1:]]


def shapes(hx: Any, params: Any = None, input: Any = None, bidirectional: bool = False, **_: Any) -> Any:
    """Empty outputs, from tensors of any kind. PyTorch runs these operators on symbolic sizes by fixing the sizes."""
    states = [torch.empty_like(state) for state in (hx if isinstance(hx, list | tuple) else [hx])]
    if params is None:  # a cell
        return tuple(states) if len(states) > 1 else states[0]
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return input.new_empty((*input.shape[:-1], width)), *states


def input_weight(params: Any = (), num_layers: int = 1, bidirectional: bool = False, w_ih: Any = None, **_: Any) -> Any:
    """``(rows, in)``: by what the input is multiplied, in all gates and directions."""
    if w_ih is not None:
        return w_ih.detach()
    each = len(params) // (num_layers * 2) if bidirectional else len(params)
    return torch.cat([params[i].detach() for i in ((0, each) if bidirectional else (0,))])


def macs(out: Value, params: list[Value], **_: Any) -> int:
    """Every weight once for each step and sample; gates' own products are not counted."""
    return math.prod(out.shape[:-1]) * sum(math.prod(w.shape) for w in params if len(w.shape) == 2)


def cell_macs(out: Value, w_ih: Value, w_hh: Value, **_: Any) -> int:
    return out.shape[0] * sum(math.prod(w.shape) for w in (w_ih, w_hh))


def _layers_of(flow: Any) -> Op:
    switch = TrainingSwitch("train", rate="dropout")
    return Op(flow, macs, masks="inputs", kind="recurrent", training_switch=switch)


def _cell_of(flow: Any) -> Op:
    return Op(flow, cell_macs, masks="inputs", kind="recurrent")


ROWS: dict[Any, Op] = {
    aten.lstm: _layers_of(lstm),
    aten.gru: _layers_of(simple(3)),
    aten.rnn_tanh: _layers_of(simple(1)),
    aten.rnn_relu: _layers_of(simple(1)),
    aten.lstm_cell: _cell_of(lstm_cell),
    aten.gru_cell: _cell_of(simple_cell(3)),
    aten.rnn_tanh_cell: _cell_of(simple_cell(1)),
    aten.rnn_relu_cell: _cell_of(simple_cell(1)),
    aten._pack_padded_sequence: Op(pack_sequence),
    aten._pad_packed_sequence: Op(unpack),
}
