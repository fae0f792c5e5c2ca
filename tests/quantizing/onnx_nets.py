"""Small ONNX files, written without PyTorch's exporter, which takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = (3, 8, 8)


def classifier(place: Path, *, loud: float = 1.0, opset: int = 18, batch: str | int = "n") -> Path:
    """(N, 3, 8, 8) -> (N, 4): first (3 -> 8), second (8 -> 8), scores. ``loud``: what the last input channel is
    expected to be larger by; its weights are that much smaller."""
    draw = np.random.default_rng(0)
    first = draw.normal(size=(8, 3, 3, 3)) / 5
    first[:, 2] /= loud
    stored = {
        "first.weight": first,
        "first.bias": draw.normal(size=8) / 10,
        "second.weight": draw.normal(size=(8, 8, 3, 3)) / 8,
        "second.bias": draw.normal(size=8) / 10,
        "scores.weight": draw.normal(size=(8, 4)),
        "scores.bias": draw.normal(size=4) / 10,
    }
    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "second.weight", "second.bias"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "scores.weight", "scores.bias"], ["g"], "scores"),
        helper.make_node("Softmax", ["g"], ["y"], "softmax"),
    ]
    return write(place, nodes, stored, opset, (batch, *SIZE), (batch, 4))


def without_layers(place: Path) -> Path:
    """(N, 3, 8, 8), multiplied by itself."""
    shape = ("n", *SIZE)
    return write(place, [helper.make_node("Mul", ["x", "x"], ["y"], "square")], {}, 18, shape, shape)


def write(
    place: Path,
    nodes: list[onnx.NodeProto],
    stored: dict[str, np.ndarray],
    opset: int,
    takes: tuple[str | int, ...],
    gives: tuple[str | int, ...],
) -> Path:
    """The shapes of ``stored`` are noted as those of values, too, as PyTorch's exporter does it."""
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    noted = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in stored.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)
    model = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], tensors, value_info=noted),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    helper.set_model_props(model, {"made": "by hand"})
    onnx.save(model, place)
    return place


def linear(place: Path) -> Path:
    """(N, 20) -> (N, 16): two layers, one with its weight transposed."""
    draw = np.random.default_rng(0)
    stored = {"w1": draw.normal(size=(16, 20)), "w2": draw.normal(size=(16, 16)), "b": draw.normal(size=16)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["k"], "relu"),
        helper.make_node("Gemm", ["k", "w2", "b"], ["y"], "second"),
    ]
    return write(place, nodes, stored, 18, ("n", 20), ("n", 16))


def recurrent(place: Path) -> Path:
    """(N, 6, 3) -> (N, 4): an LSTM of 16 units over six steps, its last state, scores."""
    draw = np.random.default_rng(0)
    stored = {
        "w": draw.normal(size=(1, 64, 3)) / 2,
        "r": draw.normal(size=(1, 64, 16)) / 4,
        "scores.weight": draw.normal(size=(16, 4)),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], "turn", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last", ""], "lstm", hidden_size=16),
        helper.make_node("Transpose", ["last"], ["state"], "back", perm=[1, 0, 2]),
        helper.make_node("Flatten", ["state"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "scores.weight"], ["y"], "scores"),
    ]
    return write(place, nodes, stored, 18, ("n", 6, 3), ("n", 4))


def depthwise(place: Path, *, spread: float, flattened: bool = False) -> Path:
    """(N, 3, 8, 8) -> (N, 4): first (3 -> 8), depthwise (8), second (8 -> 8), scores. The channels behind the first two
    layers are larger and smaller by up to ``spread``, which the next takes back: fp32 gives what it gives at 1.
    ``flattened``: scores read the pixels of the last picture, not their mean."""
    draw = np.random.default_rng(0)
    one, two = (spread ** draw.permutation(np.linspace(-1, 1, 8)) for _ in range(2))
    stored = {
        "first.weight": draw.normal(size=(8, 3, 3, 3)) / 5 * one[:, None, None, None],
        "first.bias": draw.normal(size=8) / 10 * one,
        "depthwise.weight": draw.normal(size=(8, 1, 3, 3)) / 3 * (two / one)[:, None, None, None],
        "depthwise.bias": draw.normal(size=8) / 10 * two,
        "second.weight": draw.normal(size=(8, 8, 1, 1)) / two[:, None, None],
        "second.bias": draw.normal(size=8) / 10,
        "scores.weight": draw.normal(size=(8 * 64 if flattened else 8, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node(
            "Conv", ["b", "depthwise.weight", "depthwise.bias"], ["c"], "depthwise", pads=[1, 1, 1, 1], group=8
        ),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("Conv", ["d", "second.weight", "second.bias"], ["e"], "second"),
        helper.make_node("Relu", ["e"], ["f"], "relu3"),
        *([] if flattened else [helper.make_node("GlobalAveragePool", ["f"], ["g"], "pool")]),
        helper.make_node("Flatten", ["f" if flattened else "g"], ["h"], "flat"),
        helper.make_node("Gemm", ["h", "scores.weight"], ["y"], "scores"),
    ]
    return write(place, nodes, stored, 18, ("n", *SIZE), ("n", 4))


def transposed(place: Path) -> Path:
    """(N, 4, 8, 8) -> (N, 6, 16, 16): a grouped layer, a transposed one of two groups, a third."""
    draw = np.random.default_rng(0)
    uneven = 10.0 ** draw.uniform(-2, 2, size=8)
    stored = {
        "first.weight": draw.normal(size=(8, 2, 3, 3)) * uneven[:, None, None, None],
        "up.weight": draw.normal(size=(8, 3, 2, 2)) / uneven[:, None, None, None],
        "up.bias": draw.normal(size=6),
        "last.weight": draw.normal(size=(6, 6, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"], "first", pads=[1, 1, 1, 1], group=2),
        helper.make_node("LeakyRelu", ["a"], ["b"], "relu1", alpha=0.1),
        helper.make_node("ConvTranspose", ["b", "up.weight", "up.bias"], ["c"], "up", group=2, strides=[2, 2]),
        helper.make_node("MaxPool", ["c"], ["d"], "pool", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["d", "last.weight"], ["y"], "last"),
    ]
    return write(place, nodes, stored, 18, ("n", 4, 8, 8), ("n", 6, 15, 15))
