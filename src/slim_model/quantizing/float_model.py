"""The fp32 file as onnxruntime's quantiser wants it: norms folded, shapes known, every node named."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx.inliner import inline_local_functions
from onnxruntime.quantization import quant_pre_process

from slim_model.errors import InputError, first_line

OLDEST_OPSET = 13
"""The first in which QuantizeLinear takes a scale for each channel."""
MOST_BYTES = 2**31 - 1
"""Of a model that onnxruntime's quantiser holds in one message."""
STATIC = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that have int8 kernels worth it; what lies between them follows."""
DYNAMIC = ("MatMul", "Gemm", "LSTM")
BETWEEN = ("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool",
           "Concat", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Resize",
           "Pad", "Slice", "Split")  # fmt: skip
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True, slots=True)
class FloatModel:
    """``path``: the prepared file. ``layers``: its nodes of kind STATIC or DYNAMIC with stored weights, in order.
    ``tail``: nodes behind the last of them, which stay fp32: scores, boxes, probabilities. ``others``: how many nodes
    of each kind onnxruntime has no int8 form for."""

    path: Path
    layers: dict[str, str]
    tail: tuple[str, ...]
    others: dict[str, int]

    @property
    def static(self) -> bool:
        return any(kind in STATIC for kind in self.layers.values())

    @property
    def dynamic(self) -> bool:
        return any(kind in DYNAMIC for kind in self.layers.values())


def prepare(file: Path, folder: Path) -> FloatModel:
    """Read ``file`` and write it into ``folder`` as the quantiser wants it. Raises InputError where it is int8 already,
    of an opset too old, too large, not for onnxruntime, or has no layer to quantise."""
    model = _read(file)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if found := next(
        (n.op_type for n in model.graph.node if n.op_type in _QUANTISED or n.op_type[:7] == "QLinear"), None
    ):
        raise InputError(f"{file.name} is quantised already: it holds {found}. Give the fp32 file.")
    if opset < OLDEST_OPSET:
        raise InputError(
            f"{file.name} is of opset {opset}; int8 with a scale for each channel needs {OLDEST_OPSET} or later. "
            f"Export it with opset {OLDEST_OPSET} or later, or convert it: onnx.version_converter.convert_version."
        )
    _check_runs(file)
    # The quantiser sees nodes of the main graph alone.
    if model.functions:
        model = inline_local_functions(model)
    named, prepared = folder / "named.onnx", folder / "prepared.onnx"
    _name_nodes(model)
    onnx.save(model, named)
    with quiet():
        _pre_process(named, prepared)
    # Pre-processing folds and infers shapes, and leaves new nodes without names: layers are chosen by name.
    ready = onnx.load(prepared)
    _name_nodes(ready)
    _forget_shapes_of_stored(ready.graph)
    onnx.save(ready, prepared)
    layers = {node.name: node.op_type for node in _layers(ready)}
    if not layers:
        kinds = ", ".join(sorted({node.op_type for node in ready.graph.node})[:8])
        raise InputError(
            f"{file.name} has no layer that onnxruntime computes in int8 (Conv, ConvTranspose, Gemm, MatMul or LSTM "
            f"with stored weights); it has {kinds}. Use the fp32 file."
        )
    return FloatModel(prepared, layers, tuple(_tail(ready, set(layers))), _others(ready))


def _read(file: Path) -> Any:
    try:
        model = onnx.load(file, load_external_data=False)
        if (size := file.stat().st_size + _bytes_beside(model)) > MOST_BYTES:
            raise InputError(
                f"{file.name} has {size / 1e9:.1f} GB with its data; onnxruntime's quantiser takes "
                f"{MOST_BYTES / 1e9:.1f} at most. Use the fp32 file, or prune more of it first."
            )
        return onnx.load(file)
    except InputError:
        raise
    except Exception as error:  # protobuf has its own exceptions for damaged files
        raise InputError(f"{file}: cannot be read as an ONNX model: {first_line(error)}. Copy it again.") from error


def _bytes_beside(model: Any) -> int:
    """What the tensors of ``model`` take in files of their own."""
    outside = [ExternalDataInfo(tensor) for tensor in model.graph.initializer if uses_external_data(tensor)]
    return sum(info.length or 0 for info in outside)


def _check_runs(file: Path) -> None:
    """onnxruntime's own message names the operator that it has no kernel for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime, whose exceptions have no common root
        said = first_line(error).rpartition("failed:")[2].removeprefix("Fatal error: ")
        raise InputError(
            f"{file.name} cannot be int8, since onnxruntime cannot run it: {said}. Replace that operator, or run the "
            "fp32 file where it is known."
        ) from error


def _pre_process(source: Path, target: Path) -> None:
    """Shapes that cannot be followed symbolically are left open: the quantiser needs types, mostly."""
    try:
        quant_pre_process(source, target, auto_merge=True)
    except Exception:  # symbolic inference raises what it likes at operators it does not know
        quant_pre_process(source, target, skip_symbolic_shape=True)


def _name_nodes(model: Any) -> None:
    """Nodes are kept in fp32 by name, so each has one."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)


def _forget_shapes_of_stored(graph: Any) -> None:
    """What is stored has its shape with it. The quantiser turns weights about, and then the noted shape is wrong."""
    stored = {tensor.name for tensor in graph.initializer}
    noted = [info for info in graph.value_info if info.name not in stored]
    del graph.value_info[:]
    graph.value_info.extend(noted)


def _layers(model: Any) -> Iterator[Any]:
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in (*STATIC, *DYNAMIC) and any(name in stored for name in node.input[1:2]):
            yield node


def _tail(model: Any, layers: set[str]) -> Iterator[str]:
    """Nodes that no layer stands behind, and that are none."""
    leads: set[str] = set()  # values that reach a layer
    for node in reversed(model.graph.node):
        if node.name in layers or leads & set(node.output):
            leads |= set(node.input)
        else:
            yield node.name


def _others(model: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in (*STATIC, *DYNAMIC, *BETWEEN, "Constant"):
            counted[node.op_type] = counted.get(node.op_type, 0) + 1
    return dict(sorted(counted.items()))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """onnxruntime's quantiser prints and logs as it goes; nothing of that is for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
