"""The loss on the data when some channels of one group are removed, for any number of choices.

Removed channels are zero where they are read, and norms take their statistics over the others, as in the proof. All
that comes before the group is first read is computed once for a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from slim_model.coupling.coupling import Coupling, Group
from slim_model.cutting.cut import cut_of
from slim_model.cutting.masked import Masked
from slim_model.data.batches import Batch, Data, pad_batch
from slim_model.data.loss import Loss, Losses, total_loss
from slim_model.errors import InputError
from slim_model.graph.decisions import Decided
from slim_model.graph.tensor_trees import tensors_among
from slim_model.labels.values import Value
from slim_model.ops import row_of
from slim_model.ranking.evidence.read_sites import has_writes


def losses_of(coupling: Coupling, group: Group, data: Data, loss: Loss | None) -> Losses:
    """A function that measures removals of one group: bool ``(trials, channel)`` -> float64 ``(trials,)``, mean losses
    over the data."""

    def losses(removed: Tensor) -> Tensor:
        total, samples = torch.zeros(len(removed), dtype=torch.float64), 0
        for batch in data.batches():
            total += _of_batch(coupling, group, pad_batch(batch, coupling.graph), loss, removed)
            samples += batch.samples
        if not bool(torch.isfinite(total).all()):
            raise InputError("the loss is NaN or infinite on the data. Check inputs, labels and weights.")
        return total / samples

    return losses


def _of_batch(coupling: Coupling, group: Group, batch: Batch, loss: Loss | None, removed: Tensor) -> Tensor:
    nodes = list(coupling.graph.nodes)
    touched = _touched(coupling, group, nodes)
    start = next((i for i, node in enumerate(nodes) if node in touched), len(nodes) - 1)
    ahead = Masked(coupling.graph, cut_of(coupling, coupling.keep_all()))
    ahead.env = coupling.graph.bind(batch.inputs)
    results = []
    with torch.no_grad():
        for node in nodes[:start]:
            if node.op != "placeholder":
                ahead.env[node] = ahead.run_node(node)
        live = _live(ahead.env, nodes[start:])
        copies = has_writes(coupling)
        for row in removed:
            kept = coupling.keep_all()
            kept[group.channels[row.numpy()]] = False
            trial = _Ablation(coupling, kept, touched)
            trial.env = {n: x.clone() if copies and isinstance(x, Tensor) else x for n, x in live.items()}
            results.append(_finished(trial, nodes[start:], batch, loss))
    return torch.stack(results)


class _Ablation(Masked):
    """The masked model, which looks at nothing but the nodes that channels of one group touch."""

    def __init__(self, coupling: Coupling, kept: np.ndarray, touched: set[fx.Node]) -> None:
        super().__init__(coupling.graph, cut_of(coupling, kept))
        self.touched = touched

    def run_node(self, n: fx.Node) -> Any:
        return super().run_node(n) if n in self.touched else Decided.run_node(self, n)


def _touched(coupling: Coupling, group: Group, nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that treat removed channels of the group in a way of their own."""
    readers, others = set(), coupling.keep_all()
    others[group.channels] = False
    for node in nodes:
        row = row_of(node.target) if node.op == "call_function" else None
        if row is None or row.masks == "nothing":
            continue
        for value in (coupling.labelled.values[n] for n in node.all_input_nodes):
            axes = [a for a in value.axes if a is not None] if isinstance(value, Value) else []
            if not all(others[coupling.component[a.numpy()]].all() for a in axes):
                readers.add(node)
    return readers


def _live(env: dict[fx.Node, Any], rest: list[fx.Node]) -> dict[fx.Node, Any]:
    still_read = {read for node in rest for read in node.all_input_nodes}
    return {node: x for node, x in env.items() if node in still_read}


def _finished(trial: Masked, nodes: list[fx.Node], batch: Batch, loss: Loss | None) -> Tensor:
    result: Any = None
    for node in nodes:
        result = trial.run_node(node)
        trial.env[node] = result
    outputs = [x[: batch.samples] for x in tensors_among(result)]
    return total_loss(loss, outputs, batch.labels, batch.samples).double().cpu()
