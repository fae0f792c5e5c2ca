"""An ONNX model as the exporter wrote it -> the same model in the form that onnxruntime runs fastest."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import onnx_ir
import onnxscript.optimizer
import onnxscript.rewriter
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from onnxscript.rewriter.rules import common as rules

from slim_model.export.multiply_out import multiply_out
from slim_model.export.onnx_translations import prepares_weights

SMALL_MAP = 2**17
"""Values of a map that is gated; above, a copy of it costs more than the change of layouts."""


def tidy(
    model: onnx_ir.Model,
    device: str,
    *,
    rules: Sequence[onnxscript.rewriter.RewriteRule] | None = None,
    small_map: int = SMALL_MAP,
) -> None:
    """Fold constants and BatchNorm, and write what onnxruntime computes faster in another form on ``device``.

    ``rules`` stand in for ours; gates are spread over maps of up to ``small_map`` values.

    The exporter's full optimizer takes up to half of the whole run (6 s for swin_t) and gained no latency in
    onnxruntime, which fuses for itself (within 1 % on resnet50, vit_b_16, swin_t).
    """
    with contextlib.suppress(RuntimeError):  # it stumbles over a batch that is split; what it leaves is right
        onnxscript.optimizer.fold_constants(model, should_fold=prepares_weights)
    with contextlib.suppress(RuntimeError):  # of a rule that fails the node stays as it was
        gates = _gates(small_map) if device == "cpu" else []
        onnxscript.rewriter.rewrite(model, [*(_RULES if rules is None else rules), *gates])
    multiply_out(model)  # BatchNorms between layers are gone
    CommonSubexpressionEliminationPass()(model)
    onnxscript.optimizer.remove_unused_nodes(model)
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()  # stack traces with the paths of this machine, a third of a small file


_INT64_ONLY = ("ScatterND", "GatherND")


def index_by_int64(model: onnx_ir.Model) -> None:
    """torch 2.15 writes ``index_put`` with the index as it is, also one of 32 bits, which ONNX does not take there."""
    for node in [n for n in model.graph if n.op_type in _INT64_ONLY]:
        indices = node.inputs[1]
        if indices is None or indices.dtype == onnx_ir.DataType.INT64:
            continue
        cast = onnx_ir.node("Cast", [indices], attributes={"to": onnx_ir.DataType.INT64.value})
        cast.outputs[0].dtype = onnx_ir.DataType.INT64
        model.graph.insert_before(node, cast)
        node.replace_input_with(1, cast.outputs[0])


def _is_pool(context: Any, x: onnx_ir.Value, axes: onnx_ir.Value, **_: Any) -> bool:
    """Over height and width, and what else there is behind the channels; onnxruntime pools only floats."""
    taken = onnx_ir.convenience.get_const_tensor(axes)
    if taken is None or x.shape is None or len(x.shape) < 3 or x.dtype != onnx_ir.DataType.FLOAT:
        return False
    return sorted(int(axis) % len(x.shape) for axis in taken.numpy()) == list(range(2, len(x.shape)))


_POOL = onnxscript.rewriter.RewriteRule(
    lambda op, x, axes: op.ReduceMean(x, axes, keepdims=1),
    lambda op, x, axes: op.GlobalAveragePool(x),
    _is_pool,
)
"""A mean over the map, as in squeeze and excitation: onnxruntime computes a pooling in the layout of its convolutions
(efficientnet_b0 at a quarter of its multiply-adds: 4 % faster with two threads, 2 % with one)."""
_OPENS = ("Sigmoid", "HardSigmoid")
_ACTIVATIONS = ("Relu", "Clip", "HardSwish", "Mul", "Div", *_OPENS)


def _is_gated(context: Any, x: onnx_ir.Value, gate: onnx_ir.Value, *, small_map: int, **_: Any) -> bool:
    """Squeeze and excitation: a map, not a large one, times what a convolution of its mean says of each channel."""
    if x.shape is None or gate.shape is None or x.dtype != onnx_ir.DataType.FLOAT:
        return False
    opens, sizes = gate.producer(), [size for size in x.shape[1:] if isinstance(size, int)]
    alike = len(x.shape) == len(gate.shape) == 4 and len(sizes) == 3 and list(x.shape[:2]) == list(gate.shape[:2])
    if not alike or list(gate.shape[2:]) != [1, 1] or not sizes[0] < math.prod(sizes) <= small_map:
        return False
    pooled = any(user.op_type == "GlobalAveragePool" for user in x.consumers())
    return pooled and opens is not None and opens.op_type in _OPENS and _in_blocks(gate) and _in_blocks(x)


def _in_blocks(value: onnx_ir.Value) -> bool:
    """It comes from a convolution that onnxruntime computes in blocks of channels: a depthwise one or one of a single
    group, through an activation."""
    node = value.producer()
    while node is not None and node.op_type in _ACTIVATIONS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Conv" or node.inputs[1] is None or node.inputs[1].shape is None:
        return False
    return node.attributes.get_int("group", 1) in (1, node.inputs[1].shape[0])


def _spread(op: Any, x: onnx_ir.Value, gate: onnx_ir.Value) -> onnx_ir.Value:
    assert x.shape is not None
    times = op.Constant(value=onnx_ir.tensor([1.0, 1.0, *map(float, x.shape[2:])]))  # type: ignore[arg-type]
    how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    whole = op.Resize(gate, None, times, **how)
    whole.shape, whole.dtype = x.shape, x.dtype  # of which onnxruntime sees that both are alike
    product: onnx_ir.Value = op.Mul(x, whole)
    return product


def _gates(small_map: int) -> Sequence[onnxscript.rewriter.RewriteRule]:
    """A gate is spread over its map: onnxruntime multiplies what has one shape in the layout of its convolutions, and
    else takes the map out of it and back (mobilenet_v3_small: 7 % faster)."""
    is_gated = functools.partial(_is_gated, small_map=small_map)
    return onnxscript.rewriter.RewriteRule(lambda op, x, gate: op.Mul(x, gate), _spread, is_gated).commute()


_RULES = [
    _POOL,
    rules.materialize_reshape_shape_rule,  # of vit_b_32 one node in seven only counts the batch
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.no_op_dynamic_scatter_nd_rule,
]
