"""cost: what a model costs, counted from the graph and the channels kept; nothing is executed.

One multiply-accumulate (MAC) is one multiplication and one addition; only layers are counted, not additions, norms or
activations. Counts are for one example (batch 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from slim_model.couple import Coupling
from slim_model.labels import Value, fixed, tensors_in
from slim_model.ops import Cut, row_of
from slim_model.shrink import cut_of


@dataclass(frozen=True, slots=True)
class Cost:
    """``params``: stored trained values; ``bytes``: all stored tensors; ``macs``: per example."""

    params: int
    macs: int
    bytes: int


def cost(coupling: Coupling, keep: np.ndarray | None = None) -> Cost:
    """Cost of the model with the channels ``keep`` (bool by component; None: all of them)."""
    if keep is None:
        keep = np.ones(coupling.component.max() + 1, bool)
    cut = cut_of(coupling, keep)
    params, size = _stored(coupling, cut)
    return Cost(params, sum(layer_macs(coupling, cut).values()), size)


def layer_macs(coupling: Coupling, cut: Cut) -> dict[fx.Node, int]:
    """MACs of each layer, per example."""
    graph = coupling.graph
    batch = next((x.shape[0] for x in graph.inputs if hasattr(x, "shape") and x.dim()), 1)
    counted = {}
    for node in graph.nodes:
        row = row_of(node.target) if node.op == "call_function" else None
        outputs = tensors_in([cut.values[node]])
        if row is None or row.macs is None or not outputs:
            continue
        shapes = _kept(cut, coupling.walk.arguments(node))
        counted[node] = row.macs(fixed(cut.shape(outputs[0])), **shapes) // batch
    return counted


def _kept(cut: Cut, arguments: Any) -> Any:
    if isinstance(arguments, Value):
        return fixed(cut.shape(arguments))
    if isinstance(arguments, dict):
        return {k: _kept(cut, v) for k, v in arguments.items()}
    if isinstance(arguments, list | tuple):
        return [_kept(cut, v) for v in arguments]
    return arguments


def _stored(coupling: Coupling, cut: Cut) -> tuple[int, int]:
    params = size = 0
    names = coupling.graph.parameter_names
    for owner, tensor in coupling.graph.tensors.items():
        if owner in coupling.walk.shared:
            continue
        kept = list(tensor.shape)
        for birth in coupling.births_of(owner):
            kept[birth.axis] = int(cut.keep[birth.start : birth.start + birth.size].sum())
        count = int(np.prod(kept, dtype=np.int64))
        size += count * tensor.element_size()
        params += count if owner in names else 0
    return params, size
