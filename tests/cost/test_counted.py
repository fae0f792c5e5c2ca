"""What a plan costs, counted without running it: against the small graph, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from micronets import NETS
from micronets.compiled import coupling_of
from slim_model.cost.counted import ENERGY, CostModel, cost
from slim_model.coupling.couple import couple
from slim_model.coupling.coupling import Coupling
from slim_model.cutting.resize import resize
from slim_model.cutting.shrink_graph import shrink
from slim_model.graph.trace import trace
from slim_model.simplifying.simplify import simplify


def every_other(coupling: Coupling) -> np.ndarray:
    keep = coupling.keep_all()
    for group in coupling.groups:
        keep[group.channels[1::2]] = False
    return keep


@pytest.mark.parametrize("name", [name for name in NETS if "packed" not in name])  # their sizes follow from data
def test_a_plan_costs_what_the_small_graph_does(name: str) -> None:
    coupling = coupling_of(name)
    keep = every_other(coupling)
    small, _ = shrink(coupling, keep)
    counted = cost(coupling, keep)
    own = {id(t): (n, t) for n, t in small.tensors.items()}.values()
    assert counted.bytes == sum(t.numel() * t.element_size() for _, t in own)
    assert counted.params == sum(t.numel() for n, t in own if n in small.parameter_names)
    assert counted.macs == cost(couple(resize(small))).macs


class Chain(nn.Module):
    """(N, 3, 8, 8) -> 8 channels -> 4 channels -> 2 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 1, bias=False)
        self.c = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        return self.c(x.mean((2, 3)))


def chain() -> tuple[Coupling, np.ndarray]:
    """And a plan that leaves 2 of the 8 channels and 3 of the 4."""
    coupling = couple(simplify(trace(Chain(), (torch.zeros(2, 3, 8, 8),))))
    keep = coupling.keep_all()
    first, second = coupling.groups
    keep[first.channels[2:]] = False
    keep[second.channels[3:]] = False
    return coupling, keep


def test_energy_by_hand() -> None:
    """Arithmetic and registers for each MAC; weights, inputs and outputs go to and from memory once."""
    coupling, keep = chain()
    layers = list(CostModel(coupling).energy_by_layer(keep).values())
    each = ENERGY["mac"] + ENERGY["register"]
    fetch = ENERGY["memory"]
    assert layers == [
        each * 2 * 3 * 9 * 64 + fetch * (2 * 3 * 9 + 3 * 64 + 2 * 64),
        each * 3 * 2 * 64 + fetch * (3 * 2 + 2 * 64 + 3 * 64),
        each * 2 * 3 + fetch * (2 * 3 + 3 + 2),
    ]
    assert CostModel(coupling).energy(keep) == sum(layers)


def test_memory_by_hand() -> None:
    """All weights, and at most two activations: what the second convolution reads and what it makes."""
    coupling, keep = chain()
    weights = 4 * (2 * 3 * 9 + 3 * 2 + 2 * 3)
    assert CostModel(coupling).memory(keep) == weights + 4 * 64 * (2 + 3)


def test_channels_are_those_of_groups() -> None:
    coupling, keep = chain()
    assert CostModel(coupling).channels() == 12
    assert CostModel(coupling).channels(keep) == 5


def test_views_hold_no_memory_and_keep_theirs_alive() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)  # 4 numbers, alive until the sum
            v = y.view(-1, 2, 2)
            z = torch.sigmoid(x)
            return v.sum((1, 2)) + z.sum(1)

    graph = trace(Views(), (torch.zeros(2, 4),))
    assert CostModel(couple(graph)).memory() == 4 * (4 + 4 + 1)


def test_macs_are_for_one_example_whatever_the_batch() -> None:
    model = Chain()
    one, many = (cost(couple(trace(model, (torch.zeros(n, 3, 8, 8),)))) for n in (2, 6))
    assert one == many


def test_layers_are_nodes_of_the_graph() -> None:
    coupling, keep = chain()
    nodes = list(CostModel(coupling).by_layer(keep))
    assert all(isinstance(node, fx.Node) for node in nodes)
    assert len(nodes) == 3
