"""An exported program takes and returns tensors alone: what else it has is in its graph, or in words.

A program that came from a file may take numbers and return numbers and None; a graph that all stages work on does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from slim_model.calling.outputs import OutputForm, number_type, output_form

aten = torch.ops.aten


def only_tensors(module: fx.GraphModule, program: ExportedProgram) -> tuple[str, ...]:
    """Edit the graph of ``module``, a copy of that of ``program``; notes say what a user should know of it."""
    nodes, signature = module.graph, program.graph_signature
    constant = {
        spec.arg.name
        for spec in signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument)
    }
    for node in [n for n in nodes.nodes if n.op == "placeholder" and n.name in constant]:
        node.replace_all_uses_with(next(s.arg.value for s in signature.input_specs if s.arg.name == node.name))
        nodes.erase_node(node)
    end = next(node for node in nodes.nodes if node.op == "output")
    given, kinds = list(end.args[0]), [spec.kind for spec in signature.output_specs]  # type: ignore[arg-type]
    users = [x for x, kind in zip(given, kinds, strict=True) if kind is OutputKind.USER_OUTPUT and x is not None]
    with nodes.inserting_before(end):
        end.args = (tuple(x if _is_tensor(x) else _as_tensor(nodes, x) for x in users),)
    if len(users) < len(given) or constant:
        module.recompile()
    count = sum(kind is not OutputKind.USER_OUTPUT for kind in kinds)
    return (f"{count} buffers that the program updates keep the values that they have",) if count else ()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def _as_tensor(nodes: fx.Graph, value: Any) -> Any:
    """A number as a tensor without axes; what is neither is refused where the outputs are named."""
    number = value.meta.get("val") if isinstance(value, fx.Node) else value
    dtype = number_type(number)
    if dtype is None:
        return value
    result = nodes.call_function(aten.scalar_tensor.default, (value,), {"dtype": dtype})
    result.meta = {"val": torch.zeros((), dtype=dtype)}
    return result


def form_of(program: ExportedProgram) -> OutputForm:
    """How ``program`` nests what it returns."""
    nodes = {node.name: node for node in program.graph.nodes}
    user = [spec.arg for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    values = [arg.value if isinstance(arg, ConstantArgument) else _stand_in(nodes[arg.name]) for arg in user]
    return output_form(pytree.tree_unflatten(values, program.call_spec.out_spec))


def _stand_in(node: fx.Node) -> Any:
    """A tensor, or a number of the type that the program computes."""
    value = node.meta.get("val")
    dtype = number_type(value)
    return value if dtype is None else torch.zeros((), dtype=dtype).item()
