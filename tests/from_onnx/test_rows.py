"""Rows against onnxruntime, where ONNX's own cases do not reach or take long to make."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from from_onnx.graphs import file_of, node, weights
from slim_model.from_onnx.read import read_onnx


def compared(nodes: list[Any], shape: list[int], outputs: str, stored: dict[str, np.ndarray] | None = None,
             opset: int = 18) -> None:  # fmt: skip
    content = file_of(nodes, {"x": shape}, outputs.split(), stored, opset=opset)
    x = torch.from_numpy(weights(*shape, seed=5))
    expected = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    with torch.no_grad():
        got = read_onnx(content, "m.onnx", lambda _: b"")(x)
    for ours, theirs in zip(got.values(), expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [2, 0, 1, 1]])
@pytest.mark.parametrize("ceil", [0, 1])
def test_pooling(op: str, pads: list[int], ceil: int) -> None:
    options: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "ceil_mode": ceil}
    counts = [{}] if op == "MaxPool" else [{"count_include_pad": 0}, {"count_include_pad": 1}]
    for more in counts:
        compared([node(op, "x", "y", **options, **more)], [2, 3, 9, 9], "y")


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_follows_from_the_size(kind: str) -> None:
    stored = {"w": weights(4, 3, 3, 3)}
    compared([node("Conv", "x w", "y", auto_pad=kind, strides=[2, 2])], [1, 3, 8, 7], "y", stored)
    compared([node("MaxPool", "x", "y", auto_pad=kind, kernel_shape=[2, 2])], [1, 3, 8, 7], "y")


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrence(op: str, gates: int, direction: str) -> None:
    d = 2 if direction == "bidirectional" else 1
    stored = {"w": weights(d, gates * 5, 3), "r": weights(d, gates * 5, 5, seed=1), "b": weights(d, gates * 10, seed=2)}
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    ends = "y h c" if op == "LSTM" else "y h"
    compared([node(op, "x w r b", ends, hidden_size=5, direction=direction, **more)], [4, 2, 3], ends, stored)


def test_what_recurrent_layers_of_pytorch_do_not_have_is_as_onnxruntime_computes_it() -> None:
    stored = {"w": weights(1, 15, 3), "r": weights(1, 15, 5)}
    compared([node("GRU", "x w r", "y", "cell", hidden_size=5)], [4, 2, 3], "y", stored)
    stored = {"w": weights(1, 20, 3), "r": weights(1, 20, 5), "p": weights(1, 15)}
    ends = [node("LSTM", "x w r     p".replace("     ", " none none none none "), "y", "cell", hidden_size=5)]
    ends[0].input[3:7] = [""] * 4
    compared(ends, [4, 2, 3], "y", stored)


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norm(axis: int) -> None:
    shape = [2, 3, 4]
    stored = {"w": weights(*shape[axis:]), "b": weights(*shape[axis:], seed=1)}
    compared([node("LayerNormalization", "x w b", "y", axis=axis)], shape, "y", stored)


_PLACES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


@pytest.mark.parametrize(("mode", "where"), list(itertools.product(("nearest", "linear", "cubic"), _PLACES)))
@pytest.mark.parametrize("scales", [[1, 1, 2, 2], [1, 1, 1.5, 0.7]])
def test_resize(mode: str, where: str, scales: list[float]) -> None:
    stored = {"s": np.array(scales, np.float32)}
    options = {"mode": mode, "coordinate_transformation_mode": where}
    for rounding in ("floor", "round_prefer_floor") if mode == "nearest" else ("floor",):
        more = {"nearest_mode": rounding} if mode == "nearest" else {}
        compared([node("Resize", "x  s".replace("  ", " none "), "y", **options, **more)], [1, 2, 6, 10], "y",
                 stored | {"none": np.zeros(0, np.float32)})  # fmt: skip


@pytest.mark.parametrize(("mode", "pads"), [("reflect", [0, 0, 1, 2, 0, 0, 2, 1]), ("edge", [0, 1, 0, 0, 0, 2, 0, 0]),
                                            ("constant", [0, 1, -1, 0, 0, 0, 1, 2])])  # fmt: skip
def test_pad(mode: str, pads: list[int]) -> None:
    compared([node("Pad", "x p", "y", mode=mode)], [1, 3, 5, 4], "y", {"p": np.array(pads)})


def test_older_forms_of_operators() -> None:
    compared([node("Softmax", "x", "y")], [2, 3, 4], "y", opset=11)  # over all axes from the second on
    compared([node("Unsqueeze", "x", "u", axes=[0]), node("ReduceSum", "u", "y", axes=[1], keepdims=0)], [2, 3], "y",
             opset=11)  # fmt: skip
    compared([node("Upsample", "x s", "y")], [1, 2, 3, 3], "y", {"s": np.array([1, 1, 2, 2], np.float32)}, opset=9)
    compared([node("Clip", "x", "c", min=0.0, max=0.5), node("Slice", "c", "y", starts=[1], ends=[3], axes=[1])],
             [2, 4], "y", opset=9)  # fmt: skip


def test_the_type_of_another_value() -> None:
    compared([node("CastLike", "x i", "k"), node("CastLike", "k x", "y")], [2, 3], "y", {"i": np.int32(1)})


def test_steps_backwards() -> None:
    stored = {"s": np.array([-1]), "e": np.array([-(2**63)]), "a": np.array([1]), "t": np.array([-2])}
    compared([node("Slice", "x s e a t", "y")], [2, 7], "y", stored)
