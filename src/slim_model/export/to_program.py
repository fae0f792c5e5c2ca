"""The small graph as an ExportedProgram."""

from __future__ import annotations

import dataclasses

from torch import nn
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from slim_model.cutting.resize import resize
from slim_model.graph.graph import Graph


def to_program(graph: Graph, kind: type[ExportedProgram] = ExportedProgram) -> ExportedProgram | None:
    """The graph as a torch.export program over its own tensors; None where it was traced from a run."""
    program = graph.program
    if program is None:
        return None
    graph = resize(graph)
    signature = program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    inputs = [
        _as_owned(graph, specs[node.name]) if node.name in specs else InputSpec(*_made_here(graph, node.name))
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
        graph_signature=ExportGraphSignature(inputs, _output_specs(graph)),
        state_dict=state,
        range_constraints=program.range_constraints,
        module_call_graph=[_called(graph)],
        example_inputs=(graph.inputs, {}),
        constants={**{k: v for k, v in program.constants.items() if k not in graph.tensors}, **constants},
        verifiers=[program.verifier],
    )
    # torch 2.9 to 2.15 write checks of the dense model's symbolic sizes here; they name tensors that are gone
    result._guards_code = []
    return result


def _made_here(graph: Graph, node: str) -> tuple[InputKind, TensorArgument, str, bool | None]:
    """The specification of a stored tensor that the traced program did not have."""
    name = graph.owners[node]
    trained = name in graph.parameter_names
    return InputKind.PARAMETER if trained else InputKind.BUFFER, TensorArgument(node), name, None if trained else True


def _as_owned(graph: Graph, spec: InputSpec) -> InputSpec:
    """By the name that the tensor has in ``graph``."""
    owner = graph.owners.get(spec.arg.name)
    return spec if owner is None else dataclasses.replace(spec, target=owner)


def _output_specs(graph: Graph) -> list[OutputSpec]:
    (given,) = next(node for node in graph.nodes if node.op == "output").args
    return [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in given]  # type: ignore


def _called(graph: Graph) -> ModuleCallEntry:
    """It takes tensors by position and returns a tuple of tensors."""
    into, out = pytree.tree_structure((graph.inputs, {})), pytree.tree_structure(graph.outputs.names)
    return ModuleCallEntry("", ModuleCallSignature([], [], into, out))
