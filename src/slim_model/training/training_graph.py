"""The traced graph as a module that can be trained, and the trained values back in the graph.

A trace holds the eval form of each operator. One row in ``TRAINING`` says what it is in training: the same operator
with its switch on. What the eval form does not show at all (stochastic depth, dropout inside attention) stays away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from slim_model.graph.as_module import graph_module
from slim_model.graph.graph import Folded, Graph
from slim_model.graph.nodes import bound, packet_of
from slim_model.graph.stored_tensors import shared_names

aten = torch.ops.aten
_ASSERTIONS = (aten._assert_tensor_metadata, aten._assert_scalar, aten.sym_constrain_range_for_size)
_MOMENTUM = 0.1  # torch.nn's own; an eval trace of a layer that keeps a cumulative mean holds 0, which learns nothing


Row = Callable[[fx.Node, float], None]


def _switched(name: str, target: Any = None, *, rate: str | None = None) -> Row:
    """The operator with its argument ``name`` set; ``target`` where another one has that argument. ``rate``: where it
    says how much is dropped, of which the share ``dropout`` stays."""

    def row(node: fx.Node, dropout: float) -> None:
        arguments = bound(node) | {name: True}
        if rate is not None:
            arguments[rate] *= dropout
        if arguments.get("momentum") == 0.0:
            arguments["momentum"] = _MOMENTUM
        node.target = target or node.target
        schema: Any = node.target._schema  # type: ignore[union-attr]
        node.args = tuple(arguments.pop(a.name) for a in schema.arguments if not a.kwarg_only)
        node.kwargs = arguments

    return row


TRAINING: dict[Any, Row] = {
    aten.batch_norm: _switched("training"),
    aten.native_batch_norm: _switched("training"),
    aten._native_batch_norm_legit: _switched("training"),
    aten._native_batch_norm_legit_no_training: _switched("training", aten._native_batch_norm_legit.default),
    aten.instance_norm: _switched("use_input_stats"),
    aten.rrelu: _switched("training"),
    aten.rrelu_: _switched("training"),
    **{
        packet: _switched("train", rate="p")
        for packet in (
            *(aten.dropout, aten.dropout_, aten.feature_dropout, aten.feature_dropout_, aten.native_dropout),
            *(aten.alpha_dropout, aten.alpha_dropout_, aten.feature_alpha_dropout, aten.feature_alpha_dropout_),
        )
    },
    **{packet: _switched("train", rate="dropout") for packet in (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)},
}


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
        if node.op == "call_function" and (row := TRAINING.get(packet_of(node))):
            row(node, dropout)
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


def trained(graph: Graph, module: nn.Module) -> Graph:
    """``graph`` with the values that ``module``, made from it, holds now."""
    held = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    values: dict[int, Tensor] = {}
    tensors = dict(graph.tensors)
    for name in set(graph.owners.values()):
        own = held[name]
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
        elif packet_of(node) in _ASSERTIONS:
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


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Whatever is random follows from ``seed``; the user's own random numbers go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def frozen_names(model: nn.Module, folded: Iterable[Folded] = ()) -> set[str]:
    """Parameters the user froze; none where that is all of them, as in what was exported for inference. A ``folded``
    weight is frozen where all parameters behind it are."""
    given = dict(model.named_parameters(remove_duplicate=False))
    found = {name for name, parameter in given.items() if not parameter.requires_grad}
    if len(found) == len(given):
        return set()
    return found | {weight.name for weight in folded if found.issuperset(given.keys() & set(weight.sources))}
