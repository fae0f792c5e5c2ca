"""The small graph -> out.onnx, checked before anybody sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.onnx import OnnxExporterError

from slim_model.errors import ExportError, InputError, first_line
from slim_model.export.eager_model import EagerModel, by_torchscript
from slim_model.export.lower import Lowered, lower
from slim_model.export.needed_translations import needed_translations
from slim_model.export.onnx_rewrites import index_by_int64, tidy
from slim_model.export.onnx_translations import TRANSLATIONS
from slim_model.export.opsets import newest_opset
from slim_model.export.silent_layers import leave_out_silent
from slim_model.export.to_program import to_program
from slim_model.graph.as_module import graph_module
from slim_model.graph.graph import Graph, last_line_in, name_in
from slim_model.graph.modes import silence_torch

LARGEST_PROTOBUF = 1_900_000_000
"""Bytes of weights beyond which ONNX stores them beside the file."""


def to_onnx(
    source: Graph | EagerModel,
    path: Path,
    *,
    opset: int | None,
    metadata: dict[str, str],
    device: str = "cpu",
    weights_beside: bool = False,
    largest_file: int = LARGEST_PROTOBUF,
    rewrite: Callable[[onnx_ir.Model, str], None] = tidy,
) -> dict[str, str]:
    """Write ``source`` as ONNX at ``path`` (no checks yet), as onnxruntime runs it best on ``device``.
    ``weights_beside`` takes less memory, but two files, as weights of more than ``largest_file`` bytes do. ``rewrite``
    gives a graph the form for ``device``. Returns the user's line behind each ONNX node, by its name, where it is
    known."""
    if isinstance(source, EagerModel):
        model = by_torchscript(source, path, opset)
        _name_values(model, source.graph)
        model.metadata_props.update(metadata)
        onnx_ir.save(model, path)
        return {}
    graph = leave_out_silent(source)
    if graph.decisions:
        raise ExportError("the graph holds for the decisions of one run: as ONNX it would be wrong for other inputs.")
    with silence_torch(), torch.no_grad():  # with gradients attention takes other kernels than it was traced with
        result = _exported(graph, opset)
        if graph.read_error is not None:
            _name_nodes(result.model)
        lines = _lines(result.model)
        index_by_int64(result.model)
        rewrite(result.model, device)
    written = result.model.opset_imports.get("", opset)
    if opset not in (None, written):
        raise InputError(
            f"--opset {opset}: torch {torch.__version__} does not write this model so. Ask for {written} to "
            f"{newest_opset()}."
        )
    result.model.metadata_props.update(metadata)
    _name_values(result.model, graph)
    _name_axes(result.model, graph)
    large = sum(t.numel() * t.element_size() for t in graph.tensors.values()) > largest_file
    try:
        if large:  # moved with ``path``, as atomic_write moves what lies beside it
            onnx_ir.save(result.model, path, external_data=external_weights(path).name)
        else:
            result.save(str(path), external_data=weights_beside)
    except OSError as error:
        raise InputError(f"cannot write {path.name}: {error.strerror}. Free space or give another place.") from error
    return lines


def external_weights(path: Path) -> Path:
    """Where the weights of the ONNX file at ``path`` lie, if it is too large for one file."""
    return path.with_name(f"{path.name}.data")


def _name_nodes(model: onnx_ir.Model) -> None:
    """Nodes have the names of those in the file that the graph was read from; where one became several, the last has
    it, and the others end in their operator."""
    named = [(node, name_in(node.metadata_props.get("pkg.torch.onnx.stack_trace", ""))) for node in model.graph]
    last = {name: node for node, name in named}
    for number, (node, name) in enumerate(named):
        if name:
            node.name = name if last[name] is node else f"{name}_{node.op_type}_{number}"


def _lines(model: onnx_ir.Model) -> dict[str, str]:
    """Of each node the line of the user's forward that made it, as the exporter notes it."""
    return {
        node.name: line
        for node in model.graph
        if node.name and (line := last_line_in(node.metadata_props.get("pkg.torch.onnx.stack_trace", "")))
    }


def _exported(graph: Graph, opset: int | None) -> torch.onnx.ONNXProgram:
    """The short way first; where it left an operator whole that ONNX does not have, the exporter's own way. The short
    way has few translations at hand, and all of them where the exporter itself put in an operator that needs another.
    """
    options: Any = {"custom_translation_table": TRANSLATIONS}
    options |= {"dynamo": True, "opset_version": opset, "verbose": False, "optimize": False}
    short, own = functools.partial(_lowered, graph), functools.partial(to_program, graph)
    ways: list[tuple[Callable[[], Any], Any]] = [(short, needed_translations), (short, _all), (own, _all)]
    if graph.program is None:
        ways = [(lambda: graph_module(graph, flat=True).eval(), _all)]
    for last, (way, translations) in enumerate(ways, 1 - len(ways)):
        try:
            program = way()  # made anew for each: the exporter writes to it
            with translations(program):
                result = torch.onnx.export(program, graph.inputs, **options)
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
    return first_line(error).rstrip(".")


def _lowered(graph: Graph) -> ExportedProgram | None:
    module = fx.GraphModule(graph.module, lower(graph.module.graph))
    return to_program(dataclasses.replace(graph, module=module), Lowered)


_all = contextlib.nullcontext  # of the translations


def _name_values(model: onnx_ir.Model, graph: Graph) -> None:
    """Inputs and outputs bear the names of the user's parameters, keys and fields; what is inside gives way."""
    inside = model.graph
    for number, value in enumerate(inside.outputs):
        if value.is_graph_input() or value.is_initializer() or value in inside.outputs[:number]:
            inside.outputs[number] = _copied_value(inside, value)
    taken = {*graph.input_names, *inside.initializers}
    outputs = []
    for name in graph.outputs.names:
        while name in taken:
            name += "_out"
        taken.add(name)
        outputs.append(name)
    named = [*zip(inside.inputs, graph.input_names, strict=True), *zip(inside.outputs, outputs, strict=True)]
    public, values = {id(value) for value, _ in named}, dict.fromkeys(name for _, name in named)
    for node in onnx_ir.traversal.RecursiveGraphIterator(inside):
        for value in node.outputs:
            if id(value) not in public and value.name in values:
                value.name = f"{value.name}_inside"
    for value, name in named:
        value.name = name


def _copied_value(inside: onnx_ir.Graph, value: onnx_ir.Value) -> onnx_ir.Value:
    """ONNX has each output once, and none that is an input or stored."""
    node = onnx_ir.node("Identity", [value])
    inside.append(node)
    (copied,) = node.outputs
    copied.shape, copied.type = value.shape, value.type
    return copied


def _name_axes(model: onnx_ir.Model, graph: Graph) -> None:
    """Free axes are called batch, height, ... rather than by the tracer's symbols; all others have the size they have,
    also where tracing left a symbol that it knows the number of."""
    tensors = [i for i, x in enumerate(graph.inputs) if isinstance(x, Tensor)]
    names = {
        str(value.shape[axis]): str(size)
        for value, number in zip(model.graph.inputs, tensors, strict=False)
        for axis, size in (graph.free.sizes[number] if graph.free.sizes else {}).items()
        if value.shape is not None
    }
    symbols = re.compile("|".join(sorted(rf"\b{re.escape(symbol)}\b" for symbol in names if symbol.isidentifier())))
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is not None:
            found = [str(getattr(d, "value", d)) for d in value.shape]
            renamed = [names.get(n) or (symbols.sub(lambda m: names[m[0]], n) if symbols.pattern else n) for n in found]
            value.shape = onnx_ir.Shape(int(n) if n.isdigit() else None if n == "None" else n for n in renamed)
