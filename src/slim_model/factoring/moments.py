"""Data -> the mean and the spread of what each layer gives."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from slim_model.data.holdout import Parts
from slim_model.factoring.layers import Layer
from slim_model.graph.decisions import Decided
from slim_model.graph.graph import Graph
from slim_model.ranking.evidence.moments import Covariances
from slim_model.ranking.evidence.sampling import sample_positions


def gather_outputs(graph: Graph, layers: Collection[Layer], parts: Parts) -> dict[str, Covariances]:
    """By the name of a layer's weight: mean and spread of its outputs over the samples, float64, at some positions of
    each; a constant bias is in the mean. Nothing of a layer that no sample reached."""
    run = _Gathering(graph, layers)
    with torch.no_grad():
        for part in parts():
            run.first = part.first
            run.run(initial_env=graph.bind(part.inputs))
    return run.moments


class _Gathering(Decided):
    """Runs a graph, and adds up what comes out of its layers."""

    def __init__(self, graph: Graph, layers: Collection[Layer]) -> None:
        super().__init__(graph.module, graph.decisions, garbage_collect_values=True)
        self.layers = {layer.node: layer for layer in layers}
        self.moments: dict[str, Covariances] = {}
        self.first = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.layers:
            layer = self.layers[n]
            rows = _rows(result, self.first, on_maps=bool(layer.options)).double()
            mean = rows.mean(0)
            centred = rows - mean
            here = Covariances(len(rows), (mean,), (centred.T @ centred,))
            before = self.moments.get(layer.weight)
            self.moments[layer.weight] = here if before is None else before.merge(here)
        return result


def _rows(y: Tensor, first: int, *, on_maps: bool) -> Tensor:
    """``(row, output)``: some positions of each sample."""
    by_sample = y.flatten(2).transpose(1, 2) if on_maps else y.reshape(len(y), -1, y.shape[-1])
    at = sample_positions(first, len(by_sample), by_sample.shape[1]).to(y.device)
    return by_sample.gather(1, at[..., None].expand(-1, -1, by_sample.shape[2])).flatten(0, 1)
