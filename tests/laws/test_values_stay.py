"""A stage leaves the values that it is given as they were: whoever holds one may go on with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from micronets import NETS
from slim_model.coupling.couple import couple
from slim_model.cutting.cut import cut_of
from slim_model.cutting.resize import resize
from slim_model.cutting.shrink_graph import shrink
from slim_model.export.to_program import to_program
from slim_model.graph.graph import Graph
from slim_model.graph.trace import trace
from slim_model.ops import row_of
from slim_model.simplifying.simplify import simplify

CASES = (
    *("conv_bn_relu", "batch_norm_of_the_batch", "channel_shuffle", "gathered_by_a_buffer", "view_hard_coded"),
    *("attention_fused", "grouped_many", "lstm", "weight_standardised_by_batch_norm"),
)
"""Nets in which each stage has something to change: a norm to mark, a shuffle, a view, a fused projection, an index."""


def written_down(graph: Graph) -> tuple[Any, ...]:
    """All that a graph says: its nodes, their arguments and the sizes of their values, and what its tensors hold."""
    nodes = [
        (n.name, n.op, str(n.target), str(n.args), str(n.kwargs), str(getattr(n.meta.get("val"), "shape", None)))
        for n in graph.nodes
    ]
    tensors = [(name, id(tensor), tensor._version) for name, tensor in graph.tensors.items()]
    return nodes, graph.module.code, dict(graph.owners), tensors


def traced(name: str) -> Graph:
    return trace(NETS[name].build(), NETS[name].inputs(2))


@pytest.mark.parametrize("name", CASES)
def test_simplify_leaves_the_traced_graph(name: str) -> None:
    graph = traced(name)
    before = written_down(graph)
    simple = simplify(graph)
    assert written_down(graph) == before
    assert not set(simple.nodes) & set(graph.nodes)


@pytest.mark.parametrize("name", CASES)
def test_shrink_and_what_follows_leave_their_graphs(name: str) -> None:
    coupling = couple(simplify(traced(name)))
    keep = np.ones(coupling.component.max() + 1, bool)
    for group in coupling.groups:
        keep[group.channels[1::2]] = False
    before = written_down(coupling.graph)
    small, _ = shrink(coupling, keep)
    assert written_down(coupling.graph) == before
    before = written_down(small)
    whole = resize(small)
    assert written_down(small) == before
    assert written_down(resize(whole)) == written_down(whole) != before, "sizes that were baked in have changed"
    to_program(small)
    assert written_down(small) == before


class Reversed(nn.Module):
    """4 channels in another order, by a stored index."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("order", torch.tensor([3, 2, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).index_select(1, self.order))


def test_a_rewrite_returns_the_constants_that_change() -> None:
    coupling = couple(simplify(trace(Reversed().eval(), (torch.zeros(2, 3),))))
    (group,) = coupling.groups
    keep = np.ones(coupling.component.max() + 1, bool)
    keep[group.channels[1]] = False
    (node,) = (n for n in coupling.graph.nodes if n.target is torch.ops.aten.index_select.default)
    row, cut = row_of(node.target), cut_of(coupling, keep)
    assert row is not None
    assert row.rewrite is not None
    changed = row.rewrite(cut, node)
    assert changed["stored"]["order"].tolist() == [2, 1, 0], "of channels 0, 2, 3, counted anew: 3 -> 2, 2 -> 1, 0 -> 0"
    small, replay = shrink(coupling, keep)
    assert small.tensors["order"].tolist() == [2, 1, 0]
    assert coupling.graph.tensors["order"].tolist() == [3, 2, 1, 0]
    assert not replay.born["order", 0].any(), "its entries are positions, and no channels"
