"""Norms whose statistics run over fewer channels than in the dense model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import fx

from slim_model.coupling.coupling import Coupling
from slim_model.coupling.layer_names import layer_name
from slim_model.cutting.cut import cut_of
from slim_model.graph.graph import source_line
from slim_model.graph.nodes import arguments_of
from slim_model.labels.values import Value
from slim_model.ops import Cut, Op, row_of


@dataclass(frozen=True, slots=True)
class KeptNorm:
    """A norm, or a statistic that a norm written by hand takes, by the name of its module; ``where``: source line."""

    name: str
    op: str
    where: str


def find_kept_norms(coupling: Coupling, keep: np.ndarray) -> tuple[KeptNorm, ...]:
    """What takes statistics over the channels that are left, in the order of the graph. All other statistics count the
    channels of the dense model. ``keep``: bool by channel, as ``Plan.keep``."""
    cut = cut_of(coupling, keep)
    norms: dict[KeptNorm, None] = {}
    for node in coupling.graph.nodes:
        row = row_of(node.target) if node.op == "call_function" else None
        if row is not None and row.over is not None and _loses(cut, node, row):
            norms[KeptNorm(layer_name(coupling.labelled, node), str(node.target), source_line(node))] = None
    return tuple(norms)


def _loses(cut: Cut, node: fx.Node, row: Op) -> bool:
    """Some of the positions that one statistic runs over are gone, and some are left."""
    source = cut.values[node.all_input_nodes[0]]
    if not isinstance(source, Value) or row.over is None:
        return False
    axes, blocks = row.over(source, **arguments_of(node))
    for axis in axes:
        kept = cut.kept(source.axes[axis], source.shape[axis]).reshape(blocks, -1)
        if bool((kept.any(1) & ~kept.all(1)).any()):
            return True
    return False
