"""export: the small graph -> out.onnx, checked before anybody sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument
from torch.onnx import OnnxExporterError

from slim_model.deciding import Deciding, by_torchscript, difference
from slim_model.errors import ExportError, InputError, ProofError
from slim_model.lower import Lowered, lowered
from slim_model.prove import TOLERANCE, relative_error
from slim_model.shrink import graph_module, resized
from slim_model.tidy import tidy
from slim_model.trace import Graph, quiet
from slim_model.translate import TRANSLATIONS


def to_program(graph: Graph, kind: type[ExportedProgram] = ExportedProgram) -> ExportedProgram | None:
    """The graph as a torch.export program over its own tensors; None where it was traced from a run."""
    program = graph.program
    if program is None:
        return None
    resized(graph)
    signature = program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    inputs = [
        specs.get(node.name)
        or InputSpec(InputKind.BUFFER, TensorArgument(node.name), graph.owners[node.name], persistent=True)
        for node in graph.nodes
        if node.op == "placeholder"
    ]
    named = {
        spec.target
        for spec in inputs
        if spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent)
    }
    trained = graph.parameter_names
    state = {
        name: nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if name in trained else tensor
        for name, tensor in graph.tensors.items()
        if name in named
    }
    constants = {name: tensor for name, tensor in graph.tensors.items() if name not in state}
    result = kind(
        root=graph.module,
        graph=graph.module.graph,
        graph_signature=ExportGraphSignature(inputs, _output_specs(graph, signature)),
        state_dict=state,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={**{k: v for k, v in program.constants.items() if k not in graph.tensors}, **constants},
        verifiers=[program.verifier],
    )
    # torch 2.9 to 2.15 write checks of the dense model's symbolic sizes here; they name tensors that are gone
    result._guards_code = []
    return result


def _output_specs(graph: Graph, signature: ExportGraphSignature) -> list[OutputSpec]:
    """With the names of the nodes that give the outputs now."""
    (given,) = next(node for node in graph.nodes if node.op == "output").args
    return [
        dataclasses.replace(spec, arg=TensorArgument(node.name))
        if isinstance(node, fx.Node) and isinstance(spec.arg, TensorArgument)
        else spec
        for spec, node in zip(signature.output_specs, given, strict=True)  # type: ignore[arg-type]
    ]


def to_onnx(
    source: Graph | Deciding,
    path: Path,
    *,
    opset: int | None,
    metadata: dict[str, str],
    device: str = "cpu",
    weights_beside: bool = False,
) -> None:
    """Write ``source`` as ONNX at ``path`` (no checks yet), as onnxruntime runs it best on ``device``.
    ``weights_beside`` takes less memory, but two files."""
    if isinstance(source, Deciding):
        model = by_torchscript(source, path, opset)
        model.metadata_props.update(metadata)
        onnx_ir.save(model, path)
        return
    graph = source
    if graph.decisions:
        raise ExportError("the graph holds for the decisions of one run: as ONNX it would be wrong for other inputs.")
    with quiet(), torch.no_grad():  # with gradients attention takes other kernels than it was traced with
        result = _exported(graph, opset)
        tidy(result.model, device)
    written = result.model.opset_imports.get("", opset)
    if opset not in (None, written):
        raise InputError(f"--opset {opset}: torch {torch.__version__} wrote opset {written} instead. Ask for another.")
    result.model.metadata_props.update(metadata)
    _name_axes(result.model, graph)
    large = sum(t.numel() * t.element_size() for t in graph.tensors.values()) > _LARGEST_PROTOBUF
    try:
        if large:  # named after the file that ``path`` will become
            onnx_ir.save(result.model, path, external_data=f"{_final_name(path)}.data")
        else:
            result.save(str(path), external_data=weights_beside)
    except OSError as error:
        raise InputError(f"cannot write {path.name}: {error.strerror}. Free space or give another place.") from error


def _exported(graph: Graph, opset: int | None) -> torch.onnx.ONNXProgram:
    """The short way first; where it left an operator whole that ONNX does not have, the exporter's own way."""
    options: Any = {"custom_translation_table": TRANSLATIONS}
    options |= {"dynamo": True, "opset_version": opset, "verbose": False, "optimize": False}
    ways: list[Callable[[], Any]] = [lambda: to_program(_copied(graph, lowered), Lowered), lambda: to_program(graph)]
    if graph.program is None:
        ways = [lambda: graph_module(graph).eval()]
    for last, way in enumerate(ways, 1 - len(ways)):
        try:
            result = torch.onnx.export(way(), graph.inputs, **options)
        except OnnxExporterError as error:
            if last == 0:
                raise ExportError(f"PyTorch cannot write this model as ONNX: {_cause(error)}.") from error
        else:
            assert result is not None
            return result
    raise AssertionError("the last way returns or raises")


def _cause(error: BaseException) -> str:
    """The first line of what set it off."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _copied(graph: Graph, change: Callable[[fx.Graph], fx.Graph]) -> Graph:
    return dataclasses.replace(graph, module=fx.GraphModule(graph.module, change(graph.module.graph)))


_LARGEST_PROTOBUF = 1_900_000_000  # bytes; beyond it ONNX stores weights beside the file


def _name_axes(model: onnx_ir.Model, graph: Graph) -> None:
    """The free batch axis is called 'batch' rather than by the tracer's symbol."""
    if not graph.dynamic_batch:
        return
    symbols = {str(v.shape[0]) for v in model.graph.inputs if v.shape is not None and len(v.shape)}
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is not None:
            names = [str(getattr(d, "value", d)) for d in value.shape]
            value.shape = onnx_ir.Shape(
                int(n) if n.isdigit() else "batch" if n in symbols else None if n == "None" else n for n in names
            )


def check_onnx(path: Path, graph: Graph | Deciding, batches: list[tuple[Any, ...]]) -> float:
    """onnx.checker, then onnxruntime against the graph or the deciding module; returns the largest relative error."""
    _or_refuse(lambda: onnx.checker.check_model(str(path), full_check=True), "the ONNX file is not valid")
    session = _or_refuse(lambda: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    of_sigmoids = _sigmoids(onnx.load(path, load_external_data=False).graph)
    worst = 0.0
    for inputs in batches:
        expected = graph.run(inputs)
        got = _or_refuse(functools.partial(run_onnx, session, inputs))
        if len(expected) != len(got):
            raise ProofError(f"the ONNX file has {len(got)} outputs, the model {len(expected)}. Nothing was written.")
        values = [torch.from_numpy(np.asarray(x)) for x in got]
        if isinstance(graph, Deciding):
            worst = max(worst, difference(graph, inputs, expected, values))
        else:
            worst = max([worst, *itertools.starmap(_difference, zip(expected, values, of_sigmoids, strict=True))])
    if worst == math.inf and isinstance(graph, Deciding):
        raise ProofError(
            "onnxruntime gives other rows (boxes) than PyTorch, more than rounding explains. Nothing was written."
        )
    if not worst <= TOLERANCE:
        raise ProofError(
            f"onnxruntime differs from PyTorch by {worst:.1e} (relative; allowed {TOLERANCE:.0e}). "
            "Nothing was written. Try another --opset."
        )
    return worst


_SIGMOID_ERROR = 2.5e-7
"""onnxruntime's sigmoid (1.31) is off by up to 1.2e-7 also where it is nearly 0; PyTorch's is right to 1e-7 of
the value. Scores that are all below a thousandth then differ by more than the tolerance, and nothing is wrong."""
_MOVES = {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def _difference(expected: Tensor, got: Tensor, is_sigmoid: bool) -> float:
    """The relative error; of a sigmoid the absolute one (its range is 1) where that is its kernel's."""
    error = relative_error(expected, got)
    if is_sigmoid and TOLERANCE < error < math.inf and (apart := float((expected - got).abs().max())) < _SIGMOID_ERROR:
        return apart
    return error


def _sigmoids(graph: onnx.GraphProto) -> list[bool]:
    """Of each output: whether it is a sigmoid, or several, moved about."""
    makers = {name: node for node in graph.node for name in node.output}

    def is_sigmoid(name: str) -> bool:
        node = makers.get(name)
        if node is None or node.op_type not in _MOVES:
            return node is not None and node.op_type == "Sigmoid"
        moved = node.input if node.op_type == "Concat" else node.input[:1]
        return all(map(is_sigmoid, moved))

    return [is_sigmoid(output.name) for output in graph.output]


def _or_refuse(action: Callable[[], Any], what: str = "onnxruntime does not run the ONNX file") -> Any:
    try:
        return action()
    except Exception as error:  # onnxruntime's own and the checker's, which have no common root
        raise ProofError(
            f"{what}: {' '.join(str(error).split())[:300]}. Nothing was written. "
            "Try another --opset, or --static-batch."
        ) from error


def run_onnx(session: onnxruntime.InferenceSession, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    feed = {i.name: t.detach().cpu().numpy() for i, t in zip(session.get_inputs(), tensors, strict=False)}
    return list(session.run(None, feed))


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A temporary file in the folder of ``target`` that replaces it when the block ends well, else vanishes."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise InputError(f"cannot write to {target.parent}: {error.strerror}. Give another output place.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _final_name(path: Path) -> str:
    """What a file from ``beside`` will be called in the end."""
    return path.name[1:].rsplit(".", 2)[0] if path.suffix == ".part" else path.name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
