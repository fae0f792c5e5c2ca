"""The names users know layers by, and the role a tensor's axis plays in a layer."""

from __future__ import annotations

import re

import numpy as np
from torch import fx

from slim_model.graph.graph import module_path
from slim_model.labels.values import FIXED, Birth
from slim_model.labels.walk import Walk

_WEIGHT = re.compile(r"\.weight(_ih(_l0)?)?$")  # a recurrent layer has several


def _birth_of(walk: Walk, label: int) -> Birth:
    starts = walk.starts
    return walk.births[int(np.searchsorted(starts, label, side="right")) - 1]


def roles_of(walk: Walk) -> dict[tuple[str, int], str]:
    """(parameter, axis) -> 'makes' or 'reads', from the layers that used them."""
    roles: dict[tuple[str, int], str] = {}
    for axes, role in (([a for a, _ in walk.made], "makes"), (walk.read, "reads")):
        for axis in axes:
            label = int(axis.reshape(-1)[0])
            if label != FIXED:
                birth = _birth_of(walk, label)
                roles.setdefault((birth.owner, birth.axis), role)
    return roles


def layer_name(walk: Walk, node: fx.Node) -> str:
    """The module that holds the weight; where the weight is a bare parameter, its name."""
    owned = []
    for read in node.all_input_nodes:
        while read.op == "call_function" and len(read.all_input_nodes) == 1:  # a transposed weight
            read = read.all_input_nodes[0]
        owned.append(walk.graph.owners.get(read.name, ""))
    weights = [name for name in owned if _WEIGHT.search(name)] or [name for name in owned if name]
    return _WEIGHT.sub("", (weights or [""])[0]) or module_path(node) or node.name
