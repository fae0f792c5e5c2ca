"""Two layers of an ONNX model with nothing between them -> the one layer that they are, where that is less work.

A bottleneck that ends in a linear layer, and the head behind it, read as one: when the head has become narrow, the
product of the two is smaller than they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir

_END = re.compile(r"\.(weight|bias)_*$")
SAYS = "slim_model_multiplied_out"
"""The metadata of a model that names what was multiplied out."""


class _Layer(NamedTuple):
    """``node`` multiplies ``x`` with ``weight (outputs, inputs, *kernel)``; ``adds`` has the ``bias`` on, where there
    is one: ``node`` itself, or what follows it."""

    node: onnx_ir.Node
    adds: onnx_ir.Node
    weight: np.ndarray
    bias: np.ndarray | None

    @property
    def x(self) -> onnx_ir.Value | None:
        return self.node.inputs[0]

    @property
    def name(self) -> str:
        """That of its weight or bias, without what it ends in."""
        stored = self.node.inputs[1]
        if self.adds is not self.node:  # a weight that was turned over has none of its own
            stored = next(value for value in self.adds.inputs if value is not self.node.outputs[0])
        return _END.sub("", (stored.name if stored is not None else None) or self.node.name or "")


def multiply_out(model: onnx_ir.Model) -> None:
    """Each two layers that follow each other become one where it has fewer weights, which is where it has fewer
    multiply-adds: both give their outputs at the same places. The first is a convolution in one group, the second a 1x1
    one that takes every place; or both are linear. The metadata names them."""
    told = []
    while (pair := next(_pairs(model), None)) is not None:
        first, second = pair
        told.append(f"{first.name}, {second.name}: {first.weight.size + second.weight.size:,} -> {_size(*pair):,}")
        _write(model, first, second)
    if told:
        model.metadata_props[SAYS] = "; ".join(told)


def multiplied_out(path: Path) -> list[str]:
    """A note where layers of the ONNX file at ``path`` were."""
    written = onnx.load(path, load_external_data=False)
    told = [entry.value for entry in written.metadata_props if entry.key == SAYS]
    return [f"multiplied out, one layer in OUT.onnx in place of two: {names} weights" for names in told]


def _pairs(model: onnx_ir.Model) -> Iterator[tuple[_Layer, _Layer]]:
    """Those of which the product is smaller."""
    for node in model.graph:
        second = _layer_at(node)
        before = second.x.producer() if second and second.x is not None else None
        first = _layer_at(before) if before is not None else None
        if not first or not second or not _follow(first, second):
            continue
        if _size(first, second) < first.weight.size + second.weight.size:
            yield first, second


def _size(first: _Layer, second: _Layer) -> int:
    """Of the weight of their product."""
    return second.weight.shape[0] * math.prod(first.weight.shape[1:])


def _follow(first: _Layer, second: _Layer) -> bool:
    """What the first gives goes into the second alone, which can be written with another weight."""
    (given,) = first.adds.outputs
    alone = len(given.uses()) == 1 and not given.is_graph_output()
    has_place = first.bias is None or second.bias is not None or second.node.op_type != "MatMul"
    return alone and first.node.op_type == second.node.op_type and _takes_each_place(second.node) and has_place


def _takes_each_place(node: onnx_ir.Node) -> bool:
    """As a linear layer does: no steps, no borders."""
    weight = node.inputs[1]
    if node.op_type != "Conv" or weight is None or weight.shape is None:
        return True
    plain = {"strides": {1}, "pads": {0}}
    given = {name: set(node.attributes[name].as_ints()) for name in plain if name in node.attributes}
    return all(given.get(name, ones) == ones for name, ones in plain.items()) and set(weight.shape[2:]) == {1}


def _layer_at(node: onnx_ir.Node) -> _Layer | None:
    """The linear layer of which ``node`` is the last."""
    if node.op_type == "Add":
        return _with_bias(node)
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) == 1:
        weight, bias = _stored(node, 1), _stored(node, 2)
    elif node.op_type == "Gemm" and _is_plain(node):
        weight, bias = _stored(node, 1), _stored(node, 2)
        weight = weight.T if weight is not None and not node.attributes.get_int("transB", 0) else weight
    elif node.op_type == "MatMul" and not any(user.op_type == "Add" for user in node.outputs[0].consumers()):
        return _product(node)
    else:
        return None
    if weight is None or (bias is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return _Layer(node, node, weight, bias)


def _product(node: onnx_ir.Node) -> _Layer | None:
    weight = _stored(node, 1)
    return _Layer(node, node, weight.T, None) if weight is not None and weight.ndim == 2 else None


def _with_bias(node: onnx_ir.Node) -> _Layer | None:
    """A product with a stored weight, to which a stored vector is added."""
    for number in (0, 1):
        value, bias = node.inputs[number], _stored(node, 1 - number)
        made = value.producer() if value is not None else None
        if made is None or made.op_type != "MatMul" or bias is None or len(made.outputs[0].uses()) != 1:
            continue
        layer = _product(made)
        if layer is not None and bias.shape == layer.weight.shape[:1] and not made.outputs[0].is_graph_output():
            return layer._replace(adds=node, bias=bias)
    return None


def _is_plain(node: onnx_ir.Node) -> bool:
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and not node.attributes.get_int("transA", 0)


def _stored(node: onnx_ir.Node, number: int) -> np.ndarray | None:
    value = node.inputs[number] if len(node.inputs) > number else None
    tensor = onnx_ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def _write(model: onnx_ir.Model, first: _Layer, second: _Layer) -> None:
    """``second`` reads what ``first`` reads, with the weight and bias of both; ``first`` is read no more."""
    across = second.weight.reshape(len(second.weight), -1).astype(np.float64)
    weight = (across @ first.weight.reshape(len(first.weight), -1)).reshape(-1, *first.weight.shape[1:])
    bias = None if second.bias is None else second.bias.astype(np.float64)
    if first.bias is not None:
        bias = across @ first.bias + (0 if bias is None else bias)
    node, kind = second.node, first.weight.dtype
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)):
        weight = weight.T
    if node.op_type == "Conv":
        node.attributes.clear()
        node.attributes.update(first.node.attributes)
    node.replace_input_with(0, first.x)
    node.replace_input_with(1, _keep(model, f"{second.name}.weight", weight.astype(kind)))
    if bias is None:
        return
    stored = _keep(model, f"{second.name}.bias", bias.astype(kind))
    if second.adds is node:
        node.resize_inputs(3)
        node.replace_input_with(2, stored)
    else:
        place = next(n for n, value in enumerate(second.adds.inputs) if value is not node.outputs[0])
        second.adds.replace_input_with(place, stored)


def _keep(model: onnx_ir.Model, name: str, values: np.ndarray) -> onnx_ir.Value:
    """A stored tensor of this name, or one like it that is free."""
    while name in model.graph.initializers:
        name += "_"
    tensor = onnx_ir.tensor(np.ascontiguousarray(values), name=name)
    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(values.shape), type=onnx_ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
