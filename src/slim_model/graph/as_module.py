"""A graph as a module that owns its tensors, and is called as the user's own is."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, fx, nn

from slim_model.calling.arguments import Arguments
from slim_model.calling.flat_forward import identifiers
from slim_model.calling.nesting import leaves_of
from slim_model.calling.outputs import Place
from slim_model.graph.graph import Graph


def graph_module(graph: Graph, *, flat: bool = False) -> nn.Module:
    """The graph as a ``torch.nn.Module``; its tensors are parameters and buffers under their own names.

    It takes and returns what the user's model does; containers other than tuples, lists and dicts are returned as dicts
    of their fields. ``flat``: it takes tensors by position and returns a tuple of tensors.
    """
    root = nn.Module()
    body = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result: Any = body.graph_copy(graph.module.graph, copies)
    body.output(result if flat else _structured(graph.outputs.nest, result))
    parameters = graph.parameter_names
    for node in [n for n in body.nodes if n.op == "placeholder" and n.name in graph.owners]:
        owner = graph.owners[node.name]
        _store(root, owner, graph.tensors[owner], owner in parameters)
        node.op, node.target, node.args = "get_attr", owner, ()
    for node in body.nodes:
        if node.op == "get_attr" and node.target not in graph.owners.values():
            setattr(root, str(node.target), getattr(graph.module, str(node.target)))
    module = fx.GraphModule(root, body)
    return module if flat or graph.arguments.plain else NestedGraph(module, graph.arguments, graph.heads)


class NestedGraph(nn.Module):
    """``module``, which takes tensors by position, called with ``arguments``; its first ``heads`` may come either by
    position or by keyword. Other values of what is no tensor are refused: they are part of the graph."""

    def __init__(self, module: nn.Module, arguments: Arguments, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.example, self.heads = arguments.filled(tuple(x[:0] for x in arguments.tensors)), heads
        object.__setattr__(self, "_graph", module)
        self._share()

    def _share(self) -> None:
        """One set of tensors, under the names that they have in the model."""
        for held in ("_parameters", "_buffers", "_modules"):
            vars(self)[held] = vars(vars(self)["_graph"])[held]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def signed(self) -> NestedGraph:
        """Itself, with a forward that says what it takes, as ``torch.export`` wants to know."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return NestedGraph.forward(self, *args, **kwargs)

        by_place, by_name = identifiers(self.heads), list(self.example.kwargs)
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in by_place]
        parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in by_name]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        vars(self)["forward"] = forward
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        example = self._leaves(self.example.args, self.example.kwargs)
        given = self._leaves(args, kwargs)
        for path, value in example.items():
            if not isinstance(value, Tensor) and given.get(path, value) != value:
                raise ValueError(f"{'.'.join(path)} is {value!r} in this graph; it takes no other.")
        return vars(self)["_graph"](*[given[path] for path, value in example.items() if isinstance(value, Tensor)])

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[tuple[str, ...], Any]:
        heads = (*self.heads, *(f"*{number}" for number in range(len(args) - len(self.heads))))
        return dict(leaves_of(dict(zip(heads, args, strict=False)) | kwargs))


def _structured(nest: Any, outputs: Any) -> Any:
    """Outputs as the model returned them; of other containers than tuples, lists and dicts a dict of their fields."""
    if isinstance(nest, Place):
        return outputs[nest.number]
    if isinstance(nest, dict):
        return {key: _structured(item, outputs) for key, item in nest.items()}
    return None if nest is None else type(nest)(_structured(item, outputs) for item in nest)


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
