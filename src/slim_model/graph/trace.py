"""A model and example inputs -> one flat ATen graph.

``torch.export`` (non-strict) records the forward as pre-dispatch ATen, where ``conv2d``, ``linear``, ``batch_norm``
and ``scaled_dot_product_attention`` are still whole. Where it refuses (data-dependent control flow, TorchScript),
``make_fx`` follows the example run instead; such a graph is specialised to the example, and runs with its decisions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import make_fx

from slim_model.calling.arguments import Arguments
from slim_model.calling.flat_forward import flat_forward
from slim_model.calling.flat_program import form_of, only_tensors
from slim_model.calling.flat_script import SCRIPT_PREFIX, flat_script
from slim_model.calling.outputs import output_form
from slim_model.errors import InputError, first_line
from slim_model.graph.decisions import decisions_of
from slim_model.graph.fixed_axes import (
    ASKED,
    NO_COMMON_AXIS,
    SCRIPTED,
    cannot_be_free,
    exported_so,
    fixed_among,
    fixed_batch_note,
    size_by_value,
    why_fixed,
    why_not_exported,
)
from slim_model.graph.free_axes import Axes, asked_axes, free_axes
from slim_model.graph.graph import Graph, copy_graph, describe_inputs
from slim_model.graph.modes import eval_mode, silence_torch
from slim_model.graph.other_inputs.other_sizes import notes_on_sizes, other_sizes
from slim_model.graph.promises import whole
from slim_model.graph.stored_flags import StoredFlags

_READINGS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


def trace(
    model: nn.Module,
    inputs: Arguments | tuple[Any, ...],
    *,
    static_batch: bool = False,
    why: str = ASKED,
    dynamic: Sequence[str] = (),
    program: ExportedProgram | None = None,
) -> Graph:
    """Trace ``model`` on ``inputs``. The batch (axis 0 of every tensor) stays symbolic where it can, unless
    ``static_batch``, of which ``why`` is noted. So do the axes that ``dynamic`` names (``"2,3"``, ``"ids=1"``), or an
    InputError says why not.

    A batch of one is doubled first: export specialises sizes 0 and 1. The model's training flags are put back.
    """
    arguments = Arguments.of(inputs)
    names, heads, tensors = arguments.names(model), arguments.heads(model), arguments.tensors
    if not tensors:
        raise InputError("no input is a tensor, so there is nothing to trace. Give at least one.")
    asked = asked_axes(dynamic, names, tensors)
    with eval_mode(model), silence_torch():
        if program is not None:
            graph = _from_program(program, tensors, why=exported_so(arguments, heads))
            graph = _compared(graph, asked, names, exported_so(arguments, heads, asked))
            outputs = form_of(program)
        elif isinstance(model, torch.jit.ScriptModule):
            graph = _compared(_from_script(model, arguments), asked, names, SCRIPTED)
            outputs = output_form(arguments.call(model))
        else:
            with flat_forward(model, arguments) as flat, StoredFlags(model):
                graph = _trace_flat(model, tensors, asked, names, why if static_batch else "")
            outputs = flat.outputs
    found = len(next(node for node in graph.nodes if node.op == "output").args[0])  # type: ignore[arg-type]
    if found != len(outputs.names):
        raise InputError(
            f"the model returns {', '.join(outputs.names)}, and its trace {found} outputs. Let forward return its "
            "tensors in a tuple or a dict."
        )
    notes = (*graph.warnings, *arguments.notes(model), *outputs.notes())
    return dataclasses.replace(
        graph, arguments=arguments, input_names=names, heads=heads, outputs=outputs, warnings=notes
    )


def _trace_flat(
    model: nn.Module, inputs: tuple[Tensor, ...], asked: Axes, names: Sequence[str], fixed: str = ""
) -> Graph:
    """The graph of a model that takes tensors and returns a tuple of tensors. ``fixed``: why its batch is to be so."""
    found, why = (None, fixed) if fixed else _trace_free(model, inputs, asked)
    if found is not None:
        return _compared(found, asked, names)
    if any(asked):
        return _trace_asked(model, inputs, asked, names, why)
    exported, refused = _export(model, inputs, (frozenset(),) * len(inputs))
    if exported is not None:
        return _from_program(exported, inputs, why)
    try:
        return _follow(model, inputs, refused)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the model could not be traced with inputs {describe_inputs(inputs)}: "
            f"{first_line(error, named=True)}. Check that the model runs on them."
        ) from error


def _compared(graph: Graph, asked: Axes, names: Sequence[str], why: str = "") -> Graph:
    """``graph`` with a second size of each free axis but the batch, at which it is compared. Raises InputError where an
    axis that was ``asked`` for is fixed, or runs at one size only."""
    if any(fixed_among(graph, asked)):
        raise InputError(cannot_be_free(graph, asked, names, why))
    others, misfits = other_sizes(graph)
    alone = [symbol for symbol in graph.free.example if symbol not in (*others, *graph.free.batch())]
    if alone and any(asked):
        why = misfits.get(alone[0], "it runs at no other size")
        raise InputError(f"{' and '.join(alone)} cannot be left free: {why}. Leave it out of dynamic, or change that.")
    graph = dataclasses.replace(graph, free=graph.free.with_others(others))
    notes = notes_on_sizes(graph, {symbol: why for symbol, why in misfits.items() if symbol in others})
    return dataclasses.replace(graph, warnings=(*graph.warnings, *notes))


def _trace_free(model: nn.Module, inputs: tuple[Tensor, ...], asked: Axes) -> tuple[Graph | None, str]:
    """The graph that was exported with a free batch on ``inputs``, or None, and why there is none."""
    doubled = _at_least_two(inputs)
    if doubled is None:
        return None, NO_COMMON_AXIS
    batch = tuple(frozenset({0} if x.dim() else ()) for x in inputs)
    exported, refused = _export(model, doubled, tuple(a | b for a, b in zip(asked, batch, strict=True)))
    if exported is None:
        return None, refused
    graph = _from_program(exported, doubled)
    if graph.dynamic_batch:
        return graph, ""
    why = why_fixed(graph, batch)
    if doubled is inputs:
        return dataclasses.replace(graph, warnings=(fixed_batch_note(inputs, why),)), why
    return None, why


def _trace_asked(
    model: nn.Module, inputs: tuple[Tensor, ...], asked: Axes, names: Sequence[str], batch_fixed: str
) -> Graph:
    """The graph with the axes that were ``asked`` for free, and the batch not, for the reason ``batch_fixed``."""
    exported, refused = _export(model, inputs, asked)
    if exported is None:
        listed = ", ".join(f"{sorted(axes)} of '{name}'" for name, axes in zip(names, asked, strict=True) if axes)
        raise InputError(f"axes {listed} cannot be left free: {refused}. Leave them out of dynamic, or change that.")
    return _compared(_from_program(exported, inputs, batch_fixed), asked, names)


def _export(model: nn.Module, inputs: tuple[Tensor, ...], free: Axes) -> tuple[ExportedProgram | None, str]:
    """The program with these axes ``free`` as far as the model lets them, or why there is none."""
    shapes = tuple(dict.fromkeys(sorted(axes), Dim.AUTO) if axes else None for axes in free)
    try:
        program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
    except InputError:
        raise
    except Exception as error:
        return None, why_not_exported(error)
    unknown = size_by_value(program)
    return (None, unknown) if unknown else (program, "")


def _from_script(model: torch.jit.ScriptModule, arguments: Arguments) -> Graph:
    inputs = arguments.tensors
    doubled = _at_least_two(inputs)
    try:
        from torch._export.converter import TS2EPConverter  # private; torch 2.11 to 2.15 have it

        flat = model if arguments.plain else flat_script(model, arguments)
        for example in filter(None, (doubled, inputs)):
            with contextlib.suppress(Exception):
                return _from_program(TS2EPConverter(flat, example).convert(), example, SCRIPTED)
        return _from_program(TS2EPConverter(flat, inputs).convert(), inputs, SCRIPTED)
    except Exception as error:
        raise InputError(
            f"this TorchScript archive could not be converted to ATen operators: {first_line(error, named=True)}. "
            "Give the PyTorch model it was made from, or a .pt2 written by torch.export."
        ) from error


def _at_least_two(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Inputs with a batch of at least two, or None where they share no batch axis."""
    sizes = {x.shape[0] for x in inputs if x.dim()}
    if len(sizes) != 1:
        return None
    return tuple(torch.cat([x, x]) if x.dim() else x for x in inputs) if sizes == {1} else inputs


def _from_program(program: ExportedProgram, inputs: tuple[Tensor, ...], why: str = "") -> Graph:
    """The graph of ``program``. ``why``: what is noted of a batch size that is fixed."""
    if unknown := size_by_value(program):
        raise InputError(f"{unknown}. Give the PyTorch model, of which one run is followed, or leave that out.")
    graph, _ = copy_graph(program.graph_module.graph)  # the program is the user's
    module = _inlined(fx.GraphModule(program.graph_module, graph))
    owners, tensors = {}, {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        name = str(spec.target)
        owners[spec.arg.name] = name.removeprefix(SCRIPT_PREFIX)
        stored = program.state_dict.get(name)
        tensors[owners[spec.arg.name]] = program.constants[name] if stored is None else stored
    updated = only_tensors(module, program)
    users = [n for n in module.graph.nodes if n.op == "placeholder" and n.name not in owners]
    free = free_axes([n.meta.get("val") for n in users], inputs, program.range_constraints)
    notes = (fixed_batch_note(inputs, why),) if why and not free.batch() else ()
    trained = frozenset(str(name).removeprefix(SCRIPT_PREFIX) for name in program.graph_signature.parameters)
    notes = (*notes, *updated)
    return whole(Graph(module, owners, tensors, inputs, program, free, notes, parameter_names=trained), "trace")


def _inlined(module: fx.GraphModule) -> fx.GraphModule:
    """``no_grad`` and ``autocast`` regions are submodules in the exported graph: put their nodes in line."""
    regions = [
        node
        for node in module.graph.nodes
        if node.op == "call_function" and "wrap_with" in getattr(node.target, "__name__", "")
    ]
    for node in regions:
        index = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
        body = getattr(module, str(node.args[index].target))
        arguments = dict(zip(
            (n for n in body.graph.nodes if n.op == "placeholder"), node.args[index + 1 :], strict=True
        ))  # fmt: skip
        with module.graph.inserting_before(node):
            results: Any = module.graph.graph_copy(body.graph, val_map=arguments)
        for user in list(node.users):
            user.replace_all_uses_with(results[int(user.args[1])])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    if regions:
        module.graph.eliminate_dead_code()
        module.recompile()
        return _inlined(module)
    return module


def _follow(model: nn.Module, inputs: tuple[Tensor, ...], refused: str) -> Graph:
    """Record the ATen calls of one real run (no control flow, fixed sizes). ``refused``: why it is not exported."""
    state = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    names = list(state)

    def forward(tensors: list[Tensor], given: list[Tensor]) -> Any:
        return torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), tuple(given))

    recorder = make_fx(
        forward,
        tracing_mode="real",
        pre_dispatch=True,
        record_stack_traces=True,
        _error_on_data_dependent_ops=False,  # a branch goes the way it went for the example
    )
    with torch.no_grad():
        module = recorder([t.detach() for t in state.values()], list(inputs))
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    owners = {n.name: name for n, name in zip(placeholders, names, strict=False)}
    tensors = {name: state[name].detach() for name in names}
    module.graph.set_codegen(fx.graph.CodeGen())
    module.graph.eliminate_dead_code(lambda node: node.is_impure() and node.target not in _READINGS)
    module.recompile()
    trained = frozenset(name for name, _ in model.named_parameters())
    notes = (f"{_ONE_RUN} ({refused})",)
    graph = Graph(module, owners, tensors, inputs, None, warnings=notes, parameter_names=trained)
    decisions = decisions_of(module, whole(graph, "trace").bind(graph.inputs))
    return dataclasses.replace(graph, decisions=decisions, warnings=(*notes, _DECIDED)) if decisions else graph


_ONE_RUN = "traced from one run of the example: sizes and branches are those of the example input"
_DECIDED = (
    "the model makes decisions from its values (what to keep, in which order): it was proven for those that the dense "
    "model takes on the example, given to both; what it decides by itself on other inputs is not compared"
)
