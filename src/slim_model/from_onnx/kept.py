"""A node that no row can read, kept as it is: onnxruntime computes it here, and the exporter writes it back.

It is one operator of the graph, ``slim_model::onnx_node``, whose argument is an ONNX model of that node alone. No rule
follows channels through it, so all that touch it stay.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx

from slim_model.errors import InputError, first_line
from slim_model.from_onnx.known import Known
from slim_model.from_onnx.row import Call, Unreadable

KEPT_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains whose operators onnxruntime runs."""
DRAWN = (
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    "Dropout",  # in training mode, which its row refuses
)
_ANY = 17
"""The operator set that a model of a node of another domain asks for, besides: none of its operators is there."""
_ELEMENTS = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int16: 5, torch.int32: 6, torch.int64: 7, torch.bool: 9,
    torch.float64: 1,  # the float64 runs of the proof; a file's own float64 is computed in float32 here
}  # fmt: skip


def keep(call: Call, why: Unreadable) -> tuple[Tensor | None, ...]:
    """What onnxruntime gives for the node of ``call``. Raises ``why`` where the node cannot stand alone: it has a body,
    reads a sequence or a size that is free, draws at random; InputError where onnxruntime does not run it."""
    step = call.step
    apart = [
        value for value in call.values if isinstance(value, list) or (isinstance(value, Known) and _is_free(value))
    ]
    if step.bodies or apart or not call.values or step.op in DRAWN:
        raise why
    try:
        results = iter(torch.ops.slim_model.onnx_node(*_alone(call, str(why))))
    except _NotRun as error:
        raise InputError(f"{why} Nor can it be kept as it is: {error}") from error
    return tuple(next(results) if name else None for name in step.outputs)


def kept_nodes(graph: fx.Graph) -> list[str]:
    """Why each node that ``graph`` keeps could not be read; these sentences name them."""
    return [model_of(str(node.args[1])).doc_string for node in graph.nodes if node.target is _OP]


def _is_free(value: Known) -> bool:
    return value.is_symbolic and any(not isinstance(n, int) for n in value.array.reshape(-1))


def _alone(call: Call, why: str) -> tuple[list[Tensor], str]:
    """The tensors that the node reads, and the node as a model, in which what is known ahead is stored."""
    step = call.step
    given: dict[str, Tensor] = {}
    stored: dict[str, np.ndarray] = {}
    for place, (name, value) in enumerate(zip(step.inputs, call.values, strict=True)):
        if isinstance(value, Known) and value.is_small:
            kind = str(value.dtype).removeprefix("torch.")
            stored[name] = np.asarray(value.array, dtype=kind)
        elif value is not None:
            given[name] = call.tensor(place)
    domain, _, op = step.op.rpartition(".")
    attributes = {k: _attribute(v) for k, v in step.attributes.items() if not (isinstance(v, list) and not v)}
    node = helper.make_node(op, list(step.inputs), list(step.outputs), name=step.name, domain=domain, **attributes)
    inputs = [onnx.ValueInfoProto(name=name) for name in given]
    outputs = [onnx.ValueInfoProto(name=name) for name in step.outputs if name]
    constants = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph([node], "kept", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=_versions(domain, step.version), ir_version=8, doc_string=why)
    return list(given.values()), base64.b64encode(model.SerializeToString()).decode()


def _versions(domain: str, version: int) -> list[onnx.OperatorSetIdProto]:
    own = [helper.make_opsetid(domain, version)]
    return own if not domain else [*own, helper.make_opsetid("", _ANY)]


def _attribute(value: Any) -> Any:
    return numpy_helper.from_array(np.asarray(value.array)) if isinstance(value, Known) else value


def model_of(text: str) -> onnx.ModelProto:
    """The argument of the operator as the model that it is."""
    return onnx.load_model_from_string(base64.b64decode(text))


# -- the operator ------------------------------------------------------------------------------------------------------


class _NotRun(InputError):
    """onnxruntime does not run the node, or it has no form in PyTorch."""


@torch.library.custom_op("slim_model::onnx_node", mutates_args=(), schema="(Tensor[] inputs, str node) -> Tensor[]")
def onnx_node(inputs: list[Tensor], node: str) -> list[Tensor]:
    """The outputs of the one node in ``node``, computed by onnxruntime in float32."""
    arrays = [np.ascontiguousarray(_narrow(x.detach()).numpy()) for x in inputs]
    wide = any(x.dtype is torch.float64 for x in inputs)
    results = _run(node, tuple(x.dtype for x in inputs), arrays)
    expected = _sizes(node, tuple(x.dtype for x in inputs), tuple(tuple(x.shape) for x in inputs))
    if [tuple(r.shape) for r in results] != [shape for shape, _ in expected]:
        raise _NotRun(
            "how many values it gives follows from the values that it reads. Cut the file before it, with "
            "onnx.utils.extract_model."
        )
    tensors = [torch.from_numpy(np.array(result)) for result in results]
    return [x.double() if wide and x.dtype is torch.float32 else x for x in tensors]


@onnx_node.register_autograd  # type: ignore[no-untyped-call]
def _no_gradient(context: Any, gradients: list[Tensor]) -> None:
    raise InputError(
        "a node that is kept as it is in the ONNX file has no gradient, and what stands before it would need one. "
        "Leave out fine-tuning, recovery by training and criteria that take gradients."
    )


_OP = torch.ops.slim_model.onnx_node.default


@onnx_node.register_fake
def _traced(inputs: list[Tensor], node: str) -> list[Tensor]:
    """Of the sizes that onnxruntime gives; a size that is free stays so where they follow it evenly."""
    kinds, free = tuple(x.dtype for x in inputs), _free_size(inputs)
    wide = torch.float64 in kinds
    if free is None:
        found = _sizes(node, kinds, tuple(tuple(int(n) for n in x.shape) for x in inputs))
        shapes: list[Sequence[Any]] = [shape for shape, _ in found]
    else:
        found = _sizes(node, kinds, _at(inputs, free, free.node.hint))
        shapes = list(_shapes(inputs, node, kinds, free))
    types = [torch.float64 if wide and dtype is torch.float32 else dtype for _, dtype in found]
    return [torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True)]


def _shapes(inputs: list[Tensor], node: str, kinds: tuple[Any, ...], free: Any) -> Iterator[list[Any]]:
    """Sizes as a line through two runs that a third lies on; where it does not, the free size is fixed."""
    start = int(free.node.hint)
    one, two, far = ([shape for shape, _ in _sizes(node, kinds, _at(inputs, free, start + n))] for n in (0, 1, 5))
    for a, b, c in zip(one, two, far, strict=True):
        steps = [y - x for x, y in zip(a, b, strict=True)]
        if [x + 5 * s for x, s in zip(a, steps, strict=True)] != list(c):
            int(free)
            yield list(a)
        else:
            yield [x if s == 0 else free * s + (x - s * start) for x, s in zip(a, steps, strict=True)]


def _free_size(inputs: list[Tensor]) -> Any:
    """The one size that is free, where there is one and stands as it is."""
    free = {str(n): n for x in inputs for n in x.shape if isinstance(n, torch.SymInt) and n.node.maybe_as_int() is None}
    return next(iter(free.values())) if len(free) == 1 and next(iter(free)).isidentifier() else None


def _at(inputs: list[Tensor], free: Any, size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(size if str(n) == str(free) else int(n) for n in x.shape) for x in inputs)


@functools.lru_cache(maxsize=4096)
def _sizes(node: str, kinds: tuple[Any, ...], shapes: tuple[tuple[int, ...], ...]) -> list[tuple[Any, torch.dtype]]:
    """Shape and type of each output for inputs of zeros of these ``shapes``."""
    zeros = [np.zeros(shape, _numpy(kind)) for shape, kind in zip(shapes, kinds, strict=True)]
    return [(tuple(x.shape), torch.from_numpy(x).dtype) for x in _run(node, kinds, zeros)]


def _run(node: str, kinds: tuple[Any, ...], arrays: list[np.ndarray]) -> list[np.ndarray]:
    session = _session(node, kinds)
    feed = dict(zip((i.name for i in session.get_inputs()), arrays, strict=True))
    try:
        results = session.run(None, feed)
    except Exception as error:  # onnxruntime's own
        raise _NotRun(f"onnxruntime does not run it: {first_line(error)}.") from error
    if odd := [r for r in results if not isinstance(r, np.ndarray) or r.dtype.kind not in "fiub"]:
        raise _NotRun(f"it gives what PyTorch has no tensors of ({getattr(odd[0], 'dtype', type(odd[0]).__name__)}).")
    return list(results)


@functools.lru_cache(maxsize=64)
def _session(node: str, kinds: tuple[Any, ...]) -> onnxruntime.InferenceSession:
    model, options = model_of(node), onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    for value, kind in zip(model.graph.input, kinds, strict=True):
        value.type.tensor_type.elem_type = _ELEMENTS.get(kind, 0)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own
        raise _NotRun(f"onnxruntime does not open it: {first_line(error)}.") from error


def _narrow(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.float64 else x


def _numpy(kind: torch.dtype) -> str:
    return str(torch.float32 if kind is torch.float64 else kind).removeprefix("torch.")
