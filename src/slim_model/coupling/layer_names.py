"""The names users know layers by, and the role a tensor's axis plays in a layer."""

from __future__ import annotations

import re
from bisect import bisect

from torch import fx

from slim_model.graph.graph import module_path
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import FIXED

_WEIGHT = re.compile(r"\.weight(_ih(_l0)?)?$")  # a recurrent layer has several


def roles_of(labelled: Labelled) -> dict[tuple[str, int], str]:
    """(parameter, axis) -> 'makes' or 'reads', from the layers that used them."""
    roles: dict[tuple[str, int], str] = {}
    starts = [birth.start for birth in labelled.births]
    for axes, role in (([a for a, _ in labelled.made], "makes"), (labelled.read, "reads")):
        for axis in axes:
            label = int(axis.reshape(-1)[0])
            if label != FIXED:
                birth = labelled.births[bisect(starts, label) - 1]
                roles.setdefault((birth.owner, birth.axis), role)
    return roles


def layer_name(labelled: Labelled, node: fx.Node) -> str:
    """The user's name of the layer at ``node``: that of the module that holds its weight; a bare weight's own name. Of
    a factored layer the last factor has its name, the others are its ranks."""
    for layer in labelled.graph.factored:
        if node.name in (names := [factor.node for factor in layer.factors]):
            number = names.index(node.name) + 1
            several = f" {number}" if len(names) > 2 else ""
            return layer.path if number == len(names) else f"{layer.path} (rank{several})"
    owned = []
    for read in node.all_input_nodes:
        while read.op == "call_function" and len(read.all_input_nodes) == 1:  # a transposed weight
            read = read.all_input_nodes[0]
        owned.append(labelled.graph.owners.get(read.name, ""))
    weights = [name for name in owned if _WEIGHT.search(name)] or [name for name in owned if name]
    return _WEIGHT.sub("", (weights or [""])[0]) or module_path(node) or node.name
