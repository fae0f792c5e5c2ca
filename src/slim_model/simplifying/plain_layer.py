"""A module that is nothing but one layer over a weight that it computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from slim_model.graph.graph import PlainLayer
from slim_model.graph.nodes import arguments_of
from slim_model.ops import kind_of

_NAMES = {"linear": "Linear", "convolution": "Conv{}d", "transposed_convolution": "ConvTranspose{}d"}


def plain_layer(weight: fx.Node, known: Collection[fx.Node], owners: Mapping[str, str]) -> PlainLayer | None:
    """The layer that the module of the one user of ``weight`` is, where all else in it is in ``known``, what depends on
    parameters alone. None where it computes more than that (padding of its input, a scale behind it). ``owners``: names
    of stored tensors, by node."""
    layer = next(iter(weight.users)) if len(weight.users) == 1 else weight
    name = _NAMES.get(kind_of(layer) or "")
    path = _paths(layer)[-1:]
    given = arguments_of(layer) if name else {}
    if not name or not path or not path[0] or given["weight"] is not weight or "transposed" in given:
        return None
    inside = [n for n in weight.graph.nodes if n.op == "call_function" and path[0] in _paths(n)]
    if given["input"] in inside or any(n is not layer and n not in known for n in inside):
        return None
    bias = given["bias"]
    if bias is not None and owners.get(bias.name) != f"{path[0]}.bias":
        return None
    options = {name: given[name] for name in given if name not in ("input", "weight", "bias")}
    return PlainLayer(path[0], name.format(weight.meta["val"].dim() - 2), options, bias is not None)


def _paths(node: fx.Node) -> list[str]:
    """Names of the modules whose forward made ``node``, the outermost first."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
