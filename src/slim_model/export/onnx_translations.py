"""Operators that become one ONNX node a layer, where the exporter would unroll them or get them wrong.

torch 2.15 unrolls ``rnn_tanh`` and ``rnn_relu`` step by step, and reads the weights of a projected LSTM wrongly. It
makes up a bias of two axes for a ``conv3d`` that has none, and forgets ``keepdim`` of a norm over all axes (onnxscript
0.7.2). A function has the arguments of its ATen operator and builds ONNX nodes while the exporter calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir
import torch
from onnxscript import opset18

from slim_model.from_onnx.kept import model_of

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
    each, hidden = len(params) // (num_layers * directions), params[0].shape[0] // len(kind.gates)
    ends: list[list[Any]] = [[] for _ in states]
    named = kind.attributes | ({"activations": [kind.activation] * directions} if kind.activation else {})
    for first in range(0, num_layers * directions, directions):
        ways = [params[(first + way) * each : (first + way + 1) * each] for way in range(directions)]
        w, r = ([_ordered(kind, way[i], hidden) for way in ways] for i in (0, 1))
        b = [op.Concat(*(_ordered(kind, bias, hidden) for bias in way[2:4]), axis=0) for way in ways if has_biases]
        own = [_part(state, first, directions, num_layers * directions) for state in states]
        projections = [way[-1] for way in ways] if each in (3, 5) else []
        # ONNX has no projection: the layer is computed without it, in a form that gives the same.
        if projections:
            x, w, r, own = _without_projection(x, w, r, own, projections)
        weights = _stacked(w), _stacked(r), _stacked(b) if b else None
        direction = "bidirectional" if directions == 2 else "forward"
        y, *last = kind.node(x, *weights, None, *own, direction=direction, hidden_size=hidden, **named)
        if projections:
            after = op.Transpose(_stacked(projections), perm=[0, 2, 1])
            y, last[0] = op.MatMul(y, after), op.MatMul(last[0], after)
        # ONNX gives (time, direction, batch, hidden); the next layer reads (time, batch, directions x hidden).
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), _numbers(0, 0, -1))
        for end, value in zip(ends, last, strict=True):
            end.append(value)
    return x, *(end[0] if num_layers == 1 else op.Concat(*end, axis=0) for end in ends)


def _without_projection(x: Any, w: list[Any], r: list[Any], states: list[Any], projections: list[Any]) -> Any:
    """The same LSTM without its projection P (Sak 2014), which ONNX has none of: h = P m, so that what is fed back is
    (R P) m. The state it starts from is given as h, and enters with the input of the first step."""
    later = op.Sub(op.Shape(x, start=0, end=1), _numbers(1))
    starts = []
    for way in range(len(w)):  # the other direction starts at the last step
        none, rest = (_numbers(0, 0), _numbers(0, 0, 0))
        pads = [later, none, rest] if way else [rest, later, none]
        starts.append(op.Pad(_part(states[0], way, 1, len(w)), op.Concat(*pads, axis=0)))
    fed = [[r[i] if i == j else op.Sub(r[i], r[i]) for j in range(len(w))] for i in range(len(w))]
    w = [op.Concat(w[i], *fed[i], axis=1) for i in range(len(w))]
    r = [op.MatMul(r[i], projections[i]) for i in range(len(w))]
    return op.Concat(x, *starts, axis=-1), w, r, [None, *states[1:]]


def _ordered(kind: _Kind, rows: Any, hidden: int) -> Any:
    """The gates of a weight or bias in the order of ONNX."""
    if len(kind.gates) == 1:
        return rows
    order = [gate * hidden + unit for gate in kind.gates for unit in range(hidden)]
    return op.Gather(rows, _numbers(*order), axis=0)


def _stacked(parts: list[Any]) -> Any:
    """One row a direction."""
    rows = [op.Unsqueeze(part, _numbers(0)) for part in parts]
    return rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)


def _part(state: Any, first: int, count: int, total: int) -> Any:
    """The rows of one layer's directions."""
    if count == total:
        return state
    return op.Slice(state, *map(_numbers, (first, first + count, 0)))


def _numbers(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _conv3d(input: Any, weight: Any, bias: Any = None, stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
            dilation: Sequence[int] = (1,), groups: int = 1) -> Any:  # fmt: skip
    strides, pads, dilations = (list(x) * (3 // len(x)) for x in (stride, padding, dilation))
    operands = (input, weight) if bias is None else (input, weight, bias)
    return op.Conv(*operands, strides=strides, pads=pads * 2, dilations=dilations, group=groups)


def _vector_norm(self: Any, ord: float = 2.0, dim: Sequence[int] | None = None, keepdim: bool = False,
                 dtype: int = -1) -> Any:  # fmt: skip
    # its import takes half a second, and few models need it
    from onnxscript.function_libs.torch_lib.ops.linalg import aten_linalg_vector_norm

    axes = _numbers(*(dim or range(len(self.shape))))
    return aten_linalg_vector_norm(self, ord, axes, keepdim, dtype)


def _kept_node(inputs: Sequence[Any], node: str) -> Sequence[Any]:
    """The node that a file had, with the constants that it reads. onnxscript calls no operators of which it has no
    schema, so that the node is put where it records those that it calls (private; torch 2.9 to 2.15 have it)."""
    from torch.onnx._internal.exporter import _core

    graph = onnx_ir.from_proto(model_of(node)).graph
    alone, tracer = graph[0], _core.current_tracer
    assert tracer is not None
    values = dict(zip((value.name for value in graph.inputs), inputs, strict=True))
    for name, stored in graph.initializers.items():
        values[name] = op.Constant(value=stored.const_value)
    named = [output for output in alone.outputs if output.name]
    made = onnx_ir.Node(
        alone.domain,
        alone.op_type,
        [None if value is None else values[value.name] for value in alone.inputs],
        list(alone.attributes.values()),
        num_outputs=len(alone.outputs),
        version=graph.opset_imports.get(alone.domain),
    )
    tracer.nodes.append(made)
    for output in made.outputs:
        output.name = ""
    return [result for result, output in zip(made.outputs, alone.outputs, strict=True) if output in named]


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    aten.conv3d.default: _conv3d,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.lstm.input: _lstm,
    aten.gru.input: _simple(_GRU),
    aten.rnn_tanh.input: _simple(_TANH),
    aten.rnn_relu.input: _simple(_RELU),
    torch.ops.slim_model.onnx_node.default: _kept_node,
}


_RECURRENT = ("LSTM", "GRU", "RNN")
_REARRANGE = ("Concat", "Gather", "MatMul", "Reshape", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze")


def prepares_weights(node: onnx_ir.Node) -> bool | None:
    """Whatever rearranges weights for a recurrent node is done once, however large they are."""
    if node.op_type not in _REARRANGE:
        return None
    users = [user for output in node.outputs for user, _ in output.uses()]
    return True if users and all(user.op_type in _RECURRENT or prepares_weights(user) for user in users) else None
