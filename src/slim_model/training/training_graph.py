"""A traced graph (eval form) as a module in training form, and its trained values back in the graph.

A trace holds the eval form of each operator. Its row says what it is in training: the same operator with its
``training_switch`` on. What the eval form does not show at all (stochastic depth, dropout inside attention) stays away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from slim_model.graph.as_module import graph_module
from slim_model.graph.graph import Factored, Folded, Graph
from slim_model.graph.stored_tensors import shared_names
from slim_model.ops import kind_of, row_of


def training_module(
    graph: Graph, *, frozen: Iterable[str] = (), dropout: float = 1.0, device: torch.device | None = None
) -> fx.GraphModule:
    """``graph`` in its training form, over copies of its tensors; shared ones stay shared. ``dropout``: the share of
    the model's own rates that stays.

    Running statistics are buffers that a call updates. Parameters named in ``frozen``, and those the outputs do not
    depend on, want no gradient.
    """
    module = _copied(graph)
    for node in module.graph.nodes:
        row = row_of(node.target) if node.op == "call_function" else None
        if row is not None and row.training_switch is not None:
            row.training_switch.turn_on(node, dropout)
    _freeze(graph, module, set(frozen))
    return _on(module, device)


def eval_module(graph: Graph, *, device: torch.device | None = None) -> fx.GraphModule:
    """``graph`` as it is, over copies of its tensors; nothing wants a gradient."""
    return _on(_copied(graph), device).requires_grad_(False)


def with_values(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """``module`` made from a graph, that gives the values of the nodes called ``names`` behind its outputs."""
    nodes = {node.name: node for node in module.graph.nodes}
    (output,) = module.graph.find_nodes(op="output")
    output.args = ((output.args[0], [nodes[name] for name in names]),)
    module.recompile()
    return module


def with_trained_values(graph: Graph, module: nn.Module) -> Graph:
    """``graph`` with the values that ``module``, made from it, holds now."""
    stored = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    values: dict[int, Tensor] = {}
    tensors = dict(graph.tensors)
    for name in set(graph.owners.values()):
        own = stored[name]
        if id(own) not in values:
            values[id(own)] = own.detach().to(graph.tensors[name].device, copy=True).contiguous()
        tensors[name] = values[id(own)]
    for copy, first in _shared(graph).items():
        tensors[copy] = tensors[first]
    return graph.with_tensors(tensors)


def _copied(graph: Graph) -> fx.GraphModule:
    shared = _shared(graph)
    copies = {name: tensor.detach().clone() for name, tensor in graph.tensors.items()}
    module = graph_module(graph.with_tensors(copies))
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            node.target = shared.get(str(node.target), str(node.target))
        elif kind_of(node) == "assertion":
            module.graph.erase_node(node)  # of dtypes, which autocast changes
    return module


def _shared(graph: Graph) -> dict[str, str]:
    """The further names of a stored tensor that has several, each with the first."""
    return shared_names({name: graph.tensors[name] for name in graph.owners.values()})


def _freeze(graph: Graph, module: fx.GraphModule, frozen: set[str]) -> None:
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr" and node.users}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and name in used and name not in frozen)


def _on(module: fx.GraphModule, device: torch.device | None) -> fx.GraphModule:
    """On ``device``, which the trace wrote into whatever makes a tensor."""
    if device is not None:
        for node in module.graph.nodes:
            if isinstance(node.kwargs.get("device"), torch.device):
                node.kwargs = node.kwargs | {"device": device}
        module = module.to(device)
    module.graph.lint()
    module.recompile()
    return module


def frozen_names(model: nn.Module, folded: Iterable[Folded] = (), factored: Iterable[Factored] = ()) -> set[str]:
    """Parameters the user froze; none where that is all of them, as in what was exported for inference. A ``folded``
    weight is frozen where all parameters behind it are, factors of a layer where its weight is."""
    given = dict(model.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in given.items() if not parameter.requires_grad}
    if len(frozen) == len(given):
        return set()
    frozen |= {weight.name for weight in folded if frozen.issuperset(given.keys() & set(weight.sources))}
    factors = [factor for layer in factored if layer.weight in frozen for factor in layer.factors]
    return frozen | {name for factor in factors for name in (factor.weight, factor.bias) if name}
