"""A model and example inputs -> one flat ATen graph.

``torch.export`` (non-strict) records the forward as pre-dispatch ATen, where ``conv2d``, ``linear``, ``batch_norm``
and ``scaled_dot_product_attention`` are still whole. Where it refuses (data-dependent control flow, TorchScript),
``make_fx`` follows the example run instead; such a graph is specialised to the example, and runs with its decisions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from slim_model.errors import InputError, first_line
from slim_model.graph.decisions import decisions_of
from slim_model.graph.fixed_batch import (
    ASKED,
    NO_COMMON_AXIS,
    SCRIPTED,
    exported_so,
    fixed_batch_note,
    line_of_error,
    why_fixed,
    why_not_exported,
)
from slim_model.graph.graph import Graph, copy_graph, describe_inputs
from slim_model.graph.modes import eval_mode, silence_torch
from slim_model.graph.promises import whole
from slim_model.graph.tensor_trees import tensors_among

_READINGS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


def trace(
    model: nn.Module,
    inputs: tuple[Any, ...],
    *,
    static_batch: bool = False,
    program: ExportedProgram | None = None,
) -> Graph:
    """Trace ``model`` on ``inputs``; the batch axis (0 of every tensor) stays symbolic unless ``static_batch``.

    A batch of one is doubled first: export specialises sizes 0 and 1. The model's training flags are put back.
    """
    with eval_mode(model), silence_torch():
        if program is not None:
            return _from_program(program, inputs, why=exported_so(inputs))
        if isinstance(model, torch.jit.ScriptModule):
            return _from_script(model, inputs)
        graph, why = (None, ASKED) if static_batch else _trace_dynamic(model, inputs)
        if graph is not None:
            return graph
        try:
            return _from_program(torch.export.export(model, inputs, strict=False), inputs, why)
        except Exception as error:
            refused = why_not_exported(error)
        try:
            return _follow(model, inputs, refused)
        except Exception as error:
            raise InputError(
                f"the model could not be traced with inputs {describe_inputs(inputs)}: "
                f"{first_line(error, named=True)}. "
                "Check --input; if the shapes are right, export the model yourself with torch.export and give the .pt2."
            ) from error


def _trace_dynamic(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Graph | None, str]:
    """The graph that was exported with a free batch on ``inputs``, or None, and why there is none."""
    doubled = _at_least_two(inputs)
    if doubled is None:
        return None, NO_COMMON_AXIS
    refused: list[Exception] = []
    shapes = pytree.tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, Tensor) and x.dim() else None, doubled)
    for spec in (shapes, (shapes,)):  # the second form is that of forward(self, *inputs)
        try:
            exported = torch.export.export(model, doubled, dynamic_shapes=spec, strict=False)
        except Exception as error:
            refused.append(error)
            continue
        graph = _from_program(exported, doubled)
        if graph.dynamic_batch:
            return graph, ""
        why = why_fixed(graph)
        if doubled is inputs:
            return dataclasses.replace(graph, warnings=(fixed_batch_note(inputs, why),)), why
        return None, why
    return None, why_not_exported(next(filter(line_of_error, refused), refused[0]))  # the other form does not fit


def _from_script(model: torch.jit.ScriptModule, inputs: tuple[Any, ...]) -> Graph:
    doubled = _at_least_two(inputs)
    try:
        from torch._export.converter import TS2EPConverter  # private; torch 2.11 to 2.15 have it

        for example in filter(None, (doubled, inputs)):
            with contextlib.suppress(Exception):
                return _from_program(TS2EPConverter(model, example).convert(), example, SCRIPTED)
        return _from_program(TS2EPConverter(model, inputs).convert(), inputs, SCRIPTED)
    except Exception as error:
        raise InputError(
            f"this TorchScript archive could not be converted to ATen operators: {first_line(error, named=True)}. "
            "Give the PyTorch model it was made from, or a .pt2 written by torch.export."
        ) from error


def _at_least_two(inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Inputs with a batch of at least two, or None where they share no batch axis."""
    sizes = {x.shape[0] for x in tensors_among(inputs) if x.dim()}
    if len(sizes) != 1:
        return None
    if sizes == {1}:
        return pytree.tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() else x, inputs)
    return inputs


def _from_program(program: ExportedProgram, inputs: tuple[Any, ...], why: str = "") -> Graph:
    """The graph of ``program``. ``why``: what is noted of a batch size that is fixed."""
    graph, _ = copy_graph(program.graph_module.graph)  # the program is the user's
    module = _inlined(fx.GraphModule(program.graph_module, graph))
    owners, tensors = {}, {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        name = str(spec.target)
        owners[spec.arg.name] = name
        stored = program.state_dict.get(name)
        tensors[name] = program.constants[name] if stored is None else stored
    flat = tuple(pytree.tree_leaves(inputs))
    users = [n for n in module.graph.nodes if n.op == "placeholder" and n.name not in owners]
    values = [n.meta.get("val") for n in users]
    free = any(isinstance(v, Tensor) and v.dim() and _is_free(v.shape[0]) for v in values)
    notes = (fixed_batch_note(inputs, why),) if why and not free else ()
    trained = frozenset(map(str, program.graph_signature.parameters))
    structure = pytree.tree_structure(inputs)
    result = Graph(module, owners, tensors, flat, program, free, notes, structure=structure, parameter_names=trained)
    return whole(result, "trace")


def _is_free(size: Any) -> bool:
    """Symbolic, and not fixed while the model was traced (as the steps of a recurrent layer are)."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


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


def _follow(model: nn.Module, inputs: tuple[Any, ...], refused: str) -> Graph:
    """Record the ATen calls of one real run (no control flow, fixed sizes). ``refused``: why it is not exported."""
    state = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    names = list(state)
    flat, spec = pytree.tree_flatten(inputs)

    def forward(tensors: list[Tensor], leaves: list[Any]) -> Any:
        arguments = pytree.tree_unflatten(leaves, spec)
        result = torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), arguments)
        return tensors_among(result)

    recorder = make_fx(
        forward,
        tracing_mode="real",
        pre_dispatch=True,
        record_stack_traces=True,
        _error_on_data_dependent_ops=False,  # a branch goes the way it went for the example
    )
    with torch.no_grad():
        module = recorder([t.detach() for t in state.values()], list(flat))
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    owners = {n.name: name for n, name in zip(placeholders, names, strict=False)}
    tensors = {name: state[name].detach() for name in names}
    module.graph.set_codegen(fx.graph.CodeGen())
    module.graph.eliminate_dead_code(lambda node: node.is_impure() and node.target not in _READINGS)
    module.recompile()
    trained = frozenset(name for name, _ in model.named_parameters())
    notes = (f"{_ONE_RUN} ({refused})",)
    graph = Graph(module, owners, tensors, tuple(flat), None, False, notes, structure=spec, parameter_names=trained)
    decisions = decisions_of(module, whole(graph, "trace").bind(graph.inputs))
    return dataclasses.replace(graph, decisions=decisions, warnings=(*notes, _DECIDED)) if decisions else graph


_ONE_RUN = "traced from one run of the example: sizes and branches are those of the example input"
_DECIDED = (
    "the model makes decisions from its values (what to keep, in which order): it was proven for those that the dense "
    "model takes on the example, given to both; what it decides by itself on other inputs is not compared"
)
