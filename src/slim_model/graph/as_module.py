"""A graph as a module that owns its tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from slim_model.graph.graph import Graph


def graph_module(graph: Graph) -> nn.Module:
    """The graph as a ``torch.nn.Module``; its tensors are parameters and buffers under their own names."""
    root = nn.Module()
    body = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result: Any = body.graph_copy(graph.module.graph, copies)
    body.output(_structured(graph, result))
    parameters = graph.parameter_names
    for node in [n for n in body.nodes if n.op == "placeholder" and n.name in graph.owners]:
        owner = graph.owners[node.name]
        _store(root, owner, graph.tensors[owner], owner in parameters)
        node.op, node.target, node.args = "get_attr", owner, ()
    for node in body.nodes:
        if node.op == "get_attr" and node.target not in graph.owners.values():
            setattr(root, str(node.target), getattr(graph.module, str(node.target)))
    return fx.GraphModule(root, body)


def _structured(graph: Graph, outputs: Any) -> Any:
    """Outputs as the model returned them: a tensor, tuple, list or dict; other containers become a tuple."""
    spec = graph.program.call_spec.out_spec if graph.program is not None else None
    if spec is None:
        return outputs
    structure = pytree.tree_unflatten(list(outputs), spec)
    return structure if isinstance(structure, fx.Node | tuple | list | dict) else tuple(outputs)


def _store(root: nn.Module, name: str, tensor: Tensor, is_parameter: bool) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if is_parameter:
        setattr(root, leaf, nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point()))
    else:
        root.register_buffer(leaf, tensor.detach())
