"""The layers of a traced model, each as a tiny model of its own that a runtime can time.

What a kind of layer looks like as ONNX and as a module is one row of KINDS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from slim_model.cost.counted import CostModel, Operands
from slim_model.coupling.coupling import Coupling
from slim_model.ops import LayerShape

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerKind:
    """``inputs`` and ``weights``: shapes by layer; ``nodes``: ONNX from inputs i0, i1 and weights w0, w1 to "out";
    ``module`` computes the same in PyTorch, from the inputs and its own weights. ``copies`` of the layer, which read
    the same input and are summed, make up the ONNX model: what a runtime spends on entering and leaving a memory
    layout of its own is then shared, as among the layers of a whole model."""

    inputs: Callable[[LayerShape], list[Shape]]
    weights: Callable[[LayerShape], list[Shape]]
    nodes: Callable[[LayerShape], list[onnx.NodeProto]]
    module: Callable[[LayerShape], Callable[..., Tensor]]
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Placed:
    """A layer of a model: its node, and which of its widths pruning can change; ``whole``: it is the one layer that
    some factors are the product of."""

    node: fx.Node
    layer: LayerShape
    free: tuple[bool, ...]
    whole: bool = False


# -- from a traced model --------------------------------------------------------------------------------------------


def layers_of(coupling: Coupling, *, batch: int = 1) -> list[Placed]:
    """The layers of the dense model that can be timed alone, at this batch; factored ones as their factors, and as the
    one layer.

    A width is free if it differs once only one channel of each group is kept. Left out are layers of which more than
    widths then differs: a convolution that runs along channels.
    """
    meter, keep = CostModel(coupling), coupling.keep_all()
    for group in coupling.groups:
        keep[group.channels[1:]] = False
    pairs = zip(meter.forms(), meter.forms(keep), strict=True)
    shapes = (
        (operands, shape_of(operands, meter, batch=batch), shape_of(small, meter, batch=batch))
        for operands, small in pairs
    )
    return [
        Placed(
            operands.node,
            layer,
            tuple(a != b for a, b in zip(layer.widths, least.widths, strict=True)),
            operands.whole,
        )
        for operands, layer, least in shapes
        if layer is not None and least is not None and least.fixed == layer.fixed
    ]


def layers_at_widths(meter: CostModel, keep: np.ndarray | None, *, batch: int = 1) -> dict[fx.Node, LayerShape]:
    """Each layer as it is with the channels ``keep``, for ``batch`` examples."""
    shapes = ((operands.node, shape_of(operands, meter, batch=batch)) for operands in meter.layers(keep))
    return {node: layer for node, layer in shapes if layer is not None}


def shape_of(operands: Operands, meter: CostModel, *, batch: int = 1) -> LayerShape | None:
    """The layer as it is timed, for ``batch`` examples; None of what is not timed alone."""
    if operands.row.layer is None:
        return None
    layer = operands.row.layer(operands.out, **operands.arguments)
    count = max(1, layer.count * batch // meter.batch) if meter.dynamic else layer.count
    return replace(layer, count=count)


# -- as models of their own -----------------------------------------------------------------------------------------


def example_inputs(layer: LayerShape, dtype: torch.dtype) -> list[Tensor]:
    """Inputs of the layer with random values, as it reads them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in KINDS[layer.kind].inputs(layer)]


def write_onnx(layer: LayerShape, path: Path, dtype: torch.dtype) -> int:
    """The layer as an ONNX file with random weights; returns how many copies of it are in the file."""
    kind, number = KINDS[layer.kind], {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}[dtype]
    random = np.random.default_rng(0)
    weights, nodes, total = [], [], ""
    for copy in range(kind.copies):
        for i, shape in enumerate(kind.weights(layer)):
            values = _random(random, shape, number).tobytes()
            weights.append(helper.make_tensor(f"w{i}_{copy}", number, shape, values, raw=True))
        nodes += _copied(kind.nodes(layer), copy)
        if total:
            nodes.append(helper.make_node("Add", [total, f"out_{copy}"], [f"sum_{copy}"]))
        total = f"sum_{copy}" if total else f"out_{copy}"
    inputs = [helper.make_tensor_value_info(f"i{i}", number, shape) for i, shape in enumerate(kind.inputs(layer))]
    graph = helper.make_graph(nodes, layer.kind, inputs, [helper.make_tensor_value_info(total, number, None)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return kind.copies


def _copied(nodes: list[onnx.NodeProto], copy: int) -> list[onnx.NodeProto]:
    """All names but those of the inputs get the number of the copy."""
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [name if name in ("i0", "i1", "i2") else f"{name}_{copy}" for name in names]
    return nodes


def module_of_layer(layer: LayerShape, dtype: torch.dtype) -> nn.Module:
    """The layer as a module with random weights."""
    return _Alone(layer, dtype).eval()


class _Alone(nn.Module):
    def __init__(self, layer: LayerShape, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = KINDS[layer.kind].weights(layer)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=generator).to(dtype), requires_grad=False) for shape in shapes
        )
        self.compute = KINDS[layer.kind].module(layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(*inputs, *self.weights)


def stored_bytes(layer: LayerShape) -> int:
    """Bytes of the layer's weights and inputs as float32, with all copies."""
    kind = KINDS[layer.kind]
    weights = kind.copies * sum(map(math.prod, kind.weights(layer)))
    return 4 * (weights + sum(map(math.prod, kind.inputs(layer))))


def _random(random: np.random.Generator, shape: Shape, number: int) -> np.ndarray:
    values: np.ndarray = random.random(shape, np.float32) - 0.5
    return values.astype(helper.tensor_dtype_to_np_dtype(number))


# -- kinds ----------------------------------------------------------------------------------------------------------


def _conv_inputs(layer: LayerShape) -> list[Shape]:
    groups, inputs, _ = layer.widths
    return [(layer.count, groups * inputs, *layer.fixed[0])]


def _conv_weights(layer: LayerShape) -> list[Shape]:
    groups, inputs, outputs = layer.widths
    kernel, transposed = layer.fixed[1], layer.fixed[-1] == (1,)
    weight = (groups * inputs, outputs) if transposed else (groups * outputs, inputs)
    return [(*weight, *kernel), (groups * outputs,)]


def _conv_nodes(layer: LayerShape) -> list[onnx.NodeProto]:
    _, kernel, stride, before, after, dilation, output_padding, (transposed,) = layer.fixed
    options: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": stride,
        "pads": (*before, *after),
        "dilations": dilation,
        "group": layer.widths[0],
    }
    if transposed:
        options["output_padding"] = output_padding
    return [helper.make_node("ConvTranspose" if transposed else "Conv", ["i0", "w0", "w1"], ["out"], **options)]


def _conv_module(layer: LayerShape) -> Callable[..., Tensor]:
    """Padding that differs on the two sides is applied as the larger one: PyTorch knows only one number an axis."""
    _, _, stride, before, after, dilation, output_padding, (transposed,) = layer.fixed
    padding, groups = [max(pair) for pair in zip(before, after, strict=True)], layer.widths[0]
    convolve = torch.ops.aten.convolution.default
    return lambda x, w, b: convolve(
        x, w, b, list(stride), padding, list(dilation), bool(transposed), list(output_padding), groups
    )


def _linear_nodes(layer: LayerShape) -> list[onnx.NodeProto]:
    return [helper.make_node("Gemm", ["i0", "w0", "w1"], ["out"], transB=1)]


def _matmul_inputs(layer: LayerShape) -> list[Shape]:
    matrices, rows, inner, columns = layer.widths
    return [(layer.count, matrices, rows, inner), (layer.count, matrices, inner, columns)]


def _attention_inputs(layer: LayerShape) -> list[Shape]:
    heads, key, value = layer.widths
    (asking,), (answering,) = layer.fixed
    return [
        (layer.count, heads, asking, key),
        (layer.count, heads, answering, key),
        (layer.count, heads, answering, value),
    ]


def _attention_nodes(layer: LayerShape) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Transpose", ["i1"], ["keys"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["i0", "keys"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "i2"], ["out"]),
    ]


def _nothing(layer: LayerShape) -> list[Shape]:
    return []


def _numbers(nodes: list[str], module: Callable[..., Tensor], *, inputs: int = 1) -> LayerKind:
    """``nodes``: an ONNX operator, what it reads and what it gives."""
    words = [node.split() for node in nodes]
    return LayerKind(
        lambda layer: [(layer.count, *layer.widths)] * inputs,
        _nothing,
        lambda layer: [helper.make_node(name, read, [given]) for name, *read, given in words],
        lambda layer: module,
    )


_CONV = LayerKind(_conv_inputs, _conv_weights, _conv_nodes, _conv_module, copies=4)

KINDS: dict[str, LayerKind] = {
    "conv": _CONV,
    "pointwise": _CONV,
    "depthwise": _CONV,
    "grouped": _CONV,
    "linear": LayerKind(
        lambda layer: [(layer.count, layer.widths[0])],
        lambda layer: [(layer.widths[1], layer.widths[0]), (layer.widths[1],)],
        _linear_nodes,
        lambda layer: nn.functional.linear,
    ),
    "matmul": LayerKind(
        _matmul_inputs,
        _nothing,
        lambda layer: [helper.make_node("MatMul", ["i0", "i1"], ["out"])],
        lambda layer: torch.matmul,
    ),
    "attention": LayerKind(
        _attention_inputs,
        _nothing,
        _attention_nodes,
        lambda layer: nn.functional.scaled_dot_product_attention,
    ),
    "silu": _numbers(["Sigmoid i0 s", "Mul i0 s out"], nn.functional.silu),
    "gelu": _numbers(["Gelu i0 out"], nn.functional.gelu),
    "hardswish": _numbers(["HardSwish i0 out"], nn.functional.hardswish),
    "mul": _numbers(["Mul i0 i1 out"], torch.mul, inputs=2),
    "layer_norm": LayerKind(
        lambda layer: [(layer.count, *layer.widths)],
        lambda layer: [layer.widths, layer.widths],
        lambda layer: [helper.make_node("LayerNormalization", ["i0", "w0", "w1"], ["out"])],
        lambda layer: lambda x, w, b: nn.functional.layer_norm(x, layer.widths, w, b),
    ),
    "nothing": LayerKind(
        lambda layer: [(1,)],
        _nothing,
        lambda layer: [helper.make_node("Identity", ["i0"], ["out"])],
        lambda layer: torch.Tensor.clone,
    ),
}
"""``nothing`` is the call alone, which every run pays once."""
