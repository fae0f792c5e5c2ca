"""Small ONNX files for tests, written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attributes)


def file_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Any],
    outputs: Sequence[str],
    stored: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    types: dict[str, int] | None = None,
) -> bytes:
    """``inputs``: shapes by name, None where it is not said; ``types``: of those that are not float."""
    values = [helper.make_tensor_value_info(n, (types or {}).get(n, FLOAT), shape) for n, shape in inputs.items()]
    ends = [helper.make_tensor_value_info(n, (types or {}).get(n, FLOAT), None) for n in outputs]
    tensors = [numpy_helper.from_array(array, name) for name, array in (stored or {}).items()]
    graph = helper.make_graph(list(nodes), "g", values, ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return model.SerializeToString()  # type: ignore[no-any-return]


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_convolutions(
    batch: Any = "n", *, first: str = "a.weight", input_name: str = "x", output_name: str = "y"
) -> bytes:
    """Conv, Relu, Conv: 3 -> 8 -> 4 channels."""
    nodes = [
        node("Conv", f"{input_name} {first}", "h", "/first", pads=[1, 1, 1, 1]),
        node("Relu", "h", "r", "/relu"),
        node("Conv", "r b.weight", output_name, "/second"),
    ]
    stored = {first: weights(8, 3, 3, 3), "b.weight": weights(4, 8, 1, 1, seed=1)}
    return file_of(nodes, {input_name: [batch, 3, 6, 6]}, [output_name], stored)
