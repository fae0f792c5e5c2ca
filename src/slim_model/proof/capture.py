"""A model and example inputs -> the graph that all stages work on, checked against the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from slim_model.calling.arguments import Arguments
from slim_model.coupling.dense_counts import keep_dense_counts
from slim_model.coupling.dense_places import keep_dense_places
from slim_model.cutting.resize import resize
from slim_model.errors import InputError, ProofError
from slim_model.from_onnx.kept import kept_nodes
from slim_model.from_onnx.model import OnnxModel
from slim_model.graph.autocast import autocast_types, float32_note, in_float32
from slim_model.graph.fixed_axes import ASKED
from slim_model.graph.graph import Graph
from slim_model.graph.modes import eval_mode
from slim_model.graph.options import TracingOptions
from slim_model.graph.other_inputs.other_sizes import batch_that_fails
from slim_model.graph.trace import trace
from slim_model.proof.check_reading import check_reading
from slim_model.proof.check_trace import check_trace
from slim_model.simplifying.simplify import simplify
from slim_model.simplifying.take_means import take_means


def capture(
    model: nn.Module,
    inputs: Arguments | tuple[Any, ...],
    options: TracingOptions = TracingOptions(),
    *,
    program: ExportedProgram | None = None,
) -> Graph:
    """Trace ``model``, simplify the graph, write statistics over channels with the dense model's counts, and check that
    it computes on ``inputs`` what the model does.

    ``program``: the model's own export, where it was read from one. The graph's ``warnings`` hold what the user should
    know of the trace. Autocast regions are in float32. What is drawn at random is its mean where ``options`` ask for
    that. Raises InputError where the model cannot be traced, ProofError where the graph differs.
    """
    with in_float32() as lowered:
        if isinstance(model, OnnxModel):
            return _captured_of_file(model, inputs, options)
        graph = _captured(model, inputs, options, program)
    lowered |= autocast_types(program)
    return replace(graph, warnings=(*graph.warnings, float32_note(lowered))) if lowered else graph


def _captured_of_file(model: OnnxModel, inputs: Arguments | tuple[Any, ...], options: TracingOptions) -> Graph:
    """Axes are free as the file has them, where the user does not say which, and as far as they can be. What was read
    is compared with the file."""
    arguments, note = Arguments.of(inputs), ""
    wished = replace(options, dynamic=open_axes(model, arguments)) if not options.dynamic else options
    fixed = model.has_fixed_batch and not options.frees_batch
    why = _FIXED_IN_FILE if fixed and not options.static_batch else ASKED
    wished = replace(wished, static_batch=options.static_batch or fixed)
    try:
        graph = _captured(model, inputs, wished, None, why)
    except (InputError, ProofError) as error:
        if wished.dynamic == options.dynamic:
            raise
        note = f"the file leaves {', '.join(wished.dynamic)} open; here it has the size of the example: {error}"
        graph = _captured(model, inputs, replace(wished, dynamic=()), None, why)
    apart = check_reading(model, graph)
    return replace(graph, read_error=apart, warnings=(*graph.warnings, *filter(None, [note]), *_kept(graph)))


def _kept(graph: Graph) -> list[str]:
    """A note on each node that stays as it is in the file."""
    return [
        f"{why.removesuffix(': it cannot be read.')}: it is kept as it is, computed by onnxruntime, with all channels "
        "that touch it"
        for why in kept_nodes(graph.module.graph)
    ]


_FIXED_IN_FILE = "the file has it so; --dynamic 0 frees it, where the nodes of the file let it"


def open_axes(model: OnnxModel, arguments: Arguments) -> tuple[str, ...]:
    """The axes that the file leaves open, as ``--dynamic`` names them, but the batch: where the example has more than
    one there."""
    given = [(s, x) for s, x in zip(model.signatures, arguments.args, strict=True) if isinstance(x, Tensor)]
    found = {s.name: [a for a, d in enumerate(s.dims or ()) if a and isinstance(d, str) and x.shape[a] > 1]
             for s, x in given}  # fmt: skip
    return tuple(f"{name}={','.join(map(str, axes))}" for name, axes in found.items() if axes)


def _captured(
    model: nn.Module,
    inputs: Arguments | tuple[Any, ...],
    options: TracingOptions,
    program: ExportedProgram | None,
    why: str = ASKED,
) -> Graph:
    drawn = take_means if options.random == "mean" else _as_it_is
    static, dynamic = options.static_batch, options.dynamic
    traced = trace(model, inputs, static_batch=static, why=why, dynamic=dynamic, program=program)
    if autocast_types(program):
        traced = resize(traced)  # types of values as they are outside of autocast
    graph = make_followable(drawn(traced))
    with eval_mode(model):
        doubts = check_trace(model, graph)
    if doubts and (why := batch_that_fails(graph)):  # the batch is free in the trace, and only some sizes run
        _refuse_if_asked(options, why)
        graph = make_followable(drawn(trace(model, inputs, static_batch=True, dynamic=options.dynamic, why=why)))
        with eval_mode(model):
            doubts = check_trace(model, graph)
    return replace(graph, warnings=(*graph.warnings, *doubts))


def make_followable(graph: Graph) -> Graph:
    """``graph`` in a form through which channels can be followed, in which those that are gone count as zeros."""
    return keep_dense_places(keep_dense_counts(simplify(graph)))


def _as_it_is(graph: Graph) -> Graph:
    return graph


def _refuse_if_asked(options: TracingOptions, why: str) -> None:
    if options.frees_batch:
        raise InputError(f"the batch cannot be left free: {why}. Leave axis 0 out of dynamic.")
