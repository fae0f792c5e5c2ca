"""Data -> the mean and the spread of what layers read or give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from slim_model.data.holdout import Parts
from slim_model.factoring.layers import Layer
from slim_model.graph.decisions import Decided
from slim_model.graph.graph import Graph
from slim_model.ops import linear_form_of
from slim_model.ops.linear_form import each
from slim_model.ranking.evidence.moments import Covariances
from slim_model.ranking.evidence.sampling import sample_positions
from slim_model.recovery.linear_layers import read_patches

Wanted = tuple[str, str]
"""A row of ``OBSERVED``, and the stored weight of a layer."""


def gather(graph: Graph, wanted: Iterable[tuple[str, Layer]], parts: Parts) -> dict[Wanted, Covariances]:
    """Mean and spread, float64, of what is ``wanted`` of layers, at some positions of each sample. Nothing of a layer
    that no sample reached."""
    run = _Gathering(graph, wanted)
    with torch.no_grad():
        for part in parts():
            run.first = part.first
            run.run(initial_env=graph.bind(part.inputs))
    return run.moments


class _Gathering(Decided):
    """Runs a graph, and adds up what goes into and comes out of its layers."""

    def __init__(self, graph: Graph, wanted: Iterable[tuple[str, Layer]]) -> None:
        super().__init__(graph.module, graph.decisions, garbage_collect_values=True)
        self.wanted: dict[fx.Node, list[tuple[str, Layer]]] = {}
        for what, layer in wanted:
            self.wanted.setdefault(layer.node, []).append((what, layer))
        self.moments: dict[Wanted, Covariances] = {}
        self.first = 0

    def run_node(self, n: fx.Node) -> Any:
        before = {layer.weight: self.env[layer.operand] for _, layer in self.wanted.get(n, ())}
        result = super().run_node(n)
        for what, layer in self.wanted.get(n, ()):
            rows = OBSERVED[what](layer, before[layer.weight], result, self.first).double()
            mean = rows.mean(0)
            centred = rows - mean
            here = Covariances(len(rows), (mean,), (centred.movedim(0, -1) @ centred.movedim(0, -2),))
            key = (what, layer.weight)
            self.moments[key] = self.moments[key].merge(here) if key in self.moments else here
        return result


def _outputs(layer: Layer, x: Tensor, y: Tensor, first: int) -> Tensor:
    """``(row, output)``"""
    return _sampled(y.flatten(2).transpose(1, 2) if layer.options else y.reshape(len(y), -1, y.shape[-1]), first)


def _inputs(layer: Layer, x: Tensor, y: Tensor, first: int) -> Tensor:
    """``(row, input)``"""
    return _sampled(x.flatten(2).transpose(1, 2) if layer.options else x.reshape(len(x), -1, x.shape[-1]), first)


def _columns(layer: Layer, x: Tensor, y: Tensor, first: int) -> Tensor:
    """``(row, input x height of the kernel)``: what a kernel of width 1 reads."""
    stride, padding, dilation = (each(layer.options[name], 2)[0] for name in ("stride", "padding", "dilation"))
    height = layer.matrix.shape[2]
    columns = F.unfold(x, (height, 1), (dilation, 1), (padding, 0), (stride, 1))
    return _sampled(columns.transpose(1, 2), first)


def _patches(layer: Layer, x: Tensor, y: Tensor, first: int) -> Tensor:
    """``(row, input, tap)``: what the kernel of each input reads."""
    form = linear_form_of(layer.node)
    assert form is not None
    assert form.window is not None
    return read_patches(x, form.window.on_maps(), layer.matrix.shape[1], first).transpose(0, 1)


def _sampled(by_sample: Tensor, first: int) -> Tensor:
    """Some positions of each sample, of ``(sample, position, number)``."""
    at = sample_positions(first, len(by_sample), by_sample.shape[1]).to(by_sample.device)
    return by_sample.gather(1, at[..., None].expand(-1, -1, by_sample.shape[2])).flatten(0, 1)


OBSERVED: dict[str, Callable[[Layer, Tensor, Tensor, int], Tensor]] = {
    "outputs": _outputs,
    "inputs": _inputs,
    "columns": _columns,
    "patches": _patches,
}
"""What is observed of a layer, which reads x and gives y: rows of numbers."""
