"""The energy that one run of an ONNX file takes by the model of ``cost.counted.ENERGY``, where no meter tells it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from slim_model.cost.counted import ENERGY

Shape = tuple[int, ...]


def _conv(weight: Shape, read: Shape, made: Shape) -> int:
    return math.prod(made) * math.prod(weight[1:])


def _transposed(weight: Shape, read: Shape, made: Shape) -> int:
    return math.prod(read) * math.prod(weight[1:])


def _matmul(weight: Shape, read: Shape, made: Shape) -> int:
    return math.prod(made) * read[-1]


MACS: dict[str, Callable[[Shape, Shape, Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _matmul,
    "MatMul": _matmul,
}
"""From the shapes of the second operand, the first, and the output."""


def estimate_energy(path: Path, shapes: Sequence[Shape]) -> float | None:
    """Estimated energy in MACs for inputs of these shapes: of convolutions, linear layers and matrix products, each
    value fetched once from memory. None where the file's sizes do not follow from those of its inputs."""
    model = onnx.load(path, load_external_data=False)
    for value, shape in zip(model.graph.input, shapes, strict=False):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {v.name: _sizes(v) for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    known |= {t.name: tuple(t.dims) for t in model.graph.initializer}
    total = 0.0
    for node in model.graph.node:
        if node.op_type in MACS:
            energy = _of(node, known)
            if energy is None:
                return None
            total += energy
    return total


def _of(node: onnx.NodeProto, known: Mapping[str, Shape | None]) -> float | None:
    read, weight, made = (known.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if read is None or weight is None or made is None:
        return None
    moved = math.prod(read) + math.prod(weight) + math.prod(made)
    macs = MACS[node.op_type](weight, read, made)
    return (ENERGY["mac"] + ENERGY["register"]) * macs + ENERGY["memory"] * moved


def _sizes(value: onnx.ValueInfoProto) -> Shape | None:
    dims = value.type.tensor_type.shape.dim
    whole = value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if whole else None
