"""Which opsets of ONNX can be asked for."""

from __future__ import annotations

import functools

import onnx
import onnxruntime

from slim_model.errors import InputError


@functools.cache
def newest_opset() -> int:
    """The newest that onnxruntime runs, told by a file that does nothing."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "nothing", [value], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    ])  # fmt: skip
    for opset in range(onnx.defs.onnx_opset_version(), 1, -1):
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # of onnxruntime, which has no root of its own
            continue
        return opset
    raise AssertionError("onnxruntime runs no opset at all")


def check_opset(opset: int | None) -> None:
    """Raise InputError for one that is too new to be run, before any work. Which is too old the model decides."""
    if opset is not None and opset > newest_opset():
        raise InputError(
            f"--opset {opset}: onnxruntime {onnxruntime.__version__} runs none above {newest_opset()}. Ask for "
            f"{newest_opset()} or an older one."
        )
