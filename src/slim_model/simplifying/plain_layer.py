"""A module that is nothing but one layer over a weight that it computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import fx

from slim_model.graph.graph import PlainLayer
from slim_model.graph.nodes import bound, packet_of

aten = torch.ops.aten

_KINDS = {
    aten.linear: "Linear",
    **{getattr(aten, f"conv{n}d"): f"Conv{n}d" for n in (1, 2, 3)},
    **{getattr(aten, f"conv_transpose{n}d"): f"ConvTranspose{n}d" for n in (1, 2, 3)},
}


def plain_layer(weight: fx.Node, known: Collection[fx.Node], owners: Mapping[str, str]) -> PlainLayer | None:
    """The layer that the module of the one user of ``weight`` is, where all else in it is in ``known``, what depends on
    parameters alone. None where it computes more than that (padding of its input, a scale behind it). ``owners``: names
    of stored tensors, by node."""
    layer = next(iter(weight.users)) if len(weight.users) == 1 else weight
    kind = _KINDS.get(packet_of(layer))
    path = _paths(layer)[-1:]
    given = bound(layer) if kind else {}
    if not kind or not path or not path[0] or given["weight"] is not weight:
        return None
    inside = [n for n in weight.graph.nodes if n.op == "call_function" and path[0] in _paths(n)]
    if given["input"] in inside or any(n is not layer and n not in known for n in inside):
        return None
    bias = given["bias"]
    if bias is not None and owners.get(bias.name) != f"{path[0]}.bias":
        return None
    options = {name: given[name] for name in given if name not in ("input", "weight", "bias")}
    return PlainLayer(path[0], kind, options, bias is not None)


def _paths(node: fx.Node) -> list[str]:
    """Names of the modules whose forward made ``node``, the outermost first."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
