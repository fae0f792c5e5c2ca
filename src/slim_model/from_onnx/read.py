"""The bytes of an ONNX file -> a module that computes what it does, or why it cannot be read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx_ir.passes import common as passes

from slim_model.errors import InputError, first_line
from slim_model.from_onnx.kept import DRAWN, KEPT_DOMAINS
from slim_model.from_onnx.known import Known
from slim_model.from_onnx.model import OnnxModel, OriginalFile, Signature
from slim_model.from_onnx.names import plain, tensor_names
from slim_model.from_onnx.row import DTYPES, Body, Step
from slim_model.from_onnx.table import ROWS

OLDEST, NEWEST = 7, onnx.defs.onnx_opset_version()
"""Operator sets that are read; in 7 operators began to broadcast as they do today."""
_INTEGER = (
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger"
).split()
_PASSES = (
    passes.InlinePass(),
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    passes.LiftSubgraphInitializersToMainGraphPass(),
    passes.RemoveInitializersFromInputsPass(),
)
_HALF = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
_OWN_DOMAINS = ("", "ai.onnx")
_LONGEST_LINE = 160


def parse(content: bytes) -> onnx.ModelProto:
    """The file as protobuf; InputError where it is none."""
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has its own exceptions for damaged files
        raise InputError(f"cannot be read as an ONNX model: {type(error).__name__}. Copy it again.") from error
    if not model.graph.node:
        raise InputError("cannot be read as an ONNX model: it has no nodes. Copy it again.")
    return model


def read_onnx(content: bytes, title: str, beside: Callable[[str], bytes]) -> OnnxModel:
    """The model of a file called ``title``; ``beside`` gives the bytes of a file in the same folder. Raises InputError
    that names each node that cannot be read."""
    proto = parse(content)
    _make_dense(proto.graph)
    _take_in(proto.graph, outer := dict[str, np.ndarray](), beside)
    try:
        model = onnx_ir.from_proto(proto)
        for one in _PASSES:
            model = one(model).model
    except Exception as error:  # of files that break the rules of the format
        raise InputError(f"is no valid ONNX model: {first_line(_origin(error))}") from error
    _check_names(model.graph)
    version = _version(model)
    _refuse_unknown(model.graph)
    signatures = tuple(map(_signature, model.graph.inputs))
    _check_outputs(model.graph)
    constants = {str(name): _stored(value) for name, value in model.graph.initializers.items()}
    names = tensor_names(constants)
    stored = {name: dataclasses.replace(known, name=names[name]) for name, known in constants.items()}
    statistics = {
        v.name for n in model.graph.all_nodes() if n.op_type == "BatchNormalization" for v in n.inputs[3:5] if v
    }
    trained = frozenset(
        known.name for name, known in stored.items()
        if known.dtype.is_floating_point and known.array.size > 1 and name not in statistics
    )  # fmt: skip
    half = any(v.dtype in _HALF for v in [*model.graph.initializers.values(), *model.graph.inputs])
    body = _Lines(version, model.opset_imports).body(model.graph)
    return OnnxModel(signatures, body, stored, trained, OriginalFile(content, outer, half), plain(title))


def _take_in(graph: Any, outer: dict[str, np.ndarray], beside: Callable[[str], bytes]) -> None:
    """Weights that lie in files beside this one, read here: nothing else reads them."""
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            content, start = beside(entries.get("location", "")), int(entries.get("offset", 0))
            size = int(entries["length"]) if "length" in entries else len(content) - start
        except ValueError as error:
            raise InputError(f"says of '{tensor.name}' that it lies at no number: {first_line(error)}.") from error
        if not 0 <= start <= start + size <= len(content):
            raise InputError(f"says of '{tensor.name}' that it lies beyond the end of {entries['location']}.")
        tensor.raw_data = content[start : start + size]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        outer[tensor.name] = onnx.numpy_helper.to_array(tensor)


def _make_dense(graph: Any) -> None:
    """Initialisers that are stored as values at places."""
    for sparse in graph.sparse_initializer:
        try:
            values, places = (onnx.numpy_helper.to_array(part) for part in (sparse.values, sparse.indices))
            dense = np.zeros(tuple(sparse.dims), values.dtype)
            dense[tuple(places.T) if places.ndim > 1 else np.unravel_index(places, dense.shape)] = values
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"is damaged: '{sparse.values.name}' cannot be read ({first_line(error)}).") from error
        graph.initializer.append(onnx.numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def _origin(error: BaseException) -> BaseException:
    """What set it off."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_names(graph: onnx_ir.Graph) -> None:
    """Of the file's own nodes, in its order; those inside of others may read from outside."""
    known = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    for number, node in enumerate(graph, 1):
        for value in node.inputs:
            if value is not None and value.name and value.name not in known:
                raise InputError(
                    f"is no valid ONNX model: {_place(node, number)}, reads '{value.name}', which nothing before gives."
                )
        known |= {value.name for value in node.outputs}
    if missing := [str(value.name) for value in graph.outputs if value.name not in known]:
        raise InputError(f"is no valid ONNX model: nothing gives its output '{missing[0]}'.")


def _version(model: onnx_ir.Model) -> int:
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if not OLDEST <= version <= NEWEST:
        raise InputError(
            f"is written in operator set {version}; {OLDEST} to {NEWEST} are read. onnx.version_converter writes it in "
            "another."
        )
    return version


def _refuse_unknown(graph: onnx_ir.Graph) -> None:
    """One message of all nodes that can be neither read nor kept. What a branch holds is looked at when it is taken"""
    nodes = list(enumerate(graph, 1))
    if whole := [_place(node, number) for number, node in nodes if node.op_type in _INTEGER]:
        more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
        raise InputError(
            f"is quantized: {whole[0]}{more}. Give the fp32 file that it was made of; --int8 quantizes the small one."
        )
    unknown = [(n, number) for number, n in nodes if not _can_be_read(n)]
    if not unknown:
        return
    first: dict[str, str] = {}
    for node, number in unknown:
        first.setdefault(
            f"{node.domain}.{node.op_type}".removeprefix(".").removeprefix("ai.onnx."), _place(node, number)
        )
    counts = Counter(f"{n.domain}.{n.op_type}".removeprefix(".").removeprefix("ai.onnx.") for n, _ in unknown)
    listed = ", ".join(f"{op} ({counts[op]}, the first at {place})" for op, place in first.items())
    raise InputError(f"holds operators that slim-model cannot read: {listed}. Export the model without them.")


def _can_be_read(node: onnx_ir.Node) -> bool:
    """By a row, or by onnxruntime, which then computes it as it stands."""
    if node.domain in _OWN_DOMAINS and (node.op_type in ROWS or not onnx.defs.has(node.op_type)):
        return node.op_type in ROWS
    has_body = any(a.type.name in ("GRAPH", "GRAPHS") for a in node.attributes.values())
    return node.domain in KEPT_DOMAINS and not has_body and node.op_type not in DRAWN


def _place(node: onnx_ir.Node, number: int) -> str:
    return f"node {number}, '{_name(node, number)}'"


def _name(node: onnx_ir.Node, number: int) -> str:
    return plain(node.name or "") or f"{plain(node.op_type)}_{number}"


def _signature(value: onnx_ir.Value) -> Signature:
    if not isinstance(value.type, onnx_ir.TensorType | None):
        raise InputError(f"takes a {value.type} as its input '{value.name}'. Only tensors can be given.")
    dtype = DTYPES.get(int(value.dtype)) if value.dtype is not None else torch.float32
    if dtype is None:
        raise InputError(f"takes {value.dtype} as its input '{value.name}', which PyTorch does not compute with.")
    dims = None if value.shape is None else tuple(map(_dim, value.shape))
    return Signature(str(value.name), dims, dtype, value.dtype in _HALF)


def _dim(size: Any) -> int | str:
    """Some write an open size as -1 or 0."""
    return (size if size > 0 else "") if isinstance(size, int) else str(size.value or "")


def _check_outputs(graph: onnx_ir.Graph) -> None:
    for value in graph.outputs:
        if not isinstance(value.type, onnx_ir.TensorType | None):
            raise InputError(
                f"returns a {value.type} as its output '{value.name}', which no small model can. Let it return tensors."
            )


def _stored(value: onnx_ir.Value) -> Known:
    return _as_known(value.const_value, f"its constant '{value.name}'")


def _as_known(tensor: Any, what: str) -> Known:
    dtype = DTYPES.get(int(tensor.dtype)) if tensor is not None else None
    if dtype is None:
        raise InputError(f"holds {what} of type {getattr(tensor, 'dtype', None)}, which PyTorch does not compute with.")
    try:
        array = tensor.numpy()
    except Exception as error:  # too few bytes for its shape
        raise InputError(f"is damaged: {what} cannot be read ({first_line(error)}).") from error
    return Known(np.ascontiguousarray(array, dtype=str(dtype).removeprefix("torch.")).reshape(array.shape), dtype)


class _Lines:
    """Numbers the nodes as it writes them down."""

    def __init__(self, version: int, versions: Mapping[str, int]) -> None:
        self.version, self.versions = version, versions
        self.number, self.names = 0, Counter[str]()

    def body(self, graph: onnx_ir.Graph) -> Body:
        inputs, outputs = ([str(v.name) for v in values] for values in (graph.inputs, graph.outputs))
        steps = [self._step(node) for node in graph]
        # What is read last where is let go there; of what lies outside a body the body knows nothing.
        own, last = {name for step in steps for name in step.outputs}, dict[str, int]()
        for place, (step, node) in enumerate(zip(steps, graph, strict=True)):
            last |= dict.fromkeys([*step.outputs, *_reads(node)], place)
        frees: dict[int, list[str]] = {}
        for name, place in last.items():
            if name in own and name not in outputs:
                frees.setdefault(place, []).append(name)
        steps = [dataclasses.replace(step, last_reads=tuple(frees.get(n, ()))) for n, step in enumerate(steps)]
        return Body(tuple(inputs), tuple(outputs), tuple(steps))

    def _step(self, node: onnx_ir.Node) -> Step:
        self.number += 1
        number, name = self.number, _name(node, self.number)
        self.names[name] += 1
        name = name if self.names[name] == 1 else f"{name}_{number}"
        inputs = [str(v.name) if v is not None else "" for v in node.inputs]
        outputs = [str(v.name) if v.name is not None else "" for v in node.outputs]
        line = f"{', '.join(map(plain, outputs))} = {plain(node.op_type)}({', '.join(map(plain, inputs))})"
        bodies = {key: self.body(a.as_graph()) for key, a in node.attributes.items() if a.type.name == "GRAPH"}
        attributes = {k: _attribute(a, name) for k, a in node.attributes.items() if k not in bodies}
        line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}...)"
        other = node.domain not in _OWN_DOMAINS
        op = f"{node.domain}.{node.op_type}" if other else node.op_type
        version = self.versions.get(node.domain, 1) if other else self.version
        return Step(op, name, number, line, version, tuple(inputs), tuple(outputs), attributes, bodies)


def _attribute(attribute: Any, name: str) -> Any:
    if attribute.type.name == "TENSOR":
        return _as_known(attribute.value, f"a constant at node '{name}'")
    return list(attribute.value) if isinstance(attribute.value, tuple | list) else attribute.value


def _reads(node: onnx_ir.Node) -> Iterator[str]:
    """Names that a node reads, also inside its bodies."""
    yield from (str(v.name) for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            graph = attribute.as_graph()
            yield from (str(v.name) for v in graph.outputs)
            for inner in graph:
                yield from _reads(inner)
