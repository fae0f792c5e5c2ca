"""translate: operators that become one ONNX node a layer, where the exporter would unroll them or get them wrong.

torch 2.15 unrolls ``rnn_tanh`` and ``rnn_relu`` step by step, and reads the weights of a projected LSTM wrongly. Each
function has the arguments of its ATen operator and builds ONNX nodes while the exporter calls it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir
import torch
from onnxscript import opset18

aten = torch.ops.aten
op: Any = opset18  # its types are those of values, here they are nodes in the making


@dataclass(frozen=True, slots=True)
class _Kind:
    """``gates``: PyTorch's order of gates in the order of ONNX (LSTM i o f c of i f c o; GRU z r h of r z h)."""

    node: Callable[..., Any]
    gates: tuple[int, ...]
    attributes: dict[str, Any]
    activation: str = ""


_LSTM = _Kind(op.LSTM, (0, 3, 1, 2), {})
_GRU = _Kind(op.GRU, (1, 0, 2), {"linear_before_reset": 1})
_TANH = _Kind(op.RNN, (0,), {}, "Tanh")
_RELU = _Kind(op.RNN, (0,), {}, "Relu")


def _lstm(input: Any, hx: Sequence[Any], params: Sequence[Any], has_biases: bool, num_layers: int, dropout: float,
          train: bool, bidirectional: bool, batch_first: bool) -> Any:  # fmt: skip
    shape = bool(has_biases), int(num_layers), 2 if bidirectional else 1
    if len(params) // shape[1] // shape[2] in (3, 5):
        steps = input.shape[1 if batch_first else 0]
        return _in_time_order(input, batch_first, lambda x: _projected(steps, x, hx, params, *shape))
    return _in_time_order(input, batch_first, lambda x: _layers(_LSTM, x, hx, params, *shape))


def _simple(kind: _Kind) -> Callable[..., Any]:
    def translation(input: Any, hx: Any, params: Sequence[Any], has_biases: bool, num_layers: int, dropout: float,
                    train: bool, bidirectional: bool, batch_first: bool) -> Any:  # fmt: skip
        shape = bool(has_biases), int(num_layers), 2 if bidirectional else 1
        return _in_time_order(input, batch_first, lambda x: _layers(kind, x, [hx], params, *shape))

    return translation


def _in_time_order(input: Any, batch_first: bool, layers: Callable[[Any], tuple[Any, ...]]) -> tuple[Any, ...]:
    """ONNX has steps first."""
    if not batch_first:
        return layers(input)
    out, *states = layers(op.Transpose(input, perm=[1, 0, 2]))
    return op.Transpose(out, perm=[1, 0, 2]), *states


def _layers(kind: _Kind, x: Any, states: Sequence[Any], params: Sequence[Any], has_biases: bool, num_layers: int,
            directions: int) -> tuple[Any, ...]:  # fmt: skip
    hidden = params[1].shape[1]
    each = len(params) // (num_layers * directions)
    ends: list[list[Any]] = [[] for _ in states]
    attributes = kind.attributes | ({"activations": [kind.activation] * directions} if kind.activation else {})
    for layer in range(num_layers):
        first = layer * directions
        ways = [params[(first + way) * each : (first + way + 1) * each] for way in range(directions)]
        y, *last = kind.node(
            x,
            _stacked([_ordered(kind, way[0], hidden) for way in ways]),
            _stacked([_ordered(kind, way[1], hidden) for way in ways]),
            _stacked([op.Concat(*(_ordered(kind, b, hidden) for b in way[2:4]), axis=0) for way in ways])
            if has_biases
            else None,
            None,
            *(_part(state, first, directions, num_layers * directions) for state in states),
            direction="bidirectional" if directions == 2 else "forward",
            hidden_size=hidden,
            **attributes,
        )
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        for end, value in zip(ends, last, strict=True):
            end.append(value)
    return x, *(end[0] if num_layers == 1 else op.Concat(*end, axis=0) for end in ends)


def _ordered(kind: _Kind, rows: Any, hidden: int) -> Any:
    """The gates of a weight or bias in the order of ONNX."""
    if len(kind.gates) == 1:
        return rows
    order = [gate * hidden + unit for gate in kind.gates for unit in range(hidden)]
    return op.Gather(rows, op.Constant(value_ints=order), axis=0)


def _stacked(parts: list[Any]) -> Any:
    """One row a direction."""
    rows = [op.Unsqueeze(part, op.Constant(value_ints=[0])) for part in parts]
    return rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)


def _part(state: Any, first: int, count: int, total: int) -> Any:
    """The rows of one layer's directions."""
    if count == total:
        return state
    bounds = (op.Constant(value_ints=[n]) for n in (first, first + count, 0))
    return op.Slice(state, *bounds)


# -- projections (ONNX has none): step by step ----------------------------------------------------------------------


def _projected(steps: Any, x: Any, states: Sequence[Any], params: Sequence[Any], has_biases: bool, num_layers: int,
               directions: int) -> tuple[Any, ...]:  # fmt: skip
    """``h = W_hr (o * tanh(c))`` (Sak 2014) after each step."""
    if not isinstance(steps, int):
        raise ValueError("an LSTM with a projection over a free number of steps has no form in ONNX")
    each = len(params) // (num_layers * directions)
    parts = iter(params[i : i + each] for i in range(0, len(params), each))
    ends: list[tuple[Any, Any]] = []
    for layer in range(num_layers):
        outs = []
        for way, (w_ih, w_hh, *biases, w_hr) in enumerate(itertools.islice(parts, directions)):
            row = op.Constant(value_int=layer * directions + way)
            h, c = (op.Gather(state, row, axis=0) for state in states)
            given = _linear(x, w_ih, biases[:1])
            found: list[Any] = [None] * steps
            for t in reversed(range(steps)) if way else range(steps):
                gates = op.Add(op.Gather(given, op.Constant(value_int=t), axis=0), _linear(h, w_hh, biases[1:]))
                i, f, g, o = op.Split(gates, axis=-1, num_outputs=4)
                c = op.Add(op.Mul(op.Sigmoid(f), c), op.Mul(op.Sigmoid(i), op.Tanh(g)))
                h = found[t] = _linear(op.Mul(op.Sigmoid(o), op.Tanh(c)), w_hr, [])
            outs.append(_stacked(found))
            ends.append((h, c))
        x = outs[0] if directions == 1 else op.Concat(*outs, axis=-1)
    return x, *(_stacked(list(rows)) for rows in zip(*ends, strict=True))


def _linear(x: Any, weight: Any, bias: Sequence[Any]) -> Any:
    product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
    return op.Add(product, bias[0]) if bias else product


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _simple(_GRU),
    aten.rnn_tanh.input: _simple(_TANH),
    aten.rnn_relu.input: _simple(_RELU),
}


def prepares_weights(node: onnx_ir.Node) -> bool | None:
    """Whatever rearranges weights for a recurrent node is done once, however large they are."""
    recurrent = ("LSTM", "GRU", "RNN")
    users = [user for output in node.outputs for user, _ in output.uses()]
    if users and all(user.op_type in recurrent or prepares_weights(user) for user in users):
        return True
    return None
