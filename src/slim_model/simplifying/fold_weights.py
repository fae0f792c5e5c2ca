"""Compute what depends on parameters alone once, and store it.

In eval mode a weight under weight_norm (Salimans 2016), spectral_norm (Miyato 2018), weight standardisation (Qiao
2019), a parametrization or a merged low-rank pair (Hu 2021) is a constant. Its norms run over all channels of the
dense model. Taken anew over the channels that are left they would rescale what is left, so they are folded before
anything is coupled. Criteria then rank the weight that is used.

What only moves values of a parameter (transpose, view) stays as it is: sharing and coupling see through it. So does
what treats each value alone, unless PyTorch itself can make that weight a plain one.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from slim_model.graph.graph import Folded, Graph, PlainLayer, module_path, source_line
from slim_model.graph.stored_tensors import add_placeholder, computed_from, cone_of, storage_key, values_of
from slim_model.ops import kind_of, row_of
from slim_model.simplifying.plain_layer import plain_layer

_PARAMETRIZED = re.compile(r"((?:.+\.)?)parametrizations\.(\w+)\..+")
_HOOKED = ({"_g", "_v"}, {"_orig", "_mask"}, {"_orig", "_u", "_v"}, {"_orig", "_u"})
"""What torch.nn.utils puts behind the name of a weight: weight_norm, prune, spectral_norm."""


def fold_weights(graph: Graph) -> Graph:
    """The same graph in which weights that follow from parameters alone are stored; ``Graph.folded`` lists them.

    A weight gets the name that it has in a plain layer (``conv.weight``). Tensors that nothing else reads are gone.
    """
    known = computed_from(graph, lambda node: node.op == "get_attr" or node.name in graph.owners)
    cones = {node: cone_of(node) for node in (_as_a_source(graph, node, known) for node in _last_computed(known))}
    cones = {node: cone for node, cone in cones.items() if _worth_folding(graph, node, cone)}
    if not cones:
        return graph
    # What a module is besides its weight is read off before anything is replaced.
    layers = {node: plain_layer(node, known, graph.owners) for node in cones}
    inside = set().union(*cones.values())
    values = values_of(graph, [node for node in known if node in inside])
    formulas = _formulas(graph, known)
    sources = {node: [graph.owners[n.name] for n in known if n in cones[node] and n.name in graph.owners]
               for node in cones}  # fmt: skip
    made: dict[tuple[int, str], fx.Node] = {}
    folds: list[tuple[fx.Node, Folded, Tensor]] = []
    computed: dict[int, Tensor] = {}
    for node in cones:
        name = _name(graph, node, sources[node], layers[node])
        formula = formulas[node]
        if (formula, name) not in made:  # a weight that is computed at each of its uses is one weight
            value = computed.setdefault(formula, values[node].detach().clone())
            made[formula, name] = add_placeholder(graph, f"folded_{len(folds)}", value, node)
            folded = Folded(name, tuple(sources[node]), tuple(value.shape), source_line(node), layers[node])
            folds.append((made[formula, name], folded, value))
        node.replace_all_uses_with(made[formula, name])
    _drop(graph, known, {name for names in sources.values() for name in names})
    return _with_folded(graph, folds)


def _last_computed(known: Sequence[fx.Node]) -> list[fx.Node]:
    """Where values that are used elsewhere were computed last, behind which they only move."""
    within = set(known)
    computed: dict[fx.Node, None] = {}
    pending = [node for node in known if any(user not in within for user in node.users)]
    while pending:
        node = pending.pop()
        if node.op == "call_function" and node not in computed:
            if _moves(node):
                pending += node.all_input_nodes
            else:
                computed[node] = None
    return [node for node in known if node in computed]


def _as_a_source(graph: Graph, node: fx.Node, known: Sequence[fx.Node]) -> fx.Node:
    """``node``, or where it has been moved into the shape of a parameter that it is computed from."""
    shapes = {tuple(graph.tensors[graph.owners[n.name]].shape) for n in cone_of(node) if n.name in graph.owners}
    source = here = node
    while len(here.users) == 1 and _moves(here := next(iter(here.users))) and here in known and _is_one(here):
        if tuple(here.meta["val"].shape) in shapes:
            source = here
    return source


def _is_one(node: fx.Node) -> bool:
    """A tensor that is not put together from several."""
    return isinstance(node.meta["val"], Tensor) and kind_of(node) != "join"


def _moves(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return not isinstance(node.args[0], fx.Node) or _moves(node.args[0])
    row = row_of(node.target)
    return row is not None and row.only_moves


def _worth_folding(graph: Graph, node: fx.Node, cone: set[fx.Node]) -> bool:
    """A statistic would be taken anew over fewer channels; a weight that is put together is one weight."""
    value = node.meta["val"]
    owned = [graph.owners[n.name] for n in cone if n.name in graph.owners]
    if not owned or not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    kinds = {_kind(n) for n in cone if n.op == "call_function" and n.all_input_nodes}
    if "statistic" in kinds:
        return True
    return _is_weight(node) and (bool(kinds & {"along", "contraction"}) or _removable(owned) is not None)


def _kind(node: fx.Node) -> str:
    """How ``node`` treats the positions of what it reads."""
    row = row_of(node.target)
    effect, kind = (row.effect, row.kind) if row is not None else (None, None)
    if _moves(node) or node.target is operator.getitem or effect == "pointwise":
        return "alone"
    if effect == "along":  # nothing of that axis goes, so what it gives stays right
        return "along"
    ranks = [n.meta["val"].dim() for n in node.all_input_nodes[:2] if isinstance(n.meta.get("val"), Tensor)]
    vectors = kind not in ("einsum", "outer_product") and min(ranks, default=0) < 2
    return "contraction" if effect == "contracts" and not vectors else "statistic"


def _is_weight(node: fx.Node) -> bool:
    """A layer reads it, moved or not."""
    return any(_is_layer(user) or (_moves(user) and _is_weight(user)) for user in node.users)


def _is_layer(node: fx.Node) -> bool:
    row = row_of(node.target)
    return row is not None and (row.effect == "contracts" or row.kind in ("embedding", "recurrent"))


def _formulas(graph: Graph, known: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """Equal numbers for nodes that compute the same from the same memory."""
    numbers: dict[Any, int] = {}
    formulas: dict[fx.Node, int] = {}
    for node in known:
        if node.name in graph.owners:
            key: Any = storage_key(graph.tensors[graph.owners[node.name]])
        elif node.op == "get_attr":
            key = node.target
        else:
            key = (node.target, repr(fx.map_arg((node.args, node.kwargs), lambda n: f"node {formulas[n]}")))
        formulas[node] = numbers.setdefault(key, len(numbers))
    return formulas


# -- names ----------------------------------------------------------------------------------------------------------


def _removable(sources: Sequence[str]) -> str | None:
    """The name of the weight where torch.nn.utils computes it and can remove that again."""
    names = {f"{match[1]}{match[2]}" for source in sources if (match := _PARAMETRIZED.fullmatch(source))}
    if len(names) == 1:
        return names.pop()
    for suffixes in _HOOKED:
        bases = [{s.removesuffix(end) for s in sources if s.endswith(end)} for end in suffixes]
        if len(both := set.intersection(*bases)) == 1:
            return both.pop()
    return None


def _name(graph: Graph, node: fx.Node, sources: Sequence[str], layer: PlainLayer | None) -> str:
    """What a plain layer calls the weight; else the parameter of that shape that it replaces."""
    if layer is not None:
        return f"{layer.path}.weight"
    if (name := _removable(sources)) is not None:
        return name
    shape = tuple(node.meta["val"].shape)
    alike = [s for s in sources if tuple(graph.tensors[s].shape) == shape and s in graph.parameter_names]
    return alike[0] if len(alike) == 1 else f"{module_path(node)}.weight".lstrip(".")


# -- the graph without what was computed ----------------------------------------------------------------------------


def _drop(graph: Graph, known: Sequence[fx.Node], sources: set[str]) -> None:
    """Take out computed nodes, and the ``sources``, that nothing reads any more."""
    for node in reversed(known):
        source = node.op == "placeholder" and graph.owners[node.name] in sources
        if not node.users and (source or node.op == "call_function"):
            graph.module.graph.erase_node(node)
    graph.module.recompile()


def _with_folded(graph: Graph, folds: list[tuple[fx.Node, Folded, Tensor]]) -> Graph:
    owners = {n.name: graph.owners[n.name] for n in graph.nodes if n.name in graph.owners}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in set(owners.values())}
    trained = set(graph.parameter_names)
    folded = list(graph.folded)
    for stored, weight, tensor in folds:
        # A layer that is called twice computes the same weight twice.
        again = next((f.name for f in folded if f.sources == weight.sources and tensors[f.name].equal(tensor)), "")
        if again:
            owners[stored.name] = again
            continue
        name = weight.name
        while name in tensors:  # the raw parameter is read elsewhere, too
            name += "_folded"
        owners[stored.name], tensors[name] = name, tensor
        folded.append(dataclasses.replace(weight, name=name))
        if not graph.parameter_names.isdisjoint(weight.sources):
            trained.add(name)
    return dataclasses.replace(
        graph,
        owners=owners,
        tensors=tensors,
        parameter_names=frozenset(trained & tensors.keys()),
        folded=tuple(folded),
        warnings=(*graph.warnings, _note([weight.name for weight in folded])),
    )


def _note(names: list[str]) -> str:
    listed = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    many = f"{len(names)} weights follow" if len(names) > 1 else "1 weight follows"
    return (
        f"{many} from parameters alone ({listed}): computed once, and plain in the small model, but where a forward of "
        "its own class still computes them"
    )
